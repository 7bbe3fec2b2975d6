"""The generations of a pool's pages, in memory that its readers share: how often each page was lent.

A worker counts a page up before anybody writes into it for its next use. So whoever has copied a page, and finds the
generation then that it had when it was announced, has copied the bytes that were announced: nobody has to be asked, no
process has to be alive, and a generation that is too old is never taken for the present one. That is how a reader on
the source's host sees for itself whether a lease holds. Beside the pool, not in it: what moves bytes need not know.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref

import numpy as np
import numpy.typing as npt

from baton.core.errors import ConfigError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_WORD = np.dtype("<u4")


class Generations:
    """`words`: uint32, one per page of the pool. Those that were created here are written by the page allocator alone;
    those that were attached can only be read.

    The words are in order with the bytes of the pages where the processor keeps stores in order, or where writer and
    reader each take a lock between the two, as handing work to another thread does.
    """

    def __init__(self, fd: int, pages: int, access: int) -> None:
        self._map: mmap.mmap | None = mmap.mmap(fd, pages * _WORD.itemsize, mmap.MAP_SHARED, access)
        self.words: npt.NDArray[np.uint32] = np.frombuffer(self._map, _WORD)
        self.fd = fd
        self._release = weakref.finalize(self, os.close, fd)

    @classmethod
    def create(cls, pages: int) -> Generations:
        """All zero, of a size that is sealed. Owns `fd` until `close`."""
        fd = os.memfd_create("baton-kv-generations", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, pages * _WORD.itemsize)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return cls(fd, pages, mmap.PROT_READ | mmap.PROT_WRITE)

    @classmethod
    def attach(cls, fd: int, pages: int) -> Generations:
        """Those of another process, to be read. Takes ownership of `fd`, also when it raises ConfigError: it is not of
        so many pages, or could shrink under the mapping, which would kill this process."""
        try:
            if os.fstat(fd).st_size != pages * _WORD.itemsize or fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ConfigError(f"the generations of {pages} pages are of another size, or not sealed")
            return cls(fd, pages, mmap.PROT_READ)
        except (OSError, ConfigError) as error:
            os.close(fd)
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"cannot map the generations of a pool's pages: {error}") from error

    def are(self, page_ids: npt.NDArray[np.uint32], generations: npt.NDArray[np.uint32]) -> bool:
        """Whether the pages are in these uses of theirs still. `page_ids` must be of the pool."""
        return self.words[page_ids].tobytes() == generations.tobytes()

    def close(self) -> None:
        """Idempotent. `words` must not be used by others any more."""
        self.words, self._map = np.zeros(0, _WORD), None
        self._release()
        self.fd = -1
