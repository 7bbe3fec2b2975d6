"""Layers that keep a state: snapshots are reused, handed over and never written over, and no token changes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from engine_harness import SMALL, Harness, Pair, prompt
from random_work import MANY, run_random_work
from state_toy import LAYOUTS, StatefulToy
from windowed_toy import reference

from baton.core.attempt import Attempt
from baton.core.errors import ConfigError
from baton.core.layout import KvLayout
from baton.core.sampling import SamplingParams
from baton.engine import ledger as ledger_module
from baton.engine.api import EngineRequest
from baton.engine.bounded import UNLIMITED, most_blocks
from baton.engine.grouping import STATE_PAGE_BYTES, group_layers, in_groups
from baton.engine.ledger import PageLedger
from baton.engine.plan import EngineConfig
from baton.engine.pool import PageAllocator
from baton.engine.request import RequestState
from baton.engine.scheduler import Scheduler
from baton.engine.sizing import pool_pages
from baton.engine.states import SNAPSHOT_BLOCKS, States

pytestmark = pytest.mark.usefixtures("loop")


@pytest.fixture(params=LAYOUTS)
def layout(request) -> KvLayout:
    return LAYOUTS[request.param]


def harness_of(layout: KvLayout, pages: int) -> Harness:
    return Harness(pages, SMALL, StatefulToy(layout))


def test_prompts_in_chunks(layout: KvLayout) -> None:
    harness = harness_of(layout, 400)
    attempts = {harness.submit(f"{n}", prompt(n), 30): prompt(n) for n in (1, 3, 4, 5, 15, 16, 17, 33, 90, 200)}
    harness.run()
    for attempt, tokens in attempts.items():
        assert harness.outputs[attempt] == reference(layout, tokens, 30)
    harness.assert_quiet()


def test_the_longest_request_in_a_pool_that_is_just_enough(layout: KvLayout) -> None:
    longest = 60
    step_tokens = SMALL.step_tokens(overlap=True)
    usable = next(pages for pages in range(1, 1000) if most_blocks(layout, pages, step_tokens) >= longest)
    harness = harness_of(layout, usable + 2)
    tokens = prompt(longest * 4 - 30)
    for name in ("first", "again"):
        attempt = harness.submit(name, tokens, 30)
        harness.run()
        assert harness.outputs[attempt] == reference(layout, tokens, 30)
    assert harness.engine.max_context_tokens >= longest * 4
    harness.assert_quiet()


def test_a_prefix_is_reused_up_to_a_snapshot(layout: KvLayout) -> None:
    """There is one at the end of each chunk, and after the last block of a prompt."""
    harness = harness_of(layout, 400)
    tokens = prompt(122)
    harness.submit("first", tokens, 1)
    harness.run()
    for name, again, cached in (
        ("on", [*tokens, 1, 2, 3], 120),
        ("same", tokens, 120),
        ("branch", [*tokens[:70], 9, 9], 64),
        ("before any", [*tokens[:15], 9, 9], 0),
    ):
        attempt = harness.submit(name, again, 20)
        harness.run()
        assert harness.cached[attempt] == cached
        assert harness.outputs[attempt] == reference(layout, again, 20)
    harness.assert_quiet()


def test_a_state_is_kept_where_prompts_have_branched(layout: KvLayout) -> None:
    """Not in advance: nobody knows where. The second one computes all, the third goes on from there."""
    harness = harness_of(layout, 400)
    trunk = prompt(100)
    for last, cached in ((1, 0), (2, 32), (3, 40)):
        tokens = [*trunk[: 42 if last > 1 else 100], last, last, last]
        attempt = harness.submit(f"{last}", tokens, 10)
        harness.run()
        assert harness.cached[attempt] == cached
        assert harness.outputs[attempt] == reference(layout, tokens, 10)


def test_two_that_go_on_from_one_snapshot_at_once(layout: KvLayout) -> None:
    harness = harness_of(layout, 400)
    trunk = prompt(64)
    harness.submit("trunk", trunk, 1)
    harness.run()
    attempts = {harness.submit(f"{n}", [*trunk, n, n], 40): reference(layout, [*trunk, n, n], 40) for n in range(1, 6)}
    harness.run()
    assert {attempt: harness.outputs[attempt] for attempt in attempts} == attempts
    assert all(harness.cached[attempt] == 64 for attempt in attempts)
    harness.assert_quiet()


def test_snapshots_on_the_way_of_drawn_tokens(layout: KvLayout) -> None:
    harness = harness_of(layout, 400)
    tokens = prompt(5)
    interval = 4 * SNAPSHOT_BLOCKS
    answer = reference(layout, tokens, 2 * interval)
    harness.submit("first", tokens, 2 * interval)
    harness.run()
    attempt = harness.submit("on", [*tokens, *answer[:-1]], 8)
    harness.run()
    assert harness.cached[attempt] == 2 * interval
    assert harness.outputs[attempt] == reference(layout, [*tokens, *answer[:-1]], 8)


def test_a_handoff_moves_the_state_whole(layout: KvLayout) -> None:
    pair = Pair(200, 200, SMALL, (StatefulToy(layout), StatefulToy(layout)))
    for n in (1, 7, 8, 31, 32, 100, 101):
        tokens = prompt(n, 3)
        attempt = pair.submit(f"{n}", tokens, 25)
        pair.prefill.run()
        pair.decode.run()
        assert pair.pages(attempt) == layout.pages_for(n)
        pair.hand_over(attempt)
        pair.decode.run()
        assert pair.tokens(attempt) == reference(layout, tokens, 25)
    longer = [*prompt(101, 3), 1, 2]
    attempt = pair.submit("longer", longer, 25)
    pair.prefill.run()
    pair.decode.run()
    assert pair.prefill.cached[attempt] == 100
    assert pair.decode.reserved[attempt].first_page == (25 if layout.groups[0].kind == "full" else 0)
    pair.hand_over(attempt)
    pair.decode.run()
    assert pair.tokens(attempt) == reference(layout, longer, 25)
    pair.prefill.assert_quiet()
    pair.decode.assert_quiet()


@pytest.mark.parametrize("name", ["hybrid", "states"])
def test_a_handed_over_state_is_a_snapshot_after_whole_blocks(name: str) -> None:
    layout = LAYOUTS[name]
    pair = Pair(200, 200, SMALL, (StatefulToy(layout), StatefulToy(layout)))
    for n, cached in ((100, 100), (102, 0)):
        tokens = prompt(n, 3)
        attempt = pair.submit(f"{n}", tokens, 10)
        pair.prefill.run()
        pair.decode.run()
        pair.hand_over(attempt)
        pair.decode.run()
        longer = [*tokens, *pair.tokens(attempt), 1, 2]
        again = pair.decode.submit(f"{n}, on", longer, 10)
        pair.decode.run()
        assert pair.decode.cached[again] == cached
        assert pair.decode.outputs[again] == reference(layout, longer, 10)
    pair.decode.assert_quiet()


def test_where_conversations_go_on_is_evicted_last() -> None:
    layout = LAYOUTS["hybrid"]
    harness = harness_of(layout, 130)
    first, second = prompt(160, 1), prompt(160, 2)
    for tokens in (first, second):
        harness.submit(f"{tokens[:3]}", tokens, 1)
        harness.run()
    assert harness.engine.load().free_pages < 10  # nothing is left but what can be evicted
    for name, tokens, cached in (("on", [*first, 5], 160), ("branch", [*first[:80], 5], 0)):
        attempt = harness.submit(name, tokens, 4)
        harness.run()
        assert harness.cached[attempt] == cached
        assert harness.outputs[attempt] == reference(layout, tokens, 4)


def test_blocks_that_are_only_names_do_not_pile_up(monkeypatch) -> None:
    """Where no layer sees everything the tree has them without pages: the oldest go."""
    monkeypatch.setattr(ledger_module, "BARE_BLOCKS", 2)
    monkeypatch.setattr(ledger_module, "LEAST_BARE_BLOCKS", 50)
    layout = LAYOUTS["states"]
    harness = harness_of(layout, 30)
    for seed in range(12):
        harness.submit(f"{seed}", prompt(100, seed), 1)
        harness.run()
    assert 60 <= harness.engine._ledger.cache.cached_pages <= 60 + 2 * 25
    for name, seed, cached in (("last", 11, 100), ("first", 0, 0)):
        attempt = harness.submit(name, [*prompt(100, seed), 1, 2], 20)
        harness.run()
        assert harness.cached[attempt] == cached
        assert harness.outputs[attempt] == reference(layout, [*prompt(100, seed), 1, 2], 20)
    harness.assert_quiet()


def test_snapshots_are_counted() -> None:
    ledger = PageLedger(PageAllocator(2 + 40), 4, LAYOUTS["hybrid"])
    counts = ledger.bounded.snapshots
    requests = [state_of(prompt(64), number) for number in range(2)]
    for request in requests:
        assert ledger.reserve(request, 0)
        for start in range(request.held_blocks * 4, 64, 16):
            ledger.advance(request, start, start + 16)
            request.computed_len = start + 16
            ledger.publish(request)
            ledger.slide(request)
        ledger.vacate(request)
    assert counts is not None
    assert (counts.made, counts.reused, counts.evicted) == (4, 1, 2)  # for blocks, and a state, of the second
    assert PageLedger(PageAllocator(10), 4).bounded.snapshots is None


@pytest.mark.parametrize("name", ["hybrid", "all kinds"])
def test_preemption_changes_no_token(name: str) -> None:
    layout = LAYOUTS[name]
    harness = Harness(130, MANY, StatefulToy(layout))
    attempts = {harness.submit(f"{n}", prompt(n, n), 90): reference(layout, prompt(n, n), 90) for n in range(20, 27)}
    harness.run()
    assert harness.preempted > 0
    assert {attempt: harness.outputs[attempt] for attempt in attempts} == attempts
    harness.assert_quiet()


@pytest.mark.parametrize("seed", range(3))
def test_random_work(layout: KvLayout, seed: int) -> None:
    run_random_work(layout, StatefulToy, seed, least_pages=100)


def test_without_memory_for_snapshots_states_are_written_over() -> None:
    layout = LAYOUTS["hybrid"]
    harness = harness_of(layout, 2 + 30 + 2 * 6)  # blocks of one request, and what it needs of states
    tokens = prompt(100)
    attempt = harness.submit("alone", tokens, 20)
    harness.run()
    assert harness.outputs[attempt] == reference(layout, tokens, 20)
    harness.assert_quiet()


def test_promised_pages_that_a_step_may_still_touch_are_waited_for() -> None:
    """Blocks are cached, but no state: who computes them anew gives up own pages for theirs."""
    ledger = PageLedger(PageAllocator(2 + 16 + 6), 4, LAYOUTS["hybrid"])
    scheduler = Scheduler(ledger, SMALL, 16)
    first, again = (state_of(prompt(64), number) for number in range(2))
    assert ledger.reserve(first, 0)
    first.computed_len = 32
    ledger.publish(first)
    ledger.vacate(first)
    assert ledger.reserve(again, 0)
    assert again.held_blocks == 0
    assert ledger.available_pages == 0  # six cached blocks, which stand for the pages of its first state
    ledger.depart()
    again.computed_len = 32
    ledger.publish(again)
    assert scheduler.plan(0.0, under_way=True) is None
    ledger.land()
    assert ledger.available_pages == 0
    assert scheduler.plan(0.0) is not None


def state_of(tokens: list[int], number: int) -> RequestState:
    sampling = SamplingParams(temperature=0.0, max_tokens=4)
    return RequestState.of(EngineRequest(Attempt(f"{number}"), tokens, len(tokens), sampling, b"root"), number, 0.0, 4)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_usable_against_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    pages = iter(range(2, 10_000))
    states = States(LAYOUTS["hybrid"], lambda count: [next(pages) for _ in range(count)])
    hashes, kept = [bytes([block]) for block in range(30)], set()
    table = states.open(hashes, 0)
    for block in range(30):
        states.advance(table, block * 4, block * 4 + 4)
        if rng.random() < 0.3:
            states.keep(table)
            kept.add(block + 1)
        states.share(table, hashes, block + 1)
        states.slide(table, hashes, block * 4 + 4)
    for limit in range(31):
        assert states.usable(hashes, limit) == max((blocks for blocks in kept if blocks <= limit), default=0)


def test_the_fingerprint_tells_states_apart() -> None:
    plain = replace(LAYOUTS["hybrid"], groups=())
    assert len({plain.fingerprint, *(layout.fingerprint for layout in LAYOUTS.values())}) == 4


def test_groups_of_layers_that_keep_states() -> None:
    def sizes(states: dict[int, int], attending: list[int]) -> list[tuple[str, int, tuple[int, ...]]]:
        groups = group_layers([None] * 6, 16, 32_768, states, attending)
        return [(group.kind, group.size, group.layers) for group in groups]

    states = {0: 3, 1: 3, 2: 1, 3: 3, 5: 3}
    assert sizes(states, [4]) == [("full", 0, (4,)), *[("state", 3, (at,)) for at in (0, 1, 3, 5)], ("state", 1, (2,))]
    assert sizes(dict.fromkeys(range(6), 3), [*range(6)]) == [("full", 0, (*range(6),)), ("state", 3, (*range(6),))]
    assert sizes(dict.fromkeys(range(6), 3), []) == [("state", 3, (*range(6),))]


@pytest.mark.parametrize("state_bytes", [100, 5_000, 70_000, 3_000_000])
def test_pages_of_a_model_that_attends_to_nothing_are_as_large_as_states_need(state_bytes: int) -> None:
    whole = KvLayout("model", "bfloat16", 4, 16, 0, 0)
    layout = in_groups(whole, [None] * 4, 1 << 20, dict.fromkeys(range(4), state_bytes), [])
    assert (layout.layers, layout.kv_heads, layout.total_kv_heads) == (4, 1, 1)
    (group,) = layout.groups
    assert state_bytes <= group.size * layout.page_bytes < state_bytes * 1.1 + 64
    assert layout.page_bytes < STATE_PAGE_BYTES + 64
    assert most_blocks(layout, 2 * group.size, 512) == UNLIMITED - 1
    assert most_blocks(layout, 2 * group.size - 1, 512) == 0


def test_a_pool_holds_some_states() -> None:
    """By itself, and an explicit size that is too small for the shortest request says what is the least."""
    runner = StatefulToy(replace(LAYOUTS["hybrid"], head_dim=1 << 20))
    runner.device = torch.device("cpu")
    page_bytes = runner.layout.pool_bytes(1)
    assert pool_pages(runner, EngineConfig(), 0, 0.85) == 2 + 1 + (2 + 8) * 6
    assert pool_pages(runner, EngineConfig(), 15 * page_bytes, 0.85) == 15
    with pytest.raises(ConfigError, match=f"holds 14 pages of {page_bytes} bytes; 15 are the least"):
        pool_pages(runner, EngineConfig(), 15 * page_bytes - 1, 0.85)
