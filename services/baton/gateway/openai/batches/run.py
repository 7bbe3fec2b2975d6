"""One batch on its way: validated, answered line by line, its files written. It goes on where a gateway left it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import orjson
import structlog

from baton.gateway import metrics
from baton.gateway.openai.batches.batch import OVER, Batch, Ending, Status
from baton.gateway.openai.batches.lanes import Lanes
from baton.gateway.openai.batches.lines import (
    BadLine,
    Journal,
    RequestLine,
    TooManyLines,
    answer_entry,
    count_lines,
    error_entry,
    new_entry_id,
    read_lines,
)
from baton.gateway.openai.batches.store import BatchStore
from baton.gateway.openai.files.endpoint import BATCH_OUTPUT
from baton.gateway.openai.files.store import FileStore, new_file_id

log = structlog.get_logger(__name__)

_LOOK_S = 0.5  # how soon a batch notices that it was cancelled, or is over time; and how often its counts are written
_LINES_AT_ONCE = 64
_EXPIRED = "This request could not be executed before the completion window expired."


class _Stop(Exception):
    """The batch ends before all of its lines are answered."""

    def __init__(self, ending: Ending) -> None:
        self.ending = ending


class BatchRun:
    """Runs one batch, which its caller holds the lock of. Cancelling it leaves the batch to whoever runs it next.

    `lanes` answer requests for the batch's key. `line_bytes`: the longest request that is accepted.
    """

    def __init__(self, batch: Batch, batches: BatchStore, files: FileStore, lanes: Lanes, line_bytes: int) -> None:
        self._batch = batch
        self._batches = batches
        self._files = files
        self._lanes = lanes
        self._line_bytes = line_bytes
        folder = batches.folder(batch.id)
        self._input, self._journal_path = folder / "input.jsonl", folder / "journal.jsonl"
        self._outputs: tuple[Path, Path] = (folder / "output.jsonl", folder / "errors.jsonl")

    async def run(self) -> None:
        batch = self._batch
        if batch.status in OVER:  # its gateway was stopped before it could say so
            await asyncio.to_thread(self._batches.close, batch.id)
            return
        if batch.status == "validating" and not await self._validate():
            return
        journal = await asyncio.to_thread(Journal, self._journal_path)
        try:
            if batch.ending is None:
                ending = await self._answer_all(journal)
                await self._become("cancelling" if ending == "cancelled" else "finalizing", ending=ending)
            await self._finish(journal)
        finally:
            journal.close()
        log.info("batch", batch=batch.id, status=batch.status, completed=batch.completed, failed=batch.failed)

    async def _validate(self) -> bool:
        """Whether there is anything to answer. Lines are looked at one by one, when their turn comes."""
        batch, problem = self._batch, None
        try:
            batch.total = await asyncio.to_thread(count_lines, self._input)
            problem = None if batch.total else ("empty_file", "The input file has no requests.")
        except TooManyLines as error:
            problem = ("too_many_requests", str(error))
        if problem is None:
            await self._become("in_progress")
            return True
        code, message = problem
        batch.errors = [{"code": code, "message": message, "param": None, "line": None}]
        await self._become("failed")
        await asyncio.to_thread(self._batches.close, batch.id)
        return False

    async def _answer_all(self, journal: Journal) -> Ending:
        """Answer what the journal has no answer of. Returns how that ended."""
        ending: Ending = "completed"
        try:
            await self._look()
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(self._watch(journal))
                await self._answer_lines(journal)
                watcher.cancel()
        except* _Stop as stopped:
            [stop] = stopped.exceptions
            assert isinstance(stop, _Stop)
            ending = stop.ending
        return ending

    async def _answer_lines(self, journal: Journal) -> None:
        """All of them, as many at a time as there are lanes."""
        lines, places = self._lines(journal), asyncio.Semaphore(self._lanes.count)
        async with asyncio.TaskGroup() as group:
            while some := await asyncio.to_thread(lambda: list(islice(lines, _LINES_AT_ONCE))):
                for line in some:
                    if isinstance(line, RequestLine):
                        await places.acquire()
                        group.create_task(self._answer(line, journal)).add_done_callback(lambda _: places.release())
                        continue
                    entry = error_entry(line.custom_id, "invalid_request", f"Line {line.number}: {line.message}")
                    journal.add(line.number, entry, ok=False)
                    metrics.BATCH_LINES.labels("bad").inc()

    def _lines(self, journal: Journal) -> Iterator[RequestLine | BadLine]:
        lines = read_lines(self._input, self._batch.endpoint, self._line_bytes)
        return (line for line in lines if line.number not in journal.done)

    async def _answer(self, line: RequestLine, journal: Journal) -> None:
        request_id = new_entry_id()
        answer = await self._lanes.answer(self._batch, orjson.dumps(line.body), request_id)
        ok = answer.status == 200
        journal.add(line.number, answer_entry(line, request_id, answer.status, answer.body), ok=ok)
        metrics.BATCH_LINES.labels("completed" if ok else "failed").inc()

    async def _look(self) -> None:
        """Raises _Stop where no more lines are to be answered."""
        if time.time() >= self._batch.expires_at:
            raise _Stop("expired")
        if await asyncio.to_thread(self._batches.is_cancelled, self._batch.id):
            raise _Stop("cancelled")

    async def _watch(self, journal: Journal) -> None:
        batch = self._batch
        while True:
            await self._look()
            if (batch.completed, batch.failed) != (journal.completed, journal.failed):
                batch.completed, batch.failed = journal.completed, journal.failed
                await asyncio.to_thread(self._batches.save, batch)
            await asyncio.sleep(_LOOK_S)

    async def _finish(self, journal: Journal) -> None:
        """Write the files, under ids that are known before: doing it again after a crash changes nothing."""
        batch = self._batch
        assert batch.ending is not None
        if batch.ending == "expired":
            await asyncio.to_thread(self._expire, journal)
        batch.completed, batch.failed = journal.completed, journal.failed
        batch.output_file_id = (batch.output_file_id or new_file_id()) if journal.completed else None
        batch.error_file_id = (batch.error_file_id or new_file_id()) if journal.failed else None
        await asyncio.to_thread(self._batches.save, batch)
        await asyncio.to_thread(journal.split, *self._outputs)
        for path, id, kind in zip(self._outputs, (batch.output_file_id, batch.error_file_id), ("output", "error"),
                                  strict=True):  # fmt: skip
            if id is not None:
                await asyncio.to_thread(self._adopt, path, id, f"{batch.id}_{kind}.jsonl")
        await self._become(batch.ending)
        await asyncio.to_thread(self._batches.close, batch.id)

    def _expire(self, journal: Journal) -> None:
        for line in self._lines(journal):
            journal.add(line.number, error_entry(line.custom_id, "batch_expired", _EXPIRED), ok=False)

    def _adopt(self, path: Path, id: str, filename: str) -> None:
        batch = self._batch
        ttl_s = batch.output_ttl_s
        self._files.adopt(path, id=id, tenant=batch.tenant, filename=filename, purpose=BATCH_OUTPUT, ttl_s=ttl_s)

    async def _become(self, status: Status, *, ending: Ending | None = None) -> None:
        batch = self._batch
        batch.status, batch.ending = status, ending or batch.ending
        setattr(batch, f"{status}_at", int(time.time()))
        await asyncio.to_thread(self._batches.save, batch)
