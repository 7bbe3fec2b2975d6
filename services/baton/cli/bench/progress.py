"""How far a benchmark is: a bar on a terminal, a line every ten seconds elsewhere. Written to stderr."""

from __future__ import annotations

import asyncio
import sys
import time

from baton.cli.bench.outcome import Log
from baton.cli.up.region import LiveRegion

_WIDTH = 30
_TERMINAL_PERIOD_S, _FILE_PERIOD_S = 0.2, 10.0


def bar(done: int, total: int) -> str:
    filled = _WIDTH * min(done, total) // max(1, total)
    return f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{total}"


def describe(log: Log, elapsed_s: float) -> str:
    errors = f", {log.failed} failed" if log.failed else ""
    rate = log.pieces / elapsed_s if elapsed_s > 0 else 0.0
    return f"{bar(len(log.outcomes), log.planned)}, {log.running} running{errors}, {rate:.0f} tok/s, {elapsed_s:.0f} s"


async def show(log: Log) -> None:
    """Show the progress of `log` until cancelled, and then take the bar away."""
    started = time.monotonic()
    region = LiveRegion(sys.stderr) if sys.stderr.isatty() else None
    try:
        while True:
            await asyncio.sleep(_TERMINAL_PERIOD_S if region else _FILE_PERIOD_S)
            line = describe(log, time.monotonic() - started)
            if region is not None:
                region.draw([line])
            else:
                print(line, file=sys.stderr, flush=True)
    finally:
        if region is not None:
            region.draw([])
