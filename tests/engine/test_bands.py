"""Layers that attend to a part of their past: pages are let go of, reused and handed over, and no token changes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from engine_harness import SMALL, Harness, Pair, prompt
from random_work import MANY, run_random_work
from windowed_toy import LAYOUTS, WindowedToy, first_visible, reference

from baton.core.attempt import Attempt
from baton.core.layout import CacheGroup, KvLayout
from baton.core.sampling import SamplingParams
from baton.engine.api import EngineRequest
from baton.engine.attention import Chunks
from baton.engine.band_cache import BandCache
from baton.engine.bounded import most_blocks
from baton.engine.grouping import group_layers
from baton.engine.ledger import PageLedger
from baton.engine.pool import PageAllocator
from baton.engine.request import RequestState

pytestmark = pytest.mark.usefixtures("loop")


@pytest.fixture(params=LAYOUTS)
def layout(request) -> KvLayout:
    return LAYOUTS[request.param]


def harness_of(layout: KvLayout, pages: int) -> Harness:
    return Harness(pages, SMALL, WindowedToy(layout))


def test_prompts_many_windows_long_in_chunks(layout: KvLayout) -> None:
    harness = harness_of(layout, 400)
    attempts = {harness.submit(f"{n}", prompt(n), 30): prompt(n) for n in (1, 4, 5, 15, 16, 33, 90, 200)}
    harness.run()
    for attempt, tokens in attempts.items():
        assert harness.outputs[attempt] == reference(layout, tokens, 30)
    harness.assert_quiet()


def test_a_request_holds_no_more_than_it_attends_to(layout: KvLayout) -> None:
    """A pool that is just enough, and one page less, which says so."""
    step_tokens = SMALL.step_tokens(overlap=False)
    longest = 60
    usable = next(pages for pages in range(1000) if most_blocks(layout, pages, 2 * step_tokens) >= longest)
    if layout.groups[0].kind == "full":
        assert usable < 2 * longest  # with all pages kept, it would be five times as many
    harness = harness_of(layout, usable + 2)
    tokens = prompt(longest * 4 - 30)
    attempt = harness.submit("long", tokens, 30)
    harness.run()
    assert harness.outputs[attempt] == reference(layout, tokens, 30)
    assert harness.engine.max_context_tokens >= longest * 4


def test_a_prefix_is_reused_as_far_as_its_windows_are_there(layout: KvLayout) -> None:
    harness = harness_of(layout, 400)
    tokens = prompt(120)
    harness.submit("first", tokens, 1)
    harness.run()
    again = harness.submit("again", [*tokens, 1, 2, 3], 20)
    harness.run()
    assert harness.cached[again] == 120
    assert harness.outputs[again] == reference(layout, [*tokens, 1, 2, 3], 20)
    branch = harness.submit("branch", [*tokens[:60], 9, 9], 20)
    harness.run()
    assert harness.cached[branch] == 60  # what was gone past is still there, as nobody needed the memory
    assert harness.outputs[branch] == reference(layout, [*tokens[:60], 9, 9], 20)


def test_pages_that_were_gone_past_go_first_and_ends_stay_usable() -> None:
    layout = LAYOUTS["mixed"]
    harness = harness_of(layout, 140)
    first, second = prompt(160, 1), prompt(160, 2)
    for name, tokens in (("first", first), ("second", second)):
        harness.submit(name, tokens, 1)
        harness.run()
    assert harness.engine.load().free_pages < 10  # nothing is left but what can be evicted
    ended = harness.submit("ended", [*first, 5], 8)
    harness.run()
    assert harness.cached[ended] == 160
    branch = harness.submit("branch", [*first[:80], 5], 8)
    harness.run()
    assert harness.cached[branch] < 80
    assert harness.outputs[ended] == reference(layout, [*first, 5], 8)
    assert harness.outputs[branch] == reference(layout, [*first[:80], 5], 8)


def test_a_handoff_moves_what_later_tokens_attend_to(layout: KvLayout) -> None:
    pair = Pair(200, 200, SMALL, (WindowedToy(layout), WindowedToy(layout)))
    for n in (1, 7, 8, 31, 32, 100, 101):
        tokens = prompt(n, 3)
        attempt = pair.submit(f"{n}", tokens, 25)
        pair.prefill.run()
        pair.decode.run()
        tails = [range(first_visible(group, n) // 4, -(-n // 4)) for group in layout.groups]
        assert pair.pages(attempt) == sum(map(len, tails))
        pair.hand_over(attempt)
        pair.decode.run()
        assert pair.tokens(attempt) == reference(layout, tokens, 25)
    longer = [*prompt(101, 3), 1, 2]
    attempt = pair.submit("longer", longer, 25)
    pair.prefill.run()
    pair.decode.run()
    assert pair.prefill.cached[attempt] == 100
    held = 25 if layout.groups[0].kind == "full" else 0  # windows are taken whole
    assert pair.decode.reserved[attempt].first_page == held
    assert len(pair.decode.reserved[attempt].page_ids) == pair.pages(attempt) - held
    pair.hand_over(attempt)
    pair.decode.run()
    assert pair.tokens(attempt) == reference(layout, longer, 25)


def test_requests_that_share_blocks_are_promised_pages_of_their_own() -> None:
    """Whoever goes past a shared block gets nothing back for it while others use it: as many requests as fit must be
    able to come to their ends, whatever the pool's size."""
    layout = replace(LAYOUTS["windows"], groups=(CacheGroup("window", 40, (0, 1)),))
    for usable in range(30, 120):
        ledger = PageLedger(PageAllocator(usable + 2), 4, layout, step_tokens=16)
        trunk = state_of(prompt(48), 0)
        assert ledger.reserve(trunk, 0)
        advance(ledger, trunk)
        ledger.vacate(trunk)
        requests = [state_of(prompt(48) + prompt(100, number), number) for number in range(1, 9)]
        admitted = [request for request in requests if ledger.reserve(request, 0)]
        for request in admitted:
            advance(ledger, request)
            ledger.audit(admitted)


