"""The host tier: blocks that left a worker's pool, kept in bounded memory of its agent."""
