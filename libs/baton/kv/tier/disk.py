"""Blocks on a disk, in segments (segment.py) of which the oldest is deleted as a whole when room is short.

Blocks leave the pool and the memory above with the leaves of a conversation first, so the oldest segment holds what is
needed least. A block that comes again when half of the room has been written since is written again: what is used now
and then does not go with an old segment. What is here outlives the agent: the next one reads the headers of all records
(`recover`). Blocking, and not thread-safe: one thread reads and writes, and it alone calls; but `abandon` may be called
by another one, which watches `progress` and has lost its patience with the disk.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from baton.core.errors import ConfigError
from baton.kv.memory import PoolMemory
from baton.kv.tier.host import Leaving, pool_array
from baton.kv.tier.segment import HEADER_BYTES, RECORD_HEADER_BYTES, NotASegment, Segment

log = structlog.get_logger(__name__)

SEGMENTS = 32  # that fit: how much goes at once, and how many files are open
_SUFFIX = ".kvseg"


@dataclass(frozen=True, slots=True)
class Stored:
    """`stored`: now on disk, written or there already. `dropped`: not any more, for lack of room."""

    stored: list[bytes]
    dropped: list[bytes]


@dataclass(slots=True)
class _Kept:
    """A segment, what was written to it in order, and how many bytes had ever been written before it."""

    segment: Segment
    began_at: int
    blocks: list[bytes]


class DiskTier:
    """At most `capacity_bytes` of files in `folder`, for blocks of `pool`'s layout. The folder belongs to the tier.

    Raises ConfigError when not even one block has room, the folder cannot be made, or another agent uses it. All other
    methods pass OSError on: the tier is of no use then.
    """

    def __init__(self, pool: PoolMemory, folder: Path, capacity_bytes: int) -> None:
        layout = pool.layout
        self._pool = pool_array(pool)
        self._fingerprint = layout.fingerprint
        self._block_bytes = layout.layers * layout.page_bytes
        self._record_bytes = RECORD_HEADER_BYTES + self._block_bytes
        least_bytes = HEADER_BYTES + self._record_bytes
        if capacity_bytes < least_bytes:
            raise ConfigError(
                f"a disk tier of {capacity_bytes} bytes holds nothing: a block and its headers have {least_bytes}",
                param="disk_tier_bytes",
            )
        self._capacity_bytes = capacity_bytes
        self._segment_bytes = max(least_bytes, capacity_bytes // SEGMENTS)
        self._folder = folder
        self._lock = _claim(folder)
        self._kept: dict[int, _Kept] = {}  # by number, oldest first
        self._places: dict[bytes, tuple[int, int]] = {}  # number of the segment, offset in it
        self._next = 1
        self._written_bytes = 0  # ever, as far as it is still known
        self._buffer = np.empty((layout.layers, layout.page_bytes), np.uint8)
        self._body = memoryview(self._buffer.data).cast("B")
        self._writing_pool = threading.Lock()
        self._abandoned = False
        self.size_bytes = 0  # of all files
        self.progress = 0  # records read and written so far

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._places

    def recover(self) -> Iterator[list[bytes]]:
        """Take in what an earlier agent has left, segment by segment, oldest first: the blocks of each. What cannot be
        used is deleted. Nothing may be stored before the end."""
        paths = sorted(self._folder.glob(f"*{_SUFFIX}"))
        sizes = [path.stat().st_size for path in paths]
        for at, path in enumerate(paths):
            if sum(sizes[at:]) > self._capacity_bytes:
                path.unlink()
                continue
            try:
                number = _number(path)
                segment, records = Segment.open(path, self._fingerprint, self._block_bytes)
            except NotASegment as reason:
                log.warning("disk tier: a file of no use is deleted", path=str(path), reason=str(reason))
                path.unlink()
                continue
            blocks = [block_hash for block_hash, _ in records]
            self._take(number, segment, blocks)
            self._places.update((block_hash, (number, offset)) for block_hash, offset in records)
            yield blocks

    def store(self, blocks: Iterable[Leaving]) -> Stored:
        """Write blocks; older segments go where room is short. Reading in the order of writing is fastest."""
        stored, dropped = [], []
        for block in blocks:
            if not self._is_recent(block.block_hash):
                dropped += self._make_room()
                self._append(block)
            stored.append(block.block_hash)
        here = self._places
        return Stored([name for name in stored if name in here], [name for name in dropped if name not in here])

    def load(self, blocks: Sequence[tuple[bytes, int]]) -> int:
        """Read (hash, page of the pool) into the pool, up to the first that is not here or not intact; returns how
        many."""
        for loaded, (block_hash, page) in enumerate(blocks):
            place = self._places.get(block_hash)
            if place is None:
                return loaded
            segment = self._kept[place[0]].segment
            if not segment.read(place[1], block_hash, self._body):
                log.warning("disk tier: a record is not intact", path=str(segment.path), offset=place[1])
                del self._places[block_hash]
                return loaded
            with self._writing_pool:
                if self._abandoned:
                    return loaded
                np.copyto(self._pool[:, page], self._buffer)
            self.progress += 1
        return len(blocks)

    def abandon(self) -> None:
        """When this returns, nothing is written into the pool any more, not even by a read that is still under way."""
        with self._writing_pool:
            self._abandoned = True

    def close(self) -> None:
        """Let go of files and pool; what is stored stays. Idempotent."""
        for kept in self._kept.values():
            kept.segment.close()
        self._kept.clear()
        self._places.clear()
        self._pool = np.empty((0, 0, 0), np.uint8)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _is_recent(self, block_hash: bytes) -> bool:
        place = self._places.get(block_hash)
        if place is None:
            return False
        return self._written_bytes - self._kept[place[0]].began_at <= self._capacity_bytes // 2

    def _append(self, block: Leaving) -> None:
        number, kept = next(reversed(self._kept.items()))
        offset = kept.segment.append(block.block_hash, block.body, block.checksum)
        kept.blocks.append(block.block_hash)
        self._places[block.block_hash] = (number, offset)
        self.progress += 1
        self.size_bytes += self._record_bytes
        self._written_bytes += self._record_bytes

    def _make_room(self) -> list[bytes]:
        """See that the newest segment takes one more record. Returns the blocks that are lost by that."""
        newest = next(reversed(self._kept.values()), None)
        begin = newest is None or newest.segment.size_bytes + self._record_bytes > self._segment_bytes
        needed = self._record_bytes + (HEADER_BYTES if begin else 0)
        lost = []
        while self.size_bytes + needed > self._capacity_bytes:
            lost += self._drop_oldest()
        if begin:
            path = self._folder / f"{self._next:012}{_SUFFIX}"
            self._take(self._next, Segment.create(path, self._fingerprint, self._block_bytes), [])
        return lost

    def _take(self, number: int, segment: Segment, blocks: list[bytes]) -> None:
        """`segment` is the newest one from now on."""
        self._kept[number] = _Kept(segment, self._written_bytes, blocks)
        self._next = number + 1
        self.size_bytes += segment.size_bytes
        self._written_bytes += segment.size_bytes

    def _drop_oldest(self) -> list[bytes]:
        """Delete the oldest segment; returns the blocks that are nowhere else on the disk."""
        number = next(iter(self._kept))
        kept = self._kept.pop(number)
        self.size_bytes -= kept.segment.size_bytes
        kept.segment.remove()
        lost = []
        for block_hash in kept.blocks:
            if self._places.get(block_hash, (0, 0))[0] == number:
                del self._places[block_hash]
                lost.append(block_hash)
        return lost


def _number(path: Path) -> int:
    """Segments are numbered from 1 on."""
    if not path.stem.isdecimal() or path.stem != f"{int(path.stem):012}" or not int(path.stem):
        raise NotASegment(f"{path} is not named as a segment is")
    return int(path.stem)


def _claim(folder: Path) -> int:
    """Make the folder, and lock it for as long as the returned descriptor is open."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"the disk tier's folder {folder} cannot be used: {error}", param="disk_tier_path") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ConfigError(
            f"another agent uses the folder {folder}; each needs its own", param="disk_tier_path"
        ) from error
    return fd
