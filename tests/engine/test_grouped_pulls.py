"""Engines that take prefixes from each other, of models whose blocks have pages of several kinds: what a reader gets is
enough to go on after it, or it is nothing."""

from __future__ import annotations

import random

import pytest
from engine_harness import ROOT, SMALL, Baton, Harness, Loop, Pair, prompt
from grouped_toys import LAYOUTS, SEARCHED, toy
from pulling import computed, pull, run_random_pulls
from windowed_toy import reference

from baton.core.attempt import Attempt
from baton.core.hashing import block_hashes
from baton.core.layout import KvLayout
from baton.engine.api import Stage
from baton.prefix.mirror import PrefixMirror
from baton.prefix.records import BlockBatch


@pytest.fixture(params=LAYOUTS)
def layout(request) -> KvLayout:
    return LAYOUTS[request.param]


def harness_of(layout: KvLayout, pages: int = 400, listener: Baton | None = None) -> Harness:
    return Harness(pages, SMALL, toy(layout), listener)


def holder(layout: KvLayout, tokens: list[int], pages: int = 400) -> Harness:
    """An engine that has computed `tokens`."""
    source = harness_of(layout, pages)
    source.submit("earlier", tokens, 1)
    source.run()
    return source


@pytest.mark.parametrize(("length", "held"), [(9, 0), (43, 0), (123, 0), (123, 52)])
def test_what_another_engine_holds_is_not_computed(layout: KvLayout, length: int, held: int) -> None:
    tokens = prompt(length)
    source, reader = holder(layout, tokens), holder(layout, tokens[: held or 1])
    before = computed(reader)
    attempt = reader.submit("a", tokens, 10, pull_tokens=length)
    reader.run()
    assert reader.reserved[attempt].tokens == (length - 1) // 4 * 4
    assert pull(source, reader, attempt) == (length - 1) // 4 * 4
    reader.run()
    assert reader.outputs[attempt] == reference(layout, tokens, 10)
    assert reader.cached[attempt] == (length - 1) // 4 * 4
    assert computed(reader) - before == (length - 1) % 4 + 1
    reader.assert_quiet()
    source.assert_quiet()


def test_no_more_is_lent_than_one_can_go_on_from(layout: KvLayout) -> None:
    """The source has blocks beyond the last one after which all is there; the reader computes from there on."""
    trunk, tokens = prompt(80), prompt(80)[:70] + prompt(30, 5)
    source, reader = holder(layout, trunk), harness_of(layout)
    names = block_hashes(ROOT, tokens, 4)
    usable = source.engine._ledger.bounded.usable(names, 17)
    attempt = reader.submit("a", tokens, 10, pull_tokens=96)
    reader.run()
    came = pull(source, reader, attempt)
    assert came <= 4 * usable and (came == 4 * usable or "chunk" in {group.kind for group in layout.groups})
    reader.run()
    assert reader.outputs[attempt] == reference(layout, tokens, 10)
    assert (reader.cached[attempt], computed(reader)) == (came, 100 - came)
    reader.assert_quiet()
    source.assert_quiet()


def test_a_chunk_that_needs_more_pages_than_its_reader_has() -> None:
    """The reader wants all of a chunk, and counts on no page of it; the source has a part."""
    layout, tokens = LAYOUTS["chunks"], prompt(65)
    source, reader = holder(layout, tokens[:61]), harness_of(layout)
    attempt = reader.submit("a", tokens, 10, pull_tokens=64)
    reader.run()
    assert 0 < pull(source, reader, attempt) < 60
    reader.run()
    assert reader.outputs[attempt] == reference(layout, tokens, 10)
    reader.assert_quiet()


def test_nothing_comes_and_all_is_computed(layout: KvLayout) -> None:
    tokens, reader = prompt(60), harness_of(layout)
    attempt = reader.submit("a", tokens, 10, pull_tokens=56)
    reader.run()
    assert reader.engine.load().lent_pages > 0
    reader.engine.pulled(attempt, 0)
    reader.run()
    assert reader.outputs[attempt] == reference(layout, tokens, 10)
    cancelled = reader.submit("b", prompt(60, 3), 10, pull_tokens=56)
    reader.run()
    assert reader.engine.cancel(cancelled) is False
    reader.engine.pulled(cancelled, 0)
    reader.run()
    reader.assert_quiet()


