"""Several gateway processes on one port: `workers` of them, each the whole gateway, and this one, which keeps them up.

Each listens on the port by itself (SO_REUSEPORT), and the kernel spreads connections over them: nothing stands between
a client and the process that serves it. A process that ends is started again; connections that it had are lost, and so
are those that it had not accepted yet. What they share is Redis, and a folder with the values of all metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from baton.core.errors import ConfigError
from baton.gateway.settings import GatewaySettings
from baton.runtime import metrics
from baton.runtime.lifecycle import EXIT_CONFIG, cancel_and_wait
from baton.runtime.tied import tied_command

log = structlog.get_logger(__name__)

_MODULE = "baton.gateway.worker_process"
_RESTART_S = 1.0
_GRACE_S = 2.0  # beyond the time that running requests get


class Order(msgspec.Struct):
    """What a process is told on its stdin. `settings`: JSON of GatewaySettings. `drain_marker`: see `DrainFlag`."""

    settings: str
    drain_marker: str


@dataclass(frozen=True, slots=True)
class Processes:
    """`settings` have the port that all share."""

    settings: GatewaySettings
    drain_marker: Path

    async def run(self) -> None:
        """Keep all processes running until cancelled. Raises ConfigError when one says that its settings are wrong."""
        order = Order(self.settings.model_dump_json(), str(self.drain_marker))
        tasks = [asyncio.create_task(self._keep(order)) for _ in range(self.settings.workers)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await cancel_and_wait(*tasks)

    async def _keep(self, order: Order) -> None:
        while True:
            process = await asyncio.create_subprocess_exec(
                *tied_command([sys.executable, "-P", "-m", _MODULE]), stdin=asyncio.subprocess.PIPE
            )
            try:
                await process.communicate(msgspec.json.encode(order))
            finally:
                await self._end(process)
                metrics.forget_process(process.pid)
            if process.returncode == EXIT_CONFIG:
                raise ConfigError("a gateway process cannot work with these settings; its message is above")
            log.error("gateway process ended; it is started again", pid=process.pid, code=process.returncode)
            await asyncio.sleep(_RESTART_S)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Politely at first. Nothing to do when it has ended by itself."""
        if process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        waiting = asyncio.create_task(process.wait())
        await asyncio.wait([waiting], timeout=self.settings.drain_s + _GRACE_S)
        if not waiting.done():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await waiting


@asynccontextmanager
async def processes(settings: GatewaySettings) -> AsyncIterator[Processes]:
    """The processes that the settings ask for, not started yet. Raises ConfigError when the port is in use."""
    if settings.api_keys and not settings.redis_url:
        log.warning("limits of API keys hold for each process by itself: without Redis they do not know of each other")
    with (
        _reserved(settings.host, settings.port) as port,
        tempfile.TemporaryDirectory(prefix="baton-gateway-") as folder,
        metrics.shared(Path(folder)),
    ):
        yield Processes(settings.model_copy(update={"port": port}), Path(folder) / "draining")


@contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """Hold the port while the context lasts, without listening: so it stays the same when it was any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as held:
        if port:
            with socket.socket(family) as probe:  # without SO_REUSEPORT: is it free of other programs' listeners?
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                _bind(probe, host, port)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _bind(held, host, port)
        yield held.getsockname()[1]


def _bind(sock: socket.socket, host: str, port: int) -> None:
    try:
        sock.bind((host, port))
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
