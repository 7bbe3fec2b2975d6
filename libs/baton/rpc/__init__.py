"""gRPC: generated stubs (`v1`), conversion to the nouns of `core`, errors <-> status, server and channel assembly."""