def state_of(tokens: list[int], number: int) -> RequestState:
    sampling = SamplingParams(temperature=0.0, max_tokens=4)
    return RequestState.of(EngineRequest(Attempt(f"{number}"), tokens, len(tokens), sampling, b"root"), number, 0.0, 4)


def advance(ledger: PageLedger, request: RequestState) -> None:
    """Compute the whole prompt in chunks."""
    request.computed_len = request.held_blocks * 4
    while request.computed_len < len(request.tokens):
        end = min(request.computed_len + 16, len(request.tokens))
        ledger.cover(request, end)
        request.computed_len = end
        ledger.publish(request)
        ledger.slide(request)
        assert ledger.available_pages >= 0


def test_preemption_changes_no_token() -> None:
    layout = LAYOUTS["mixed"]
    harness = Harness(86, MANY, WindowedToy(layout))
    attempts = {harness.submit(f"{n}", prompt(n, n), 70): reference(layout, prompt(n, n), 70) for n in range(9, 16)}
    harness.run()
    assert harness.preempted > 0
    assert {attempt: harness.outputs[attempt] for attempt in attempts} == attempts
    harness.assert_quiet()


@pytest.mark.parametrize("seed", range(2))
def test_random_work(layout: KvLayout, seed: int) -> None:
    run_random_work(layout, WindowedToy, seed, least_pages=108)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_usable_against_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    group = rng.choice(
        (CacheGroup("window", rng.randrange(1, 40), ()), CacheGroup("chunk", 4 * rng.randrange(1, 9), ()))
    )
    hashes = [bytes([block]) for block in range(30)]
    cache = BandCache()
    for name in hashes:
        if rng.random() < 0.8:
            cache.add(name, (2,))

    def may_go_on(blocks: int) -> bool:
        return all(hashes[q // 4] in cache for q in range(first_visible(group, blocks * 4), blocks * 4))

    for limit in range(31):
        best = max(blocks for blocks in range(limit + 1) if may_go_on(blocks))
        assert cache.usable(hashes, limit, lambda n: group.first_block(n * 4, 4)) == best


def test_groups_of_layers() -> None:
    def sizes(windows: list, page_size: int = 16) -> list[tuple[str, int, int]]:
        groups = group_layers(windows, page_size, 32_768)
        grouped = sorted(layer for group in groups for layer in group.layers)
        assert grouped == (list(range(len(windows))) if groups else [])
        return [(group.kind, group.size, len(group.layers)) for group in groups]

    gemma = [None if layer % 6 == 5 else 512 for layer in range(26)]
    assert sizes(gemma) == [("full", 0, 4), *[("window", 512, layers) for layers in (3, 4, 4, 3, 4, 4)]]
    assert sizes([128, None] * 12) == [("full", 0, 12), ("window", 128, 12)]
    assert sizes([4096] * 32) == [("window", 4096, 32)]
    assert sizes([None] * 4) == []
    assert sizes([40_000] * 4) == []  # longer than any context
    assert sizes([None, None, 64]) == []  # windows of fewer layers would waste more than they free
    assert sizes([Chunks(8192), Chunks(8192), Chunks(8192), None]) == [("full", 0, 1), *[("chunk", 8192, 1)] * 3]
    assert sizes([Chunks(24), None]) == []  # no whole number of pages


def test_the_fingerprint_tells_groups_apart() -> None:
    plain = replace(LAYOUTS["mixed"], groups=())
    assert len({plain.fingerprint, *(layout.fingerprint for layout in LAYOUTS.values())}) == 3
    assert len({plain.model, *(layout.model for layout in LAYOUTS.values())}) == 3