def test_what_is_lent_stays_as_it_is(layout: KvLayout) -> None:
    tokens, other = prompt(40), prompt(60, 2)
    source = holder(layout, tokens, pages=110)
    names = block_hashes(ROOT, tokens, 4)
    loan = source.engine.lend(Attempt("reader"), names)
    assert (len(loan.page_ids), loan.tokens) == (layout.pages_for(40), 40)
    assert source.engine.lend(Attempt("reader"), names).page_ids == [], "one loan for one name"
    lent = source.pool.tensor[:, loan.page_ids].clone()
    attempts = [source.submit(f"{seed}", prompt(60, seed), 30) for seed in range(2, 12)]
    source.run()
    assert source.outputs[attempts[0]] == reference(layout, other, 30)
    assert (source.pool.tensor[:, loan.page_ids] == lent).all()
    assert source.pool.allocator.generations(loan.page_ids) == loan.generations
    source.engine.take_back(Attempt("reader"))
    source.assert_quiet()


def test_an_offer_hands_over_what_it_has_pulled(layout: KvLayout) -> None:
    """Decode pulls the same prefix as prefill; the handoff begins where that ended."""
    tokens = prompt(123)
    source, pair = holder(layout, tokens), Pair(400, 400, SMALL, (toy(layout), toy(layout)))
    attempt = pair.submit("a", tokens, 10, pull_tokens=120)
    for side in (pair.prefill, pair.decode):
        side.run()
        assert pull(source, side, attempt) == 120
        side.run()
    assert pair.decode.reserved[attempt].first_page == 30 * layout.has_full
    pair.hand_over(attempt)
    pair.decode.run()
    assert pair.tokens(attempt) == reference(layout, tokens, 10)
    assert (computed(pair.prefill), computed(pair.decode)) == (3, 0)
    for side in (pair.prefill, pair.decode):
        side.assert_quiet()


def test_a_fetch_whose_pull_fails_takes_all_from_its_handoff() -> None:
    layout, tokens = LAYOUTS["all kinds"], prompt(60)
    pair = Pair(400, 400, SMALL, (toy(layout), toy(layout)))
    attempt = pair.prefill.submit("a", tokens, 10, stage=Stage.OFFER)
    pair.decode.submit("a", tokens, 10, stage=Stage.FETCH, pull_tokens=56)
    pair.prefill.run()
    pair.decode.run()
    pair.decode.engine.pulled(attempt, 0)
    pair.decode.run()
    pair.hand_over(attempt)
    pair.decode.run()
    assert pair.tokens(attempt) == reference(layout, tokens, 10)
    pair.decode.assert_quiet()


@pytest.mark.parametrize(("name", "loop_name"), SEARCHED)
def test_any_order_of_pulls_evictions_and_cancels(name: str, loop_name: str, monkeypatch) -> None:
    monkeypatch.setattr(Loop, "name", loop_name)
    layout = LAYOUTS[name]
    engines = [harness_of(layout, 2 + 90) for _ in range(3)]
    pulled = run_random_pulls(engines, lambda tokens, n: reference(layout, tokens, n), 1, in_part=False, requests=45)
    assert pulled > 30, "the search is not about nothing"


@pytest.mark.parametrize("name", ["windows", "one window", "hybrid"])
def test_a_router_expects_what_a_worker_finds(name: str) -> None:
    """Block events, taken in by the index's mirror, against what the engine would reuse: never more, and all of it
    where there are states, or windows of one size."""
    layout = LAYOUTS[name]
    harness, mirror, rng = harness_of(layout, 110), PrefixMirror(first_needed=layout.first_needed), random.Random(4)
    trunk = prompt(150)
    found = 0
    for number in range(18):
        tokens = trunk[: rng.randrange(8, 150)] + prompt(rng.randrange(12), number)
        expected = 4 * mirror.match(block_hashes(ROOT, tokens, 4)[: (len(tokens) - 1) // 4]).get("w", 0)
        attempt = harness.submit(f"{number}", tokens, rng.randrange(1, 40))
        done = len(harness.steps)
        harness.run()
        harness.step()  # what is told of the last one
        assert expected <= harness.cached[attempt]
        if name in ("hybrid", "one window"):
            assert expected == harness.cached[attempt]
        found += expected
        for step in harness.steps[done:]:
            stored, removed = b"".join(step.stored_blocks), b"".join(step.removed_blocks)
            mirror.apply(BlockBatch("w", 1, _next(mirror), stored, removed))
    assert found > 40, "the search is not about nothing"


def _next(mirror: PrefixMirror) -> int:
    mirror_held = mirror._workers.get("w")
    return 1 if mirror_held is None else mirror_held.seq + 1
