"""Conversations whose turns run on other workers than those before: nothing that anybody holds is computed again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from in_process import Cluster, cluster, until
from test_equality import Reference, prompts

from baton.router import policy
from baton.router.policy_facts import WorkerFacts
from baton.router.policy_pull import Holders, Pull
from baton.testing.checkpoints import make_checkpoint
from baton.worker import metrics
from baton.worker.loans import Loans

PAGE = 16
NEW_TOKENS = 20
PATIENT = {"pull_timeout_s": 60.0}  # nothing here depends on how fast the machine is


class Placement:
    """Prompts go to worker `prefill`, and on to `decode`, whatever it costs there; pulls cost nothing."""

    prefill = "prefill-0"
    decode = "decode-0"


@pytest.fixture
def placement(monkeypatch: pytest.MonkeyPatch) -> Placement:
    forced, pairs = Placement(), policy._pairs

    def only_the_forced(able, costs):
        wanted = forced.prefill, forced.decode
        return [pair for pair in pairs(able, costs) if (pair[0].worker.worker_id, pair[1].worker.worker_id) == wanted]

    monkeypatch.setattr(policy, "_pairs", only_the_forced)
    monkeypatch.setattr(WorkerFacts, "pull_s", lambda self, tokens, held: 0.0)
    return forced


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_checkpoint(tmp_path_factory.mktemp("ckpt"), "llama", max_position=4096)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


def count(metric) -> Callable[[], float]:
    """How much a counter has grown since now, over all workers of this process and all labels."""

    def total() -> float:
        return sum(sample.value for family in metric.collect() for sample in family.samples if "_total" in sample.name)

    start = total()
    return lambda: total() - start


def outcomes(metric) -> dict[str, float]:
    samples = [sample for family in metric.collect() for sample in family.samples if sample.name.endswith("_total")]
    return {sample.labels["outcome"]: sample.value for sample in samples}


class Conversation:
    """Turns of one conversation, each longer than the last; knows what its workers hold."""

    def __init__(self, running: Cluster, reference: Reference, length: int, seed: int) -> None:
        self._running = running
        self._reference = reference
        self._texts: Iterator[list[int]] = iter(prompts(500, [length, 37, 5, 64, 18, 41], seed))
        self.tokens: list[int] = []
        self.held: dict[str, int] = {}  # blocks by worker

    async def turn(self, prefill: str) -> tuple[int, int]:
        """One turn; returns the tokens of its prompt, and how many of them nobody held."""
        best = max(self.held.values(), default=0)
        prompt = self.tokens + next(self._texts)
        got, end = await self._running.tokens(prompt, NEW_TOKENS)
        assert got == self._reference.tokens(prompt, NEW_TOKENS)
        assert end.usage.cached_tokens == best * PAGE
        self.tokens = prompt + got
        self.held[prefill] = max(self.held.get(prefill, 0), len(prompt) // PAGE)
        self.held["decode-0"] = (len(self.tokens) - 1) // PAGE
        return len(prompt), len(prompt) - best * PAGE


async def index_knows(running: Cluster, *conversations: Conversation) -> None:
    blocks = sum(sum(conversation.held.values()) for conversation in conversations)

    async def condition() -> bool:
        return (await running.client.fleet()).index_blocks == blocks

    await until(condition, f"{blocks} blocks in the index")


@pytest.mark.parametrize("transport", ["tcp", "ucx"])
async def test_no_turn_computes_what_anybody_holds(checkpoint, reference, placement, tmp_path, transport):
    """Every turn goes to a prefill worker that does not have the conversation."""
    async with cluster(
        tmp_path, checkpoint, prefill=3, transport=transport, worker=PATIENT, router={"local_extend_tokens": 0}
    ) as running:
        talk = Conversation(running, reference, 300, seed=3)
        for number in range(6):
            placement.prefill = f"prefill-{number % 3}"
            computed, pulled = count(metrics.extend_tokens), count(metrics.pulled_tokens)
            here = talk.held.get(placement.prefill, 0)
            known = max(talk.held.values(), default=0)
            _, new = await talk.turn(placement.prefill)
            assert (computed(), pulled()) == (new, (known - here) * PAGE)
            await index_knows(running, talk)
        await running.quiet()


async def test_many_conversations_change_workers_at_once(checkpoint, reference, placement, tmp_path):
    async with cluster(tmp_path, checkpoint, prefill=2, worker=PATIENT, router={"local_extend_tokens": 0}) as running:
        talks = [Conversation(running, reference, 40 + 30 * n, seed=10 + n) for n in range(6)]
        for number in range(3):
            placement.prefill = f"prefill-{number % 2}"
            computed = count(metrics.extend_tokens)
            turns = await asyncio.gather(*(talk.turn(placement.prefill) for talk in talks))
            assert computed() == sum(new for _, new in turns)
            await index_knows(running, *talks)
        await running.quiet()


async def test_decode_takes_its_part_from_a_third_worker(checkpoint, reference, placement, tmp_path):
    """The conversation is where its last turn was decoded; neither of the next turn's workers has any of it."""
    agents = {"connect_timeout_s": 60.0, "stall_timeout_s": 60.0}
    async with cluster(
        tmp_path, checkpoint, prefill=2, decode=2, worker=PATIENT, agent=agents, router={"local_extend_tokens": 0}
    ) as running:
        talk = Conversation(running, reference, 300, seed=8)
        await talk.turn("prefill-0")
        await index_knows(running, talk)
        placement.prefill, placement.decode = "prefill-1", "decode-1"
        held, prompt = talk.held["decode-0"], talk.tokens + [9] * 40
        computed, pulled = count(metrics.extend_tokens), count(metrics.pulled_tokens)
        got, end = await running.tokens(prompt, NEW_TOKENS)
        assert got == reference.tokens(prompt, NEW_TOKENS)
        assert computed() == len(prompt) - held * PAGE
        assert pulled() == 2 * held * PAGE  # once by prefill, once by decode
        page_bytes = 2 * PAGE * 2 * 16 * 4
        assert end.usage.handoff_bytes == 2 * page_bytes * (-(-len(prompt) // PAGE) - held)  # only what is new
        await running.quiet()


async def failing_pull(running: Cluster, reference: Reference, placement: Placement, outcome: str) -> None:
    """A turn whose pull fails: the same tokens, all computed, and the failure counted."""
    talk = Conversation(running, reference, 200, seed=5)
    await talk.turn("prefill-0")
    await index_knows(running, talk)
    placement.prefill = "prefill-1"
    prompt = talk.tokens + [7] * 30
    computed, before = count(metrics.extend_tokens), outcomes(metrics.pulls).get(outcome, 0)
    got, end = await running.tokens(prompt, NEW_TOKENS)
    assert got == reference.tokens(prompt, NEW_TOKENS)
    assert end.usage.attempts == 1 and end.usage.cached_tokens == 0
    assert computed() == len(prompt)
    assert outcomes(metrics.pulls)[outcome] == before + 1


async def test_a_source_that_holds_nothing_any_more(checkpoint, reference, placement, tmp_path, monkeypatch):
    monkeypatch.setattr(Holders, "best", lambda self, worker, cached: Pull("prefill-2", 160, 0.0))
    async with cluster(tmp_path, checkpoint, prefill=3, worker=PATIENT, router={"local_extend_tokens": 0}) as running:
        await failing_pull(running, reference, placement, "not_held")
        await running.quiet()


async def test_a_source_that_does_not_answer(checkpoint, reference, placement, tmp_path, monkeypatch):
    monkeypatch.setattr(Loans, "_lend", lambda self, engine, wanted: None)
    impatient = {"pull_timeout_s": 0.2}
    async with cluster(tmp_path, checkpoint, prefill=2, worker=impatient, router={"local_extend_tokens": 0}) as running:
        await failing_pull(running, reference, placement, "timeout")
        await running.quiet()


async def test_a_source_agent_that_dies_while_it_is_read(checkpoint, reference, placement, tmp_path, monkeypatch):
    monkeypatch.setattr(Holders, "best", lambda self, worker, cached: Pull("prefill-0", 160, 0.0))
    async with cluster(tmp_path, checkpoint, prefill=2, worker=PATIENT, router={"local_extend_tokens": 0}) as running:
        loop = asyncio.get_running_loop()

        def die(self, engine, wanted) -> None:
            loop.call_soon_threadsafe(running.tasks["agent-prefill-0"].cancel)

        monkeypatch.setattr(Loans, "_lend", die)
        await failing_pull(running, reference, placement, "peer_lost")


async def test_a_request_that_is_cancelled_while_it_pulls(checkpoint, reference, placement, tmp_path, monkeypatch):
    """Its pages are free again, on both workers, and the next one pulls."""
    lend, asked = Loans._lend, asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(Loans, "_lend", lambda self, engine, wanted: loop.call_soon_threadsafe(asked.set))
    async with cluster(tmp_path, checkpoint, prefill=2, worker=PATIENT, router={"local_extend_tokens": 0}) as running:
        talk = Conversation(running, reference, 200, seed=5)
        await talk.turn("prefill-0")
        await index_knows(running, talk)
        placement.prefill = "prefill-1"
        request = asyncio.ensure_future(running.tokens(talk.tokens + [7] * 30, NEW_TOKENS))
        await asked.wait()
        request.cancel()
        await running.quiet()
        monkeypatch.setattr(Loans, "_lend", lend)
        computed = count(metrics.extend_tokens)
        _, new = await talk.turn("prefill-1")
        assert computed() == new
        await running.quiet()
