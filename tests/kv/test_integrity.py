"""Whatever goes wrong with bytes or messages under way: it is caught, counted, and the next attempt is good.

The faults are ordered from agents that run with `fault_injection`, over the socket that the chaos harness uses.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agent_harness import (
    LAYOUT,
    FakeWorker,
    agent,
    attempts,
    expect_failed,
    expect_fetched,
    has_ucx,
    page_range,
    pair,
    worker,
)

from baton.kv.faults import Fault, orders_path
from baton.kv.tcp import TcpTransport
from baton.kv_agent import canary, metrics

PAGES, OWN = page_range(10, 4), page_range(30, 4)


@pytest.fixture(params=["ucx", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    if request.param == "ucx" and (reason := has_ucx()):
        pytest.skip(f"UCX cannot be used here: {reason}")
    return request.param


def count(metric: object, **labels: str) -> float:
    return metric.labels(**labels)._value.get()  # type: ignore[attr-defined]


async def order(agent_socket: Path, fault: Fault, times: int = 1, seconds: float = 0.0) -> None:
    """Send orders, and return when the agent has them: it carries CUT out at once, the others when it comes to them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        for _ in range(times):
            message = json.dumps({"fault": fault.value, "seconds": seconds}).encode()
            sock.sendto(message, str(orders_path(agent_socket)))
            await asyncio.sleep(0.02)  # the agent is in this process: its loop is this one


@asynccontextmanager
async def faulty_pair(folder: Path, **settings: object) -> AsyncIterator[tuple[FakeWorker, FakeWorker]]:
    """A pair that has made one good handoff: connected, its canary read."""
    async with pair(folder, fault_injection=True, **settings) as (source, reader):
        await hand_over(source, reader, salt=1)
        yield source, reader


async def hand_over(source: FakeWorker, reader: FakeWorker, salt: int) -> None:
    """A good handoff: verified, and the right bytes."""
    attempt = next(attempts)
    reader.fetch(attempt, source, source.hand_over(attempt, PAGES, salt), OWN)
    expect_fetched(await reader.answer(attempt), len(PAGES))
    assert reader.holds(OWN, salt=salt)
    assert (await source.answer(attempt)).outcome == "released"


@pytest.mark.parametrize(
    ("fault", "at_reader", "kind"),
    [
        (Fault.FLIP, True, "checksum"),
        (Fault.TRUNCATE, True, "checksum"),
        (Fault.BREAK, True, "transport"),
        (Fault.RECORD, False, "record"),
    ],
)
async def test_it_is_caught_counted_and_the_next_attempt_is_good(tmp_path, transport, fault, at_reader, kind):
    async with faulty_pair(tmp_path, transport=transport) as (source, reader):
        before = count(metrics.fetches, outcome=kind)
        injected = count(metrics.faults_injected, fault=fault.value)
        await order(tmp_path / ("r.sock" if at_reader else "s.sock"), fault)
        attempt = next(attempts)
        reader.fetch(attempt, source, source.hand_over(attempt, PAGES, salt=2), OWN)
        expect_failed(await reader.answer(attempt), kind)
        assert (await source.answer(attempt)).outcome == "aborted"
        assert count(metrics.fetches, outcome=kind) == before + 1
        assert count(metrics.faults_injected, fault=fault.value) == injected + 1
        await hand_over(source, reader, salt=3)


@pytest.mark.parametrize("fault", [Fault.DUPLICATE, Fault.REPLAY])
async def test_doubled_and_repeated_messages_are_dropped_and_counted(tmp_path, fault):
    """Twelve of them, in both directions, in the middle of handoffs: none does harm."""
    async with faulty_pair(tmp_path) as (source, reader):
        await hand_over(source, reader, salt=2)
        before = sum(count(metrics.stale, side=side) for side in ("source", "reader"))
        await order(tmp_path / "s.sock", fault, times=12)
        for salt in range(3, 7):
            await hand_over(source, reader, salt)
        assert sum(count(metrics.stale, side=side) for side in ("source", "reader")) > before


async def test_a_pair_that_is_cut_off_stalls_and_comes_back(tmp_path):
    async with faulty_pair(tmp_path, stall_timeout_s=0.3, connect_timeout_s=2.0) as (source, reader):
        before = count(metrics.fetches, outcome="stall")
        await order(tmp_path / "s.sock", Fault.CUT, seconds=1.0)
        attempt = next(attempts)
        reader.fetch(attempt, source, source.hand_over(attempt, PAGES, salt=2), OWN)
        expect_failed(await reader.answer(attempt), "stall")
        assert count(metrics.fetches, outcome="stall") == before + 1
        source.abort(attempt)  # the source may never have heard of its reader; the router cancels at both ends
        assert (await source.answer(attempt)).outcome == "aborted"
        await hand_over(source, reader, salt=3)


async def test_orders_that_are_not_understood_change_nothing(tmp_path):
    async with faulty_pair(tmp_path) as (source, reader):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            for text in (b"{", b"{}", b'{"fault": "explode"}', b'{"fault": "flip", "seconds": "x"}'):
                sock.sendto(text, str(orders_path(tmp_path / "r.sock")))
        await hand_over(source, reader, salt=2)


async def test_nobody_takes_orders_unless_told_to(tmp_path):
    async with pair(tmp_path):
        assert not orders_path(tmp_path / "s.sock").exists()


async def test_an_agent_whose_own_canary_comes_back_wrong_is_not_ready(tmp_path, monkeypatch):
    """It refuses its worker, which tries again; when the transport brings what is there, the worker is taken."""
    honest = TcpTransport.read

    async def spoiling(self, key, layer_start, layer_end, local_pages, remote_pages):
        moved = await honest(self, key, layer_start, layer_end, local_pages, remote_pages)
        started.pool.page(layer_end - 1, int(local_pages[-1]))[7] ^= 1
        return moved

    monkeypatch.setattr(TcpTransport, "read", spoiling)
    before = count(metrics.own_canaries, outcome="failed")
    async with agent(tmp_path / "a.sock"):
        started = FakeWorker(tmp_path / "a.sock", "worker")
        started.start()
        async with asyncio.timeout(20):
            while count(metrics.own_canaries, outcome="failed") < before + 2:
                await asyncio.sleep(0.01)
        assert started.welcome is None
        monkeypatch.setattr(TcpTransport, "read", honest)
        await started.connected()
        await started.stop()


async def test_the_own_canary_has_a_deadline(tmp_path, monkeypatch):
    """A transport that hangs keeps the agent from being ready, and from nothing else."""

    async def hanging(transport, pool, key):
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(canary, "_read_back", hanging)
        before = count(metrics.own_canaries, outcome="failed")
        async with agent(tmp_path / "a.sock", connect_timeout_s=0.1):
            started = FakeWorker(tmp_path / "a.sock", "worker")
            started.start()
            async with asyncio.timeout(20):
                while count(metrics.own_canaries, outcome="failed") == before:
                    await asyncio.sleep(0.01)
            assert started.welcome is None
            await started.stop()
    async with agent(tmp_path / "b.sock"), worker(tmp_path / "b.sock", "worker") as other:
        assert other.welcome is not None and other.layout == LAYOUT
