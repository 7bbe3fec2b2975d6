"""The handoff without gRPC: pool memory, the handoff's state machine, transports, the worker's link to its agent."""
