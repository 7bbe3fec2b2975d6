"""gRPC: generated stubs (`v1`), conversion to and from the nouns of `core`, errors <-> status, server and channel assembly."""
