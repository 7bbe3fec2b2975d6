"""A worker process and its agent, driven without a router: for measurements of workers alone.

Whoever drives it stands where a router would: it assigns attempts, and sees every event with the time at which it came.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grpc

from baton.core.attempt import Attempt
from baton.rpc.channel import open_channel
from baton.rpc.convert import attempt_to_pb
from baton.rpc.v1 import worker_pb2 as pb
from baton.rpc.v1 import worker_pb2_grpc

START_TIMEOUT_S = 240.0
_POLL_S = 0.05


class DrivenWorker:
    """`command` runs the worker (`baton prefill`, or a program that does the same); `flags` are added to it.

    An agent is started with `agent_flags`, unless they are None. Output goes to `NAME.log` in `folder`.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        port: int,
        command: Sequence[str],
        flags: Sequence[str],
        agent_flags: Sequence[str] | None,
    ) -> None:
        socket, self._address = folder / f"{name}.sock", f"127.0.0.1:{port}"
        own = [f"--worker-id={name}", f"--listen={self._address}"]
        commands = [[*command, *own, *flags]]
        if agent_flags is not None:
            commands[0].append(f"--agent-socket={socket}")
            commands.insert(0, [*baton_command(), "kv-agent", f"--socket={socket}", *agent_flags])
        self._has_agent = agent_flags is not None
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._processes = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
        self._events: asyncio.Queue[tuple[float, pb.WorkerEvent]] = asyncio.Queue()
        self._refs = 0
        self.description = pb.WorkerDescription()
        self.load = pb.Load()

    async def connect(self) -> None:
        """Wait until the worker, and its agent if it has one, are up. Raises RuntimeError when one of them ended."""
        channel = open_channel(self._address)
        async with asyncio.timeout(START_TIMEOUT_S):
            while channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
                if any(process.poll() is not None for process in self._processes):
                    raise RuntimeError(f"a process ended: {self._log.read_text(errors='replace')[-2000:]}")
                await asyncio.sleep(_POLL_S)
            self._call = worker_pb2_grpc.WorkerStub(channel).Work()
            await self._call.write(pb.WorkerRequest(hello=pb.RouterHello(router_id="measurement")))
            self._reading = asyncio.create_task(self._read())
            while not self.description.worker_id or (self._has_agent and not self.description.agent.address):
                await self._events.get()

    async def assign(self, attempt: Attempt, assign: pb.Assign) -> int:
        """Send `assign` for `attempt`; returns the name that the worker's frames give it."""
        self._refs += 1
        assign.ref = self._refs
        assign.attempt.CopyFrom(attempt_to_pb(attempt))
        await self._call.write(pb.WorkerRequest(assign=assign))
        return self._refs

    async def next_token_at(self, ref: int) -> float:
        """When the next frame with a token of `ref` came, by `time.perf_counter`. Others' frames are dropped."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                at, event = await self._events.get()
                if ref in event.step.refs:
                    return at

    def holding(self, tokens: int) -> pb.Pull:
        """What another worker must be told to pull `tokens` from this one."""
        d = self.description
        return pb.Pull(worker_id=d.worker_id, worker_epoch=d.epoch, agent=d.agent, tokens=tokens)

    async def _read(self) -> None:
        while isinstance(event := await self._call.read(), pb.WorkerEvent):
            at = time.perf_counter()
            if event.WhichOneof("message") == "description":
                self.description.CopyFrom(event.description)
            if event.step.HasField("load"):
                self.load.CopyFrom(event.step.load)
            if event.attempt.WhichOneof("event") == "failed":
                raise RuntimeError(event.attempt.failed.message)
            self._events.put_nowait((at, event))

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(30)


def baton_command() -> list[str]:
    """`baton` of the running interpreter."""
    return [sys.executable, "-P", "-m", "baton.cli.main"]
