"""One file of the disk tier: a header, then records, only ever appended.

    header   magic, version, bytes of a block, KV layout fingerprint, checksum of the header
    record   magic, bytes of the body, block hash, checksum of the body, checksum of the record's header; body

All integers are little-endian, all checksums XXH3-64. The one of a record's header is seeded with its place, so that
bytes that came to lie elsewhere are no record. A writer that dies leaves a torn record at the end at worst, which
`open` finds and cuts; a body that does not fit its checksum is never returned. Nothing is flushed: this is a cache, and
what a host lost with its power is found out as that.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path

from xxhash import xxh3_64_intdigest

from baton.core.hashing import HASH_BYTES

VERSION = 1
_MAGIC = b"batonkv\0"
_RECORD_MAGIC = b"blk\0"
_HEADER = struct.Struct("<8sIQ32s")
_RECORD = struct.Struct(f"<4sQ{HASH_BYTES}sQ")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size
RECORD_HEADER_BYTES = _RECORD.size + _CHECKSUM.size


class NotASegment(Exception):
    """The file is of another version or layout, or no segment at all."""


class Segment:
    """An open segment file. Blocking; one thread at a time. OSError of the file system passes through.

    After an OSError of `append` the file may end with a torn record: nothing may be appended any more.
    """

    def __init__(self, path: Path, fd: int, block_bytes: int, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._fd = fd
        self._block_bytes = block_bytes

    @classmethod
    def create(cls, path: Path, fingerprint: str, block_bytes: int) -> Segment:
        """A new, empty segment; only its owner may read it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        segment = cls(path, fd, block_bytes, HEADER_BYTES)
        try:
            _write(fd, [_header(fingerprint, block_bytes)], 0)
        except OSError:
            segment.remove()
            raise
        return segment

    @classmethod
    def open(cls, path: Path, fingerprint: str, block_bytes: int) -> tuple[Segment, list[tuple[bytes, int]]]:
        """An existing segment, and (block hash, offset) of its records, in order; what follows them is cut off.

        Raises NotASegment when the file holds no blocks of this layout.
        """
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pread(fd, HEADER_BYTES, 0) != _header(fingerprint, block_bytes):
                raise NotASegment(f"{path} holds no blocks of layout {fingerprint}, or another version than {VERSION}")
            records, end = _scan(fd, block_bytes)
            os.ftruncate(fd, end)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, block_bytes, end), records

    def append(self, block_hash: bytes, body: bytes | memoryview, checksum: int) -> int:
        """Write a record, whose body has that checksum; returns its offset."""
        offset = self.size_bytes
        header = _record_header(offset, self._block_bytes, block_hash, checksum)
        _write(self._fd, [header, body], offset)
        self.size_bytes = offset + RECORD_HEADER_BYTES + self._block_bytes
        return offset

    def read(self, offset: int, block_hash: bytes, into: memoryview) -> bool:
        """Read the body of a record into `into`, of a block's size. False, and `into` is garbage: it is not intact."""
        header = bytearray(RECORD_HEADER_BYTES)
        wanted = RECORD_HEADER_BYTES + len(into)
        if _read(self._fd, [memoryview(header), into], offset) != wanted:
            return False
        checksum = _parse(bytes(header), offset, self._block_bytes, block_hash)
        return checksum is not None and xxh3_64_intdigest(into) == checksum

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Close, and delete the file."""
        self.close()
        with suppress(FileNotFoundError):
            self.path.unlink()


def _header(fingerprint: str, block_bytes: int) -> bytes:
    packed = _HEADER.pack(_MAGIC, VERSION, block_bytes, fingerprint.encode())
    return packed + _CHECKSUM.pack(xxh3_64_intdigest(packed))


def _record_header(offset: int, length: int, block_hash: bytes, checksum: int) -> bytes:
    packed = _RECORD.pack(_RECORD_MAGIC, length, block_hash, checksum)
    return packed + _CHECKSUM.pack(xxh3_64_intdigest(packed, offset))


def _parse(header: bytes, offset: int, length: int, block_hash: bytes | None = None) -> int | None:
    """Checksum of the body; None when this is not the header of a record (of that block) at that place."""
    packed = header[: _RECORD.size]
    magic, body_bytes, found, checksum = _RECORD.unpack(packed)
    if header[_RECORD.size :] != _CHECKSUM.pack(xxh3_64_intdigest(packed, offset)):
        return None
    if magic != _RECORD_MAGIC or body_bytes != length or block_hash not in (None, found):
        return None
    return int(checksum)


def _scan(fd: int, block_bytes: int) -> tuple[list[tuple[bytes, int]], int]:
    """(hash, offset) of the whole records from the first on, and where they end. Reads headers only."""
    size, offset, records = os.fstat(fd).st_size, HEADER_BYTES, []
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    while offset + RECORD_HEADER_BYTES + block_bytes <= size:
        header = os.pread(fd, RECORD_HEADER_BYTES, offset)
        if _parse(header, offset, block_bytes) is None:
            break
        records.append((_RECORD.unpack(header[: _RECORD.size])[2], offset))
        offset += RECORD_HEADER_BYTES + block_bytes
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)
    return records, offset


def _write(fd: int, parts: list[bytes | memoryview], offset: int) -> None:
    """All of `parts`; the kernel may take less at once."""
    left = [memoryview(part).cast("B") for part in parts]
    while left:
        written = os.pwritev(fd, left, offset)
        offset += written
        left = _rest(left, written)


def _read(fd: int, parts: list[memoryview], offset: int) -> int:
    """Fill `parts` from `offset` on; returns how many bytes there were."""
    left, total = parts, 0
    while left and (count := os.preadv(fd, left, offset + total)):
        total += count
        left = _rest(left, count)
    return total


def _rest(parts: list[memoryview], done: int) -> list[memoryview]:
    """What remains of `parts` behind the first `done` bytes."""
    while parts and done >= len(parts[0]):
        done -= len(parts[0])
        parts = parts[1:]
    return [parts[0][done:], *parts[1:]] if parts and done else parts
