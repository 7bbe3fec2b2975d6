"""The transport between agents of one host: the reader maps the source's pool, and copies from it. One copy.

A source hands the file descriptor of its pool, opened for reading only, to whoever proves by the address's token that
it means this very pool, and runs as the same user. The connection stays: its end tells the reader that the pool is not
served any more, by `unregister` or by death, whereupon the reader unmaps it. Nothing else is ever sent, and the source
does no work for a read.

Why this is as safe as reading through a network card. Pages keep their bytes only as long as their lease. A reader
whose lease has ended, who was fenced, stopped and continued, or whose source is dead, may still copy from the mapping,
and copies whatever is there by then: bytes of another request, or half of them. It cannot do harm with them:

- To others: its mapping is read-only, so that nothing that it does changes a byte of the source.
- To its own pool: only its copying thread writes, and `remove_peer` and a cancelled `read` return when that thread
  has let go of the read. It works in a process that is running or not running as a whole: there is no card and no
  kernel that goes on writing for it.
- To a request: a handoff is delivered only after its last read, when the source has then confirmed that the lease was
  alive all the time. A source that has ended the lease never does, nor does a dead one; the reader of a broken
  connection never asks. And what was announced has a checksum.

What this costs: pages of a pool whose worker has died stay in memory until its readers notice, at once when they run.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import mmap
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

from baton.core.layout import KvLayout
from baton.kv.listener import Listener
from baton.kv.memory import PoolMemory
from baton.kv.operation import Read
from baton.kv.sockets import ready, receive_exactly
from baton.kv.spans import PageRange, Runs
from baton.kv.staging import Memory
from baton.kv.transport import PageIds, PeerKey, TransportError

CONNECT_TIMEOUT_S = 5.0
CHECK_BYTES = 1 << 20  # copied between two looks at whether the read is still wanted
_TOKEN_BYTES = 16
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class MappedTransport:
    """Implements `baton.kv.transport.Transport` for peers on this host, in the same network namespace."""

    name = "mapped"

    def __init__(self) -> None:
        self._pool: PoolMemory | None = None
        self._address = b""
        self._listener: Listener | None = None
        self._peers: dict[PeerKey, _Peer] = {}
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="kv-copy")  # its thread sleeps while nothing is copied

    async def register(self, pool: PoolMemory) -> None:
        name = f"\0baton-pool-{os.urandom(8).hex()}"  # abstract: gone with its process, whatever ends that
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        listening.bind(name)
        listening.listen(128)
        token = os.urandom(_TOKEN_BYTES)
        self._pool = pool
        self._address = msgspec.msgpack.encode((boot_id(), name, token))
        self._listener = Listener(listening, lambda sock: _serve(sock, token, pool))

    async def unregister(self) -> None:
        for key in list(self._peers):
            await self.remove_peer(key)
        if self._listener is not None:
            await self._listener.close()
        self._pool = self._listener = None
        self._address = b""

    def address(self) -> bytes:
        return self._address

    async def add_peer(self, key: PeerKey, address: bytes, layout: KvLayout, pages: int) -> None:
        if self._pool is None:
            raise TransportError("no pool is registered")
        await self.remove_peer(key)
        self._peers[key] = await _Peer.connect(address, self._pool, layout, pages)

    async def remove_peer(self, key: PeerKey) -> None:
        peer = self._peers.pop(key, None)
        if peer is not None:
            await peer.close("the peer was removed")

    async def read(
        self, key: PeerKey, layer_start: int, layer_end: int, local_pages: PageIds, remote_pages: PageIds
    ) -> int:
        peer = self._peer(key)
        wanted = PageRange(range(layer_start, layer_end), local_pages, remote_pages)
        return await peer.read(Read(key, wanted, peer.pool), self._copier) if len(local_pages) else 0

    async def read_runs(self, key: PeerKey, runs: Runs, into: Memory) -> int:
        peer = self._peer(key)
        return await peer.read(Read(key, runs, into), self._copier) if len(runs) else 0

    def _peer(self, key: PeerKey) -> _Peer:
        peer = self._peers.get(key)
        if peer is None:
            raise TransportError(f"no connection to agent {key[0]}, epoch {key[1]}")
        return peer

    def serving(self, active: int) -> None:
        """Readers help themselves."""

    async def close(self) -> None:
        await self.unregister()
        self._copier.shutdown()


async def _serve(sock: socket.socket, token: bytes, pool: PoolMemory) -> None:
    """Hand the pool to one reader, and keep the connection until either side is done with it."""
    with sock, contextlib.suppress(OSError, TimeoutError):
        sock.setblocking(False)
        received = await asyncio.wait_for(receive_exactly(sock, _TOKEN_BYTES), CONNECT_TIMEOUT_S)
        if received != token or _user(sock) != os.geteuid():
            return
        read_only = os.open(f"/proc/self/fd/{pool.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            socket.send_fds(sock, [b"p"], [read_only])
        finally:
            os.close(read_only)
        await receive_exactly(sock, 1)  # never comes: this ends with the connection


class _Peer:
    """A source's pool, mapped. `_copy` runs on the copying thread, all else on the event loop."""

    def __init__(self, sock: socket.socket, mapping: mmap.mmap, pool: PoolMemory, source_pages: int) -> None:
        self._sock = sock
        self._mapping: mmap.mmap | None = mapping
        self._address = np.frombuffer(mapping, np.uint8).ctypes.data
        self.pool = pool
        self._source_pages = source_pages
        self._source_bytes = len(mapping)
        self._reads: set[Read] = set()
        self._ended = ""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._on_readable)

    @classmethod
    async def connect(cls, address: bytes, pool: PoolMemory, layout: KvLayout, pages: int) -> _Peer:
        try:
            host, name, token = msgspec.msgpack.decode(address, type=tuple[str, str, bytes])
        except msgspec.MsgspecError as error:
            raise TransportError(f"the peer's address is not one of this transport: {error}") from error
        if host != boot_id():
            raise TransportError("the peer is on another host")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(sock, name)
                if _user(sock) != os.geteuid():
                    raise TransportError("the peer runs as another user")
                sock.send(token)
                mapping = _map(await _receive_fd(sock), layout.pool_bytes(pages))
            return cls(sock, mapping, pool, pages)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError | TimeoutError):
                raise TransportError(f"cannot get the peer's pool: {error or 'timed out'}") from error
            raise

    async def read(self, read: Read, copier: ThreadPoolExecutor) -> int:
        self._notice_the_end()
        if self._ended:
            raise TransportError(self._ended)
        self._reads.add(read)
        copier.submit(self._copy, read)
        try:
            return await read.result()
        finally:
            self._reads.discard(read)
            self._unmap_when_unused()

    async def close(self, reason: str) -> None:
        """On return nothing is copied any more."""
        self._end(reason)
        if self._reads:
            await asyncio.wait([read.done for read in self._reads])

    def _copy(self, read: Read) -> None:
        """The address stays mapped while the read is in `_reads`."""
        try:
            local, remote = read.into.address, self._address
            since_look = 0
            for own, size, theirs in read.runs(self.pool, self._source_pages, self._source_bytes, CHECK_BYTES):
                if since_look >= CHECK_BYTES:
                    since_look = 0
                    if read.unwanted or self._ended:
                        break
                ctypes.memmove(local + own, remote + theirs, size)
                read.bytes_moved += size
                since_look += size
            read.finish(TransportError(self._ended) if self._ended else None)
        except Exception as error:
            read.finish(TransportError(f"{type(error).__name__}: {error}"))

    def _notice_the_end(self) -> None:
        """See now, not at the loop's next turn, whether the source has gone."""
        if not self._ended:
            self._on_readable()

    def _on_readable(self) -> None:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            try:
                gone = not self._sock.recv(1)
            except ConnectionResetError:
                gone = True
            self._end("the source serves its pool no more" if gone else "the source said what it should not")

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = reason
            self._loop.remove_reader(self._sock)
            self._sock.close()
        self._unmap_when_unused()

    def _unmap_when_unused(self) -> None:
        if self._ended and not self._reads:
            self._mapping = None  # no view is left: unmapped with the last reference


def _map(fd: int, size: int) -> mmap.mmap:
    """Map a pool for reading. It is not used when it could shrink under the mapping: that would kill this process."""
    try:
        if os.fstat(fd).st_size != size or not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise TransportError("the peer's pool has another size than it said, or is not sealed")
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(fd)


async def _receive_fd(sock: socket.socket) -> int:
    """The descriptor comes with the only byte that is ever sent."""
    await ready(sock, write=False)
    data, fds, _, _ = socket.recv_fds(sock, 1, 1)
    if not data or len(fds) != 1:
        raise TransportError("the peer serves another pool now")
    return fds[0]


def _user(sock: socket.socket) -> int:
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def boot_id() -> str:
    """Names the running kernel; empty where it cannot be read, and then the socket's name decides."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
