"""The `baton` command: on top of all services, which it starts; it holds no logic of theirs."""
