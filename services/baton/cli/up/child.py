"""One supervised process: it is started in a session of its own, its output read line by line, its group ended.

The process is tied to the supervisor: should that be killed, the kernel kills the process too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from baton.runtime.lifecycle import cancel_and_wait
from baton.runtime.tied import tied_command

_LONGEST_LINE_BYTES = 64 << 10
_DRAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run. `address` and `metrics` (host:port or unix path) stay the same over restarts.

    `quiet`: its lines are shown only at log level debug. `last`: it is ended after all others.
    """

    name: str
    kind: str
    command: tuple[str, ...]
    address: str = ""
    metrics: str = ""
    quiet: bool = False
    last: bool = False


async def run_child(
    spec: ChildSpec, on_start: Callable[[int], None], on_line: Callable[[str], None], grace_s: float = 3.0
) -> int:
    """Run `spec` to its end and return its exit code (negative: the signal that ended it).

    `on_start` gets the pid, `on_line` each line of stdout and stderr. When cancelled, the process gets SIGTERM and,
    after `grace_s`, SIGKILL. Whatever else is in its process group is killed once it has ended.
    """
    async with _output_pipe() as (reader, write_end):
        try:
            process = await asyncio.create_subprocess_exec(
                *tied_command(list(spec.command)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        reading = asyncio.create_task(_read_lines(reader, on_line))
        try:
            on_start(process.pid)
            return await process.wait()
        finally:
            await _end(process, grace_s)
            await asyncio.wait([reading], timeout=_DRAIN_S)
            await cancel_and_wait(reading)


@contextlib.asynccontextmanager
async def _output_pipe() -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """A reader and the descriptor that a process writes to, which the caller closes.

    Not asyncio's own pipe of a subprocess: with that one, `wait` waits for all who hold the pipe, which may be the
    process's children that outlive it.
    """
    read_end, write_end = os.pipe()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LONGEST_LINE_BYTES)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(read_end, "rb", buffering=0))
    try:
        yield reader, write_end
    finally:
        transport.close()


async def _end(process: asyncio.subprocess.Process, grace_s: float) -> None:
    if process.returncode is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await process.wait()
    _signal_group(process.pid, signal.SIGKILL)
    await process.wait()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


async def _read_lines(reader: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
    """Pass on complete lines; a line longer than `_LONGEST_LINE_BYTES` comes in pieces."""
    rest = b""
    while data := await reader.read(_LONGEST_LINE_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) >= _LONGEST_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        for line in lines:
            on_line(line.decode("utf-8", errors="replace").rstrip("\r"))
    if rest:
        on_line(rest.decode("utf-8", errors="replace"))
