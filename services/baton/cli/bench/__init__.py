"""`baton bench`: measures an engine in this process, or a running system over HTTP."""
