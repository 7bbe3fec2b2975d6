"""The engine: models, paged KV pool, radix prefix cache, scheduler, sampling. Knows no gRPC and no services.

`Engine` is the engine in one's own process: `from baton.engine import Engine`. Importing this package imports no torch
before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baton.engine.inprocess import Engine as Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from baton.engine.inprocess import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
