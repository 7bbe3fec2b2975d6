"""One end of a measured pair, in a process of its own: `contestant.py source|reader KIND PAGES PAGE_BYTES COUNT HOST`.

The protocol is that of raw_ucx.c: a source prints its address and serves until stdin ends; a reader takes from stdin
the address, then a line of COUNT page pairs (own, source's), then per line one read of all of them, which it answers
with "seconds cpu_seconds checksum" (of each page's first and last byte).
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import socket
import sys
import time
from dataclasses import dataclass

import numpy as np

from baton.core.layout import KvLayout
from baton.kv.mapped import MappedTransport
from baton.kv.memory import PoolMemory
from baton.kv.nixl import NixlTransport
from baton.kv.tcp import TcpTransport
from baton.kv.transport import Transport
from baton.kv.ucxx import UcxxTransport

KEY = ("source", 1)
SOCKET_BYTES = 1 << 20  # of one call of the plain sockets
CONTENT = 7


@dataclass(frozen=True, slots=True)
class Case:
    kind: str
    pages: int
    page_bytes: int
    count: int
    host: str

    @property
    def layout(self) -> KvLayout:
        """One layer: a transport takes any (layer, page)s, so that one layer stands for all."""
        return KvLayout("bench", "bfloat16", 1, page_size=16, kv_heads=1, head_dim=self.page_bytes // 64)

    def pool(self, content: int) -> PoolMemory:
        pool = PoolMemory.create(self.layout, self.pages)
        np.frombuffer(pool.buffer, np.uint8)[:] = content
        return pool

    def transport(self, role: str) -> Transport:
        if self.kind == "mapped":
            return MappedTransport()
        if self.kind == "tcp":
            return TcpTransport(self.host)
        if self.kind == "ucxx":
            return UcxxTransport(self.host)
        return NixlTransport(f"{role}-{os.getpid()}", self.host)


class Round:
    """Times one read, and says so."""

    def __enter__(self) -> Round:
        self._started, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._took, self._used = time.perf_counter() - self._started, time.process_time() - self._cpu

    def report(self, checksum: int) -> None:
        print(f"{self._took:.9f} {self._used:.9f} {checksum}", flush=True)


async def serve(case: Case) -> None:
    transport = case.transport("source")
    await transport.register(case.pool(CONTENT))
    transport.serving(1)
    print(transport.address().hex(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await transport.close()


async def read(case: Case) -> None:
    transport = case.transport("reader")
    pool = case.pool(0)
    await transport.register(pool)
    await transport.add_peer(KEY, bytes.fromhex(sys.stdin.readline()), case.layout, case.pages)
    local, remote = page_pairs()
    while await asyncio.to_thread(sys.stdin.readline):
        with Round() as timed:
            await transport.read(KEY, 0, 1, local, remote)
        timed.report(checksum(case, pool, local))
    await transport.close()


def checksum(case: Case, pool: PoolMemory, local: np.ndarray) -> int:
    pages = np.frombuffer(pool.buffer, np.uint8).reshape(case.pages, case.page_bytes)
    return int(pages[local, 0].sum(dtype=int) + pages[local, -1].sum(dtype=int))


def page_pairs() -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array(sys.stdin.readline().split(), np.uint32).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def serve_socket(case: Case) -> None:
    """Plain blocking sockets: as many bytes, contiguous, for every byte that comes."""
    data = memoryview(bytes([CONTENT]) * SOCKET_BYTES)
    size = case.count * case.page_bytes
    with socket.create_server((case.host, 0)) as server:
        print(*server.getsockname(), flush=True)
        connection, _ = server.accept()
        with connection:
            while connection.recv(1):
                for at in range(0, size, SOCKET_BYTES):
                    connection.sendall(data[: min(SOCKET_BYTES, size - at)])


def read_socket(case: Case) -> None:
    host, port = sys.stdin.readline().split()
    page_pairs()
    data = memoryview(bytearray(case.count * case.page_bytes))
    with socket.create_connection((host, int(port))) as connection:
        while sys.stdin.readline():
            with Round() as timed:
                connection.send(b"r")
                at = 0
                while at < len(data):
                    at += connection.recv_into(data[at : at + SOCKET_BYTES])
            timed.report(sum(data[:: case.page_bytes]) + sum(data[case.page_bytes - 1 :: case.page_bytes]))


def idle(case: Case) -> None:
    """The source of those that need none."""
    del case
    print("no address", flush=True)
    sys.stdin.read()


def read_memcpy(case: Case) -> None:
    """No other process: page by page from one mapping to another."""
    source, target = case.pool(CONTENT), case.pool(0)
    sys.stdin.readline()
    local, remote = (ids.tolist() for ids in page_pairs())
    size = case.page_bytes
    while sys.stdin.readline():
        with Round() as timed:
            for own, theirs in zip(local, remote, strict=True):
                ctypes.memmove(target.address + own * size, source.address + theirs * size, size)
        timed.report(checksum(case, target, np.array(local)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("role", choices=("source", "reader"))
    parser.add_argument("kind")
    for name in ("pages", "page_bytes", "count"):
        parser.add_argument(name, type=int)
    parser.add_argument("host")
    given = vars(parser.parse_args())
    role = given.pop("role")
    case = Case(**given)
    if case.kind == "memcpy":
        (idle if role == "source" else read_memcpy)(case)
    elif case.kind == "sockets":
        (serve_socket if role == "source" else read_socket)(case)
    else:
        asyncio.run((serve if role == "source" else read)(case))


if __name__ == "__main__":
    main()
