"""Agents in processes of their own, killed and stopped at the worst moments."""

from __future__ import annotations

import asyncio
import signal
import socket as sockets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agent_harness import (
    LAYOUT,
    AgentProcess,
    FakeWorker,
    agent,
    attempts,
    expect_failed,
    expect_fetched,
    has_ucx,
    page_range,
    worker,
)

PAGES = page_range(10, 6)
TOKENS = len(PAGES) * LAYOUT.page_size


@pytest.fixture(params=["auto", "ucx", "ucx over tcp", "tcp"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    kind = request.param.split()[0]
    if kind == "ucx" and (reason := has_ucx()):
        pytest.skip(f"UCX cannot be used here: {reason}")
    if request.param == "ucx over tcp":
        monkeypatch.setenv("UCX_TLS", "tcp")
    return kind


def free_address() -> str:
    with sockets.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


@asynccontextmanager
async def reading(ends: tuple[Path, Path], **settings: Any) -> AsyncIterator[tuple[FakeWorker, FakeWorker]]:
    """A worker at each end; the reader's agent is in this process, the source's is the caller's."""
    async with agent(ends[1], **settings), worker(ends[0], "source") as source, worker(ends[1], "reader") as reader:
        yield source, reader


async def test_the_source_agent_is_killed_and_restarted_under_its_address(tmp_path, transport):
    address = free_address()
    ends = tmp_path / "s.sock", tmp_path / "r.sock"
    with AgentProcess(ends[0], address, transport=transport) as process:
        async with reading(ends, transport=transport) as (source, reader):
            first = next(attempts)
            reader.fetch(first, source, source.hand_over(first, PAGES), PAGES)
            expect_fetched(await reader.answer(first), len(PAGES))
            broken, old = next(attempts), source.welcome
            source.offer(broken, TOKENS)
            reader.fetch(broken, source, TOKENS, PAGES)
            source.produce(broken, range(2), PAGES)
            process.kill()
            killed_at = time.monotonic()
            expect_failed(await reader.answer(broken), "peer_lost")
            assert time.monotonic() - killed_at < 2
            await source.connected(False)
            with AgentProcess(ends[0], address, transport=transport):
                await source.connected()
                stale, fresh = next(attempts), next(attempts)
                reader.fetch(stale, source, TOKENS, PAGES, source_agent_epoch=old.agent_epoch)
                expect_failed(await reader.answer(stale), "epoch")
                reader.fetch(fresh, source, source.hand_over(fresh, PAGES, salt=3), PAGES)
                expect_fetched(await reader.answer(fresh), len(PAGES))
                assert reader.holds(PAGES, salt=3)


async def test_the_reader_agent_is_killed(tmp_path, transport):
    ends = tmp_path / "s.sock", tmp_path / "r.sock"
    async with agent(ends[0], transport=transport), worker(ends[0], "source") as source:
        with AgentProcess(ends[1], transport=transport) as process:
            async with worker(ends[1], "reader") as reader:
                attempt = next(attempts)
                source.offer(attempt, TOKENS)
                reader.fetch(attempt, source, TOKENS, PAGES)
                source.produce(attempt, range(2), PAGES)
                async with asyncio.timeout(20):
                    while not (reader.words[:2, PAGES] == source.words[:2, PAGES]).all():
                        await asyncio.sleep(0.005)
                process.kill()
                assert (await source.answer(attempt)).outcome == "aborted"
                await reader.connected(False)
                with AgentProcess(ends[1], transport=transport):
                    await reader.connected()
                    fresh = next(attempts)
                    reader.fetch(fresh, source, source.hand_over(fresh, PAGES), PAGES)
                    expect_fetched(await reader.answer(fresh), len(PAGES))


async def test_a_stopped_source_is_found_by_its_deadline(tmp_path, transport):
    """And when it goes on, nothing it still sends arrives in pages that are in other hands."""
    ends = tmp_path / "s.sock", tmp_path / "r.sock"
    with AgentProcess(ends[0], transport=transport) as process:
        settings = {"transport": transport, "stall_timeout_s": 0.5, "connect_timeout_s": 2.0}
        async with reading(ends, **settings) as (source, reader):
            first = next(attempts)
            reader.fetch(first, source, source.hand_over(first, PAGES), PAGES)
            expect_fetched(await reader.answer(first), len(PAGES))
            attempt, own = next(attempts), page_range(30, len(PAGES))
            source.offer(attempt, TOKENS)
            reader.fetch(attempt, source, TOKENS, own)
            source.produce(attempt, range(2), PAGES)
            process.signal(signal.SIGSTOP)
            source.produce(attempt, range(2, 4), PAGES)
            source.commit(attempt, TOKENS)
            expect_failed(await reader.answer(attempt), "stall")
            reader.words[:] = -7
            process.signal(signal.SIGCONT)
            await asyncio.sleep(0.3)
            assert (reader.words[:, 2:] == -7).all()


async def test_a_source_that_never_answers_does_not_hold_a_fetch(tmp_path):
    """The connection to a stopped agent does not come up: its own deadline ends it."""
    ends = tmp_path / "s.sock", tmp_path / "r.sock"
    with AgentProcess(ends[0], transport="tcp") as process:
        async with reading(ends, connect_timeout_s=0.4) as (source, reader):
            process.signal(signal.SIGSTOP)
            attempt = next(attempts)
            reader.fetch(attempt, source, TOKENS, PAGES)
            message = await reader.answer(attempt, timeout_s=3)
            assert message.reason.startswith(("stall:", "peer_lost:"))


async def test_an_idle_agent_uses_no_cpu(tmp_path, transport):
    """Connected, after a handoff: less than 1 % of a core."""
    ends = tmp_path / "s.sock", tmp_path / "r.sock"
    with AgentProcess(ends[0], transport=transport) as process:
        async with reading(ends, transport=transport) as (source, reader):
            attempt = next(attempts)
            reader.fetch(attempt, source, source.hand_over(attempt, PAGES), PAGES)
            expect_fetched(await reader.answer(attempt), len(PAGES))
            assert (await source.answer(attempt)).outcome == "released"
            await asyncio.sleep(0.2)
            before = process.cpu_s()
            await asyncio.sleep(1.0)
            assert process.cpu_s() - before < 0.01
