"""What the index and the registry are made of: plain data, no Redis.

A worker's blocks are named by (namespace, worker id, epoch); its batches are numbered by `seq` from 1 on, without gaps.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from baton.core.hashing import HASH_BYTES
from baton.core.tiers import Tier


class Namespace(msgspec.Struct, frozen=True, array_like=True):
    """Whose KV caches can be shared at all: workers of one model, revision and KV layout."""

    model: str
    revision: str
    fingerprint: str

    @property
    def key(self) -> str:
        """Part of Redis keys; names may hold any character, so it is a digest."""
        digest = hashlib.sha256()
        for part in (self.model, self.revision, self.fingerprint):
            digest.update(len(part.encode()).to_bytes(4, "little") + part.encode())
        return digest.hexdigest()[:16]


class WorkerRecord(msgspec.Struct, frozen=True, array_like=True):
    """One registered worker: enough for a router to reach it. `role`: prefill | decode | unified."""

    worker_id: str
    epoch: int
    role: str
    address: str
    model: str
    namespace: Namespace


class Applied(enum.Enum):
    """What became of a batch. GAP: batches are missing, the publisher sends a reset. STALE: a newer epoch publishes."""

    OK = "OK"
    GAP = "GAP"
    STALE = "STALE"


@dataclass(frozen=True, slots=True)
class BlockBatch:
    """Changes of the blocks that one worker holds, each of them in one field; `removed` applies last.

    `stored` are in its pool now, `host` in memory of its agent only, `disk` on the agent's disk only. `reset`: all that
    was known of the worker goes first. Hashes are packed, HASH_BYTES each.
    """

    worker_id: str
    epoch: int
    seq: int
    stored: bytes = b""
    removed: bytes = b""
    reset: bool = False
    host: bytes = b""
    disk: bytes = b""

    def placed(self) -> dict[Tier, bytes]:
        """What is somewhere now, by tier."""
        return {Tier.POOL: self.stored, Tier.HOST: self.host, Tier.DISK: self.disk}


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """The worker's blocks were dropped: it withdrew, or its registration expired."""

    worker_id: str
    epoch: int


BlockEvent = BlockBatch | WorkerGone


@dataclass(frozen=True, slots=True)
class WorkerBlocks:
    """All blocks of one worker as of batch `seq`: in its pool, and those that are only in memory or on disk of its
    agent."""

    epoch: int
    seq: int
    blocks: set[bytes]
    host: set[bytes] = field(default_factory=set)
    disk: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class IndexSnapshot:
    """The index of one namespace. Events after `position` are to be applied on top; those that the snapshot already
    holds are told by their seq."""

    position: str
    workers: Mapping[str, WorkerBlocks]


def unpack_hashes(packed: bytes) -> list[bytes]:
    return [packed[at : at + HASH_BYTES] for at in range(0, len(packed), HASH_BYTES)]
