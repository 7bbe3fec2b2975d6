"""Client libraries of others against a running system, each in a virtual environment of its own: `make clients`."""
