"""A host tier for models whose blocks have pages of several kinds: each page moves by a name of its own, and a prefix
comes back with all that one needs to go on after it, or not at all."""

from __future__ import annotations

import random
from functools import partial

import pytest
from engine_harness import ROOT, Loop, prompt
from grouped_toys import LAYOUTS, SEARCHED, toy
from test_engine_tier import Tiered
from windowed_toy import reference

from baton.core.hashing import block_hashes, page_name
from baton.core.layout import KvLayout
from baton.core.tiers import Tier
from baton.engine.api import BoundedCounts
from baton.engine.band_cache import BandCache, Entry, held_elsewhere, in_order


@pytest.fixture(params=LAYOUTS)
def layout(request) -> KvLayout:
    return LAYOUTS[request.param]


def small(layout: KvLayout, blocks: int = 1000) -> Tiered:
    """An engine that keeps a few requests' pages."""
    pages = {"windows": 40, "one window": 24, "states": 12}.get(_name(layout), 150)
    return Tiered(pages=2 + pages, free_pages=pages // 3, blocks=blocks, runner=toy(layout))


def _name(layout: KvLayout) -> str:
    return next(name for name, each in LAYOUTS.items() if each is layout)


def computed(engine: Tiered) -> int:
    return sum(step.extend_tokens for step in engine.steps)


def test_what_leaves_the_pool_comes_back(layout: KvLayout) -> None:
    """A conversation goes on after others have filled the pool."""
    engine = small(layout)
    first = prompt(62)
    longer = [*first, *reference(layout, first, 1), 1, 2]
    for name, tokens in (("a", first), *((f"{seed}", prompt(90, seed)) for seed in range(1, 12))):
        engine.submit(name, tokens, 1)
        engine.run_all()
    before = computed(engine)
    again = engine.submit("again", longer, 6)
    engine.run_all()
    assert engine.outputs[again] == reference(layout, longer, 6)
    assert engine.restored > 0
    assert (engine.cached[again], computed(engine) - before) == (60, 5)
    engine.assert_quiet()


@pytest.mark.parametrize("name", ["mixed", "one window", "hybrid", "states"])
def test_what_another_session_has_left_on_the_disk(name: str) -> None:
    """An engine that has computed nothing is told of pages by their names alone."""
    layout = LAYOUTS[name]
    before, after = small(layout), small(layout)
    first = prompt(62)
    for name, tokens in (("a", first), *((f"{seed}", prompt(90, seed)) for seed in range(1, 12))):
        before.submit(name, tokens, 1)
        before.run_all()
    after.kept = before.kept
    after.engine.tiered(list(after.kept), Tier.DISK)
    attempt = after.submit("again", first, 6)
    after.run()
    assert set(after.reserved[attempt].tiers) == {Tier.DISK}
    assert block_hashes(ROOT, first, 4)[14] in after.tiered
    if layout.pages_for(4) > 1:
        assert len(after.tiered) < len(after.kept), "pages that are no blocks are nobody's business"
    after.run_all()
    assert after.outputs[attempt] == reference(layout, first, 6)
    assert (after.cached[attempt], computed(after)) == (60, 2)
    after.assert_quiet()


@pytest.mark.parametrize("length", [61, 62, 64, 67])
def test_an_end_is_of_use_when_all_that_was_gone_past_is_gone(layout: KvLayout, length: int) -> None:
    engine, tokens = Tiered(pages=400, free_pages=0, runner=toy(layout)), prompt(length)
    engine.submit("a", tokens, 1)
    engine.run()
    ledger = engine.engine._ledger
    ledger.allocator.free(ledger.bounded.evict_passed(1000))
    again = engine.submit("again", [*tokens, 1, 2, 3, 4], 6)
    engine.run()
    assert engine.cached[again] == length // 4 * 4
    assert engine.outputs[again] == reference(layout, [*tokens, 1, 2, 3, 4], 6)


def test_what_is_here_of_a_prefix_stays_until_the_rest_has_come() -> None:
    """Half of a window is in the pool, and locked; the other half is brought."""
    layout = LAYOUTS["one window"]
    engine = Tiered(pages=2 + 60, free_pages=8, runner=toy(layout))
    tokens = prompt(62)
    engine.submit("a", tokens, 1)
    engine.run()
    ledger = engine.engine._ledger
    names = block_hashes(ROOT, tokens, 4)
    for name, page in ledger.bounded.leave(names[14]):
        engine.kept[name] = engine.pool.tensor[:, page].clone()
        ledger.cache.place([name], Tier.HOST)
        ledger.allocator.free([page])
    attempt = engine.submit("b", tokens, 8)
    engine.run()
    reserved = engine.reserved[attempt]
    assert (len(reserved.page_ids), reserved.tokens, reserved.usable_tokens) == (1, 60, 56)
    ledger.bounded.evict_ends(1000)
    assert all(name in ledger.bounded._bands._caches[0] for name in names[12:14])
    engine.run_all()
    assert engine.outputs[attempt] == reference(layout, tokens, 8)
    assert engine.cached[attempt] == 60
    engine.assert_quiet()


@pytest.mark.parametrize(("name", "loop_name"), SEARCHED)
def test_any_order_of_moves_and_restores(name: str, loop_name: str, monkeypatch) -> None:
    """A small pool, a small tier, restores that come whole or not at all: tokens stay the reference's."""
    monkeypatch.setattr(Loop, "name", loop_name)
    choose, layout = random.Random(1), LAYOUTS[name]
    engine = small(layout, blocks=choose.choice([100, 300]))
    engine.search(choose, rounds=45, variety=23, expected_of=partial(reference, layout))


def test_what_is_counted() -> None:
    layout = LAYOUTS["all kinds"]
    engine = Tiered(pages=400, free_pages=0, runner=toy(layout))
    for name in ("first", "again"):
        engine.submit(name, prompt(62), 1)
        engine.run()
    total = [sum(getattr(step.bounded, name) for step in engine.steps) for name in BoundedCounts.__slots__]
    chunks = [16, 32, 48, 60]
    assert total == [14 + 1, len(chunks), 1, 0]
    load = engine.engine.load()
    assert load.snapshots == len(chunks)
    assert load.cached_pages == {"full": 15, "window": 15, "state": 4 * len(chunks)}
    ledger = engine.engine._ledger
    ledger.allocator.free(ledger.bounded.evict_passed(16))
    assert engine.step().bounded == BoundedCounts(snapshots_evicted=1)


def test_names_of_pages_in_their_order() -> None:
    a, b = BandCache(), BandCache()
    first, second = bytes(16), bytes([1]) * 16
    entries = [Entry(a, first, 1, 2), Entry(a, second, 1, 2), Entry(b, second, 3, 1)]
    named = [(first, 1), (second, 1), (first, 2), (second, 2), (second, 3)]
    assert list(in_order(entries, lambda entry: entry.names)) == [page_name(*each) for each in named]
    assert page_name(first, 0) == first
    assert len({page_name(name, page) for name in (first, second) for page in range(9)}) == 18
    tier = dict.fromkeys((page_name(first, 1), page_name(first, 2), page_name(second, 1)), Tier.HOST)
    assert [held_elsewhere(tier, 1, 2)(name) for name in (first, second)] == [True, False]
