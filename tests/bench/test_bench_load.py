"""Load against a server with known latencies: what comes out must be what went in."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from fake_openai import FakeServer, serving

from baton.cli.bench import workload
from baton.cli.bench.client import OpenAIClient
from baton.cli.bench.load import Load, poisson_times
from baton.cli.bench.outcome import Log
from baton.cli.bench.summary import Slo, summarize
from baton.cli.bench.workload import Conversation, Lengths, Writer


def prompts(count: int, output_tokens: int = 4, *, text: bool = False) -> list[Conversation]:
    return workload.random_prompts(count, Lengths(16, output_tokens), Writer(0, 512, text=text))


@contextlib.asynccontextmanager
async def client_of(server: FakeServer, *, chat: bool = False, timeout_s: float = 30.0):
    client = OpenAIClient(server.url, chat=chat, timeout_s=timeout_s)
    try:
        await client.find_model()
        yield client
    finally:
        await client.close()


async def closed_run(server: FakeServer, found: list[Conversation], concurrency: int, **options) -> Log:
    async with serving(server), client_of(server, **options) as client:
        load = Load(client, workload.requests_of(found))
        await load.closed(found, concurrency)
        return load.log


async def test_known_latencies_come_back() -> None:
    server = FakeServer(first_s=lambda n: 0.05 + 0.05 * (n % 2), gap_s=0.02)
    log = await closed_run(server, prompts(8, output_tokens=5), 4)
    firsts = sorted(outcome.ttft_s for outcome in log.answered)
    summary = summarize(log, Slo(ttft_ms=1e3 * (firsts[3] + firsts[4]) / 2, itl_ms=1e6))
    latency = summary["latency_ms"]
    assert firsts[0] >= 0.049
    assert firsts[4] >= 0.099
    assert latency["ttft"]["p50"] == pytest.approx(1e3 * (firsts[3] + firsts[4]) / 2)
    assert latency["itl"]["p50"] > 19.0
    assert latency["tpot"]["p50"] > 19.0
    assert latency["e2e"]["max"] >= 100.0 + 4 * 19.0
    assert summary["tokens"] == {"prompt": 8 * 16, "output": 8 * 5}
    assert summary["requests"]["errors"] == {}
    assert summary["goodput"]["share_of_sent"] == pytest.approx(0.5)
    assert summary["cached_tokens_share"] is None


async def test_token_ids_are_sent_as_they_are() -> None:
    server = FakeServer(cached=4)
    found = prompts(3)
    log = await closed_run(server, found, 1)
    assert [body["prompt"] for body in server.bodies] == [c.turns[0].content for c in found]
    assert all(body["ignore_eos"] and body["max_tokens"] == 4 for body in server.bodies)
    assert summarize(log, Slo())["cached_tokens_share"] == pytest.approx(0.25)


async def test_concurrency_is_kept_and_never_exceeded() -> None:
    server = FakeServer(together=3)
    await closed_run(server, prompts(12), 3)
    assert server.most_running == 3


async def test_open_loop_sends_when_due_and_does_not_wait() -> None:
    server = FakeServer(together=4)
    due = [0.0, 0.05, 0.05, 0.1]
    async with serving(server), client_of(server) as client:
        load = Load(client, 4)
        await load.open(prompts(4, 1), due)
    sent = sorted(outcome.sent_s for outcome in load.log.outcomes)
    assert server.most_running == 4
    assert all(at >= wanted for at, wanted in zip(sent, due, strict=True))


async def test_open_loop_with_a_limit() -> None:
    server = FakeServer(first_s=lambda n: 0.02)
    async with serving(server), client_of(server) as client:
        load = Load(client, 6)
        await load.open(prompts(6, 1), [0.0] * 6, most=2)
    assert server.most_running == 2
    assert len(load.log.answered) == 6


def test_poisson_times() -> None:
    times = poisson_times(4000, 20.0, seed=3)
    assert times[0] == 0.0 and times == sorted(times)
    assert times == poisson_times(4000, 20.0, seed=3) != poisson_times(4000, 20.0, seed=4)
    assert 4000 / times[-1] == pytest.approx(20.0, rel=0.06)
    assert poisson_times(1, 5.0, 0) == [0.0]


async def test_errors_are_counted_by_kind_and_kept_out_of_latencies() -> None:
    faults = ["", "429", "error", "cut", "no end", "503", "429", ""]
    server = FakeServer(fault=lambda n: faults[n])
    log = await closed_run(server, prompts(8), 1)
    summary = summarize(log, Slo(ttft_ms=1e6))
    assert summary["requests"]["errors"] == {
        "HTTP 429": 2, "HTTP 503": 1, "error in the stream": 1, "broken stream": 2,
    }  # fmt: skip
    assert summary["requests"]["answered"] == 2
    assert summary["tokens"]["output"] == 8
    assert summary["goodput"]["share_of_sent"] == pytest.approx(2 / 8)


async def test_nobody_there_and_timeouts() -> None:
    server = FakeServer(first_s=lambda n: 5.0)
    log = await closed_run(server, prompts(1), 1, timeout_s=0.2)
    assert log.outcomes[0].error == "timeout"
    client = OpenAIClient("http://127.0.0.1:9", model="m")
    load = Load(client, 1)
    await load.closed(prompts(1), 1)
    await client.close()
    assert load.log.outcomes[0].error == "no connection"


async def test_turns_carry_the_answers_before_them() -> None:
    found = workload.multi_turn(4, 2, Lengths(3, 2), Writer(0, 512, text=True), prefix_tokens=5)
    chat = FakeServer()
    log = await closed_run(chat, found, 1, chat=True)
    assert len(log.answered) == 4 and [o.turn for o in log.outcomes] == [0, 1, 0, 1]
    second = chat.bodies[1]["messages"]
    assert [message["role"] for message in second] == ["system", "user", "assistant", "user"]
    assert second[2]["content"] == " w0 w1"
    plain = FakeServer()
    await closed_run(plain, found, 1)
    assert plain.bodies[1]["prompt"].startswith(f"{plain.bodies[0]['prompt']}  w0 w1 ")


async def test_cancelling_keeps_what_was_measured() -> None:
    server = FakeServer(first_s=lambda n: 0.0 if n < 2 else 30.0)
    async with serving(server), client_of(server) as client:
        load = Load(client, 4)
        task = asyncio.ensure_future(load.closed(prompts(4), 2))
        while server.running < 2 or len(load.log.outcomes) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    summary = summarize(load.log, Slo())
    assert summary["requests"]["answered"] == 2
    assert summary["requests"]["errors"] == {"unfinished": 2}
    assert summary["duration_s"] < 10


async def test_the_client_itself_costs_little() -> None:
    """Server and client share this thread: together they must manage thousands of pieces a second."""
    server = FakeServer()
    log = await closed_run(server, prompts(20, output_tokens=100), 4)
    client = summarize(log, Slo())["client"]
    assert log.pieces == 2000
    assert client["cpu_us_per_piece"] < 1500  # of both; about 100 on a quiet machine
