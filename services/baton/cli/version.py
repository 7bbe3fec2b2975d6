"""`baton version`."""

from __future__ import annotations

import platform
from importlib import metadata

from baton.core.errors import ConfigError

PACKAGE = "baton-serving"


def main(argv: list[str]) -> int:
    if argv in (["-h"], ["--help"]):
        print("usage: baton version\n\nPrints the versions of Baton and of Python; baton check-env tells more.")
        return 0
    if argv:
        raise ConfigError(f"baton version takes no arguments, got {argv[0]!r}")
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    print(f"baton {metadata.version(PACKAGE)} ({system})")
    return 0
