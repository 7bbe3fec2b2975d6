"""Sends conversations to a server: at given times (open loop), or a fixed number at once (closed loop).

The open loop does not wait for answers, as real users do not: a slow server meets a growing queue. Times count from
when a request was sent; how far that was behind its due time is reported as the client's lag.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from baton.cli.bench.client import OpenAIClient
from baton.cli.bench.outcome import Log, Outcome
from baton.cli.bench.workload import Content, Conversation


def poisson_times(count: int, rate_per_s: float, seed: int) -> list[float]:
    """Arrival times of a Poisson process, the first at 0."""
    gaps = np.random.default_rng((seed, 1)).exponential(1.0 / rate_per_s, max(0, count - 1))
    times: list[float] = np.concatenate(([0.0], np.cumsum(gaps))).tolist()
    return times[:count]


class Load:
    """One run. `log` may be read at any time; cancelling `run` ends the requests under way as "unfinished"."""

    def __init__(self, client: OpenAIClient, planned: int) -> None:
        self._client = client
        self._started = 0.0
        self.log = Log(planned)

    async def closed(self, conversations: Iterable[Conversation], concurrency: int) -> None:
        """Keep `concurrency` conversations under way until all are over."""
        left = iter(conversations)
        with self._measured():
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(self._one_after_another(left))

    async def open(
        self, conversations: Iterable[Conversation], due_s: Sequence[float], most: int | None = None
    ) -> None:
        """Start each conversation when it is due, but never more than `most` at once."""
        places = asyncio.Semaphore(most) if most is not None else None
        with self._measured():
            async with asyncio.TaskGroup() as group:
                for conversation, due in zip(conversations, due_s, strict=True):
                    await asyncio.sleep(max(0.0, due - self._now()))
                    if places is not None:
                        await places.acquire()
                    task = group.create_task(self._converse(conversation, due))
                    if places is not None:
                        task.add_done_callback(lambda _: places.release())

    async def _one_after_another(self, left: Iterator[Conversation]) -> None:
        for conversation in left:
            await self._converse(conversation, None)

    async def _converse(self, conversation: Conversation, due: float | None) -> None:
        """All turns of one conversation; it ends early when an answer fails."""
        said: list[tuple[Content, str]] = []
        self.log.running += 1
        try:
            for number, turn in enumerate(conversation.turns):
                body = self._client.body(conversation.system, said, turn.content, turn.output_tokens)
                now = self._now()
                outcome = Outcome(due_s=now if due is None or number else due, sent_s=now, turn=number)
                try:
                    await self._client.ask(body, outcome, self.log, self._started)
                finally:
                    self.log.add(outcome)
                if outcome.error:
                    return
                said.append((turn.content, outcome.text))
        finally:
            self.log.running -= 1

    def _now(self) -> float:
        return time.monotonic() - self._started

    def _measured(self) -> _Measured:
        self._started = time.monotonic()
        return _Measured(self.log)


class _Measured:
    """Notes wall and CPU time of a run, however it ends."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def __enter__(self) -> None:
        self._cpu = time.process_time()
        self._log.started_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._log.ended_s = time.monotonic()
        self._log.cpu_s = time.process_time() - self._cpu
