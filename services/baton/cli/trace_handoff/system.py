"""A system for the occasion: `baton up` in a process of its own, with one prefill and one decode worker."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from baton.cli.up.plan import baton_command
from baton.core.errors import ConfigError
from baton.runtime.tied import tied_command

_START_S = 300.0  # large checkpoints take long to load
_STOP_S = 10.0
_POLL_S = 0.1
_SHOWN_CHARACTERS = 2000


@asynccontextmanager
async def own_system(flags: Sequence[str]) -> AsyncIterator[str]:
    """Start it with flags of `baton up`; yields the router's address. Raises ConfigError when it does not come up."""
    with tempfile.TemporaryDirectory(prefix="baton-trace-") as name:
        folder = Path(name)
        command = [*baton_command(), "up", "--port=0", f"--runtime-dir={folder / 'run'}", *flags]
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*tied_command(command), stdout=log, stderr=log)
        try:
            yield await _router(process, folder)
        finally:
            await _stop(process)


async def _router(process: asyncio.subprocess.Process, folder: Path) -> str:
    try:
        async with asyncio.timeout(_START_S):
            while process.returncode is None:
                with suppress(OSError, json.JSONDecodeError):
                    status = json.loads((folder / "run" / "status.json").read_text())
                    if status["ready"]:
                        return next(str(each["address"]) for each in status["services"] if each["kind"] == "router")
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        pass
    said = (folder / "log").read_text(errors="replace")[-_SHOWN_CHARACTERS:]
    raise ConfigError(f"the system did not start; it said:\n{said.strip()}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), _STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()
