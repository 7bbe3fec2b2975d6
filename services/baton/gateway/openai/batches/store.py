"""Batches in a folder, so that they survive their gateway: one folder each, and a list of those that are not over.

    open/<id>                 empty: the batch is not over
    <id>/batch.json           the batch
    <id>/input.jsonl          its input, whatever becomes of the file that was uploaded
    <id>/journal.jsonl        an entry per answered line, in the order of their answers
    <id>/cancel               empty: somebody asked to cancel it
    <id>/lock                 held (flock) by the gateway that runs it; the system frees it when that dies

All methods block: call them on a thread. The folder may be shared by gateways where flock works across them.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from baton.gateway.openai.batches.batch import OVER, Batch
from baton.gateway.openai.errors import NotFound
from baton.gateway.openai.files.store import folder_of, write_whole
from baton.gateway.settings import GatewaySettings

_ID = re.compile(r"batch_[0-9a-f]{28}")


def new_batch_id() -> str:
    """Ids sort by time."""
    return f"batch_{time.time_ns():016x}{secrets.token_hex(6)}"


class BatchStore:
    """The batches of all tenants below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = folder / "open"
        self._open.mkdir(exist_ok=True)

    @classmethod
    def of_gateway(cls, settings: GatewaySettings) -> BatchStore:
        """Raises NoFolder where the gateway was given none."""
        return cls(folder_of(settings, "batches"))

    def create(self, batch: Batch, input: Path) -> None:
        """`input` stays where it is. The batch is on its way once this returns."""
        folder = self.folder(batch.id)
        folder.mkdir(mode=0o700)
        try:
            os.link(input, folder / "input.jsonl")
        except OSError:  # a file system without links
            shutil.copyfile(input, folder / "input.jsonl")
        self.save(batch)
        (self._open / batch.id).touch()

    def save(self, batch: Batch) -> None:
        write_whole(self.folder(batch.id) / "batch.json", msgspec.json.encode(batch))

    def load(self, id: str) -> Batch:
        """Raises NotFound."""
        with suppress(FileNotFoundError):
            if _ID.fullmatch(id):
                return msgspec.json.decode((self.folder(id) / "batch.json").read_bytes(), type=Batch)
        raise NotFound(f"No batch found with id '{id[:200]}'.", param="id")

    def get(self, id: str, tenant: str) -> Batch:
        """As it looks to its tenant. Raises NotFound."""
        batch = self.load(id)
        if batch.tenant != tenant:
            raise NotFound(f"No batch found with id '{id[:200]}'.", param="id")
        if batch.status not in OVER and batch.cancelling_at is None and self.is_cancelled(id):
            batch.status, batch.cancelling_at = "cancelling", self._cancelled_at(id)
        return batch

    def of(self, tenant: str) -> list[Batch]:
        """All of one tenant, the oldest first."""
        batches = []
        for path in sorted(self._folder.glob("batch_*")):
            with suppress(NotFound):
                batches.append(self.get(path.name, tenant))
        return batches

    def unfinished(self) -> list[str]:
        """Ids, the oldest first."""
        return sorted(path.name for path in self._open.iterdir())

    def cancel(self, id: str) -> None:
        (self.folder(id) / "cancel").touch()

    def is_cancelled(self, id: str) -> bool:
        return (self.folder(id) / "cancel").exists()

    def close(self, id: str) -> None:
        """The batch is over: only what clients ask for stays."""
        (self._open / id).unlink(missing_ok=True)
        for name in ("input.jsonl", "journal.jsonl"):
            (self.folder(id) / name).unlink(missing_ok=True)

    def sweep(self, ttl_s: float) -> None:
        """Forget batches that are over and were made more than `ttl_s` ago."""
        unfinished = set(self.unfinished())
        for path in self._folder.glob("batch_*"):
            with suppress(NotFound):
                if path.name not in unfinished and self.load(path.name).created_at < time.time() - ttl_s:
                    shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def lock(self, id: str) -> Iterator[bool]:
        """Whether the batch is this gateway's alone while the context lasts."""
        try:
            descriptor = os.open(self.folder(id) / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        except FileNotFoundError:  # swept away
            yield False
            return
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def folder(self, id: str) -> Path:
        return self._folder / id

    def _cancelled_at(self, id: str) -> int:
        return int((self.folder(id) / "cancel").stat().st_mtime)
