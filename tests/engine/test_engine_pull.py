"""Engines that take prefixes from each other: what is pulled is not computed, and nothing else changes."""

from __future__ import annotations

import pytest
from engine_harness import ROOT, Baton, Harness, Pair, prompt
from pulling import computed, move, pull, run_random_pulls

from baton.core.attempt import Attempt
from baton.core.errors import InternalError
from baton.core.hashing import block_hashes
from baton.engine.api import Finish, Stage
from baton.testing.toy_model import TOY_LAYOUT, toy_reference

pytestmark = pytest.mark.usefixtures("loop")

PAGE = TOY_LAYOUT.page_size


def holder(tokens: list[int], pages: int = 64) -> Harness:
    """An engine whose cache holds all blocks of `tokens`."""
    source = Harness(pages)
    source.submit("earlier", tokens, 1)
    source.run()
    return source


def test_what_another_engine_holds_is_not_computed() -> None:
    tokens = prompt(43)
    source, reader = holder(tokens[:40]), Harness()
    attempt = reader.submit("a", tokens, 10, pull_tokens=40)
    reader.run()
    reserved = reader.reserved[attempt]
    assert (reserved.first_page, len(reserved.page_ids)) == (0, 10)
    assert reserved.block_hashes == block_hashes(ROOT, tokens, PAGE)
    assert computed(reader) == 0 and attempt not in reader.cached
    pull(source, reader, attempt)
    reader.run()
    assert reader.outputs[attempt] == toy_reference(tokens, 10)
    assert (reader.cached[attempt], reader.pulled[attempt], computed(reader)) == (40, 40, 3)
    reader.assert_quiet()
    source.assert_quiet()


def test_only_what_is_not_held_here_is_pulled() -> None:
    tokens = prompt(41)
    source, reader = holder(tokens), holder(tokens[:12])
    before = computed(reader)
    attempt = reader.submit("a", tokens, 5, pull_tokens=40)
    reader.run()
    assert (reader.reserved[attempt].first_page, len(reader.reserved[attempt].page_ids)) == (3, 7)
    pull(source, reader, attempt)
    reader.run()
    assert reader.outputs[attempt] == toy_reference(tokens, 5)
    assert (reader.cached[attempt], reader.pulled[attempt], computed(reader) - before) == (40, 28, 1)


def test_a_whole_prompt_of_blocks_computes_its_last_block() -> None:
    """One token must be computed for its logits, and only whole blocks come from elsewhere."""
    tokens = prompt(40)
    source, reader = holder(tokens), Harness()
    attempt = reader.submit("a", tokens, 5, pull_tokens=40)
    reader.run()
    assert len(reader.reserved[attempt].page_ids) == 9
    pull(source, reader, attempt)
    reader.run()
    assert reader.outputs[attempt] == toy_reference(tokens, 5)
    assert computed(reader) == PAGE


def test_nothing_is_pulled_that_is_here() -> None:
    tokens = prompt(41)
    reader = holder(tokens)
    attempt = reader.submit("a", tokens, 5, pull_tokens=40)
    reader.run()
    assert attempt not in reader.reserved
    assert reader.outputs[attempt] == toy_reference(tokens, 5)
    assert reader.pulled[attempt] == 0


@pytest.mark.parametrize("came", [0, 12, 20])
def test_what_does_not_come_is_computed(came: int) -> None:
    tokens = prompt(30)
    source, reader = holder(tokens[:20]), Harness()
    attempt = reader.submit("a", tokens, 5, pull_tokens=28)
    reader.run()
    loan = source.engine.lend(attempt, reader.reserved[attempt].block_hashes)
    assert move(source, loan, reader, attempt) == 20
    reader.engine.pulled(attempt, came)
    reader.run()
    assert reader.outputs[attempt] == toy_reference(tokens, 5)
    assert (reader.pulled[attempt], computed(reader)) == (came, 30 - came)
    source.engine.take_back(attempt)
    source.assert_quiet()
    reader.assert_quiet()


def test_a_cancelled_pull_keeps_its_pages_until_nobody_fills_them() -> None:
    tokens = prompt(30)
    source, reader = holder(tokens), Harness()
    attempt = reader.submit("a", tokens, 5, pull_tokens=28)
    reader.run()
    assert reader.engine.cancel(attempt) is False
    assert reader.engine.load().lent_pages == 8
    pull(source, reader, attempt)
    reader.run()
    assert attempt not in reader.outputs and reader.engine.load().lent_pages == 0
    reader.step()
    assert len(reader.blocks) == 7, "what came stays cached"
    reader.assert_quiet()


def test_an_offer_announces_what_it_has_pulled() -> None:
    tokens = prompt(43)
    source, baton = holder(tokens), Baton()
    prefill = Harness(listener=baton)
    baton.pool = prefill.pool
    attempt = prefill.submit("a", tokens, 5, stage=Stage.OFFER, pull_tokens=40)
    prefill.run()
    assert not baton.tokens, "nothing is offered while pages are being filled"
    pull(source, prefill, attempt)
    prefill.run()
    assert prefill.outputs[attempt] == toy_reference(tokens, 1)
    baton.assert_whole(attempt)
    baton.assert_unchanged(attempt)
    assert computed(prefill) == 3
    prefill.engine.release(attempt, valid=True)
    prefill.step()
    prefill.assert_quiet()


@pytest.mark.parametrize(("held", "came"), [(40, 40), (24, 24), (0, 0)])
def test_a_fetch_pulls_and_its_handoff_brings_what_did_not_come(held: int, came: int) -> None:
    """Prefill and decode both pull from a third engine; decode's handoff begins where its pull ended."""
    tokens = prompt(43)
    source, pair = holder(tokens[:held] if held else prompt(8, seed=9)), Pair()
    attempt = pair.prefill.submit("a", tokens, 10, stage=Stage.OFFER)
    pair.decode.submit("a", tokens, 10, stage=Stage.FETCH, pull_tokens=40)
    pair.prefill.run()
    pair.decode.run()
    assert pair.decode.reserved[attempt].block_hashes == block_hashes(ROOT, tokens, PAGE)
    pull(source, pair.decode, attempt)
    pair.decode.run()
    reserved = pair.decode.reserved[attempt]
    assert (reserved.first_page, len(reserved.page_ids), reserved.block_hashes) == (came // PAGE, 11 - came // PAGE, [])
    pair.hand_over(attempt)
    pair.decode.run()
    assert pair.tokens(attempt) == toy_reference(tokens, 10)
    assert (pair.decode.pulled[attempt], computed(pair.decode)) == (came, 0)
    for engine in (source, pair.prefill, pair.decode):
        engine.step()
        engine.assert_quiet()


def test_a_fetch_that_is_cancelled_while_it_pulls_keeps_its_pages_until_nobody_fills_them() -> None:
    tokens = prompt(43)
    source, reader = holder(tokens), Harness()
    attempt = reader.submit("a", tokens, 5, stage=Stage.FETCH, pull_tokens=40)
    reader.run()
    assert reader.engine.cancel(attempt) is False and reader.engine.load().lent_pages == 11
    pull(source, reader, attempt)
    reader.step()
    assert reader.engine.load().lent_pages == 0
    reader.assert_quiet()


def test_others_wait_for_a_pull_rather_than_compute_or_pull_the_same() -> None:
    tokens = prompt(40)
    source, reader = holder(tokens), Harness()
    first = reader.submit("a", [*tokens, 1], 4, pull_tokens=40)
    second = reader.submit("b", [*tokens, 2], 4, pull_tokens=40)
    other = reader.submit("c", prompt(9, seed=3), 4)
    reader.run()
    assert first in reader.reserved and second not in reader.reserved
    assert reader.finishes == {other: Finish.LENGTH}
    pull(source, reader, first)
    reader.run()
    assert second not in reader.reserved
    assert reader.outputs[first] == toy_reference([*tokens, 1], 4)
    assert reader.outputs[second] == toy_reference([*tokens, 2], 4)
    assert computed(reader) == 9 + 1 + 1


def test_lent_pages_are_not_evicted() -> None:
    tokens = prompt(40)
    source = holder(tokens, pages=2 + 20)
    loan = source.engine.lend(Attempt("reader"), block_hashes(ROOT, tokens, PAGE))
    lent = source.pool.tensor[:, loan.page_ids].clone()
    other = source.submit("big", prompt(44, seed=2), 8)
    source.run()
    assert other not in source.outputs, "it has to wait for the lent pages"
    assert (source.pool.tensor[:, loan.page_ids] == lent).all()
    source.engine.take_back(Attempt("reader"))
    source.run()
    assert source.outputs[other] == toy_reference(prompt(44, seed=2), 8)


def test_the_longest_prefix_that_is_cached_is_lent() -> None:
    tokens = prompt(60)
    source = holder(tokens[:24])
    hashes = block_hashes(ROOT, tokens, PAGE)
    loan = source.engine.lend(Attempt("whole"), hashes)
    assert len(loan.page_ids) == len(loan.generations) == 6
    assert source.engine.lend(Attempt("tail"), hashes[4:]).page_ids == loan.page_ids
    assert source.engine.lend(Attempt("beyond"), hashes[6:]).page_ids == []
    assert source.engine.lend(Attempt("whole"), hashes).page_ids == [], "one loan for one name"
    for name in ("whole", "tail", "beyond", "unknown"):
        source.engine.take_back(Attempt(name))
    source.assert_quiet()


def test_pulls_that_do_not_exist_or_bring_too_much_are_defects() -> None:
    reader = Harness()
    reader.engine.pulled(Attempt("unknown"), 4)
    attempt = reader.submit("a", prompt(30), 5, pull_tokens=8)
    with pytest.raises(InternalError, match="pulls nothing"):
        reader.engine.pulled(attempt, 4)
    reader.run()
    for tokens in (3, 12, -4):
        with pytest.raises(InternalError, match="not"):
            reader.engine.pulled(attempt, tokens)


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_pulls_evictions_and_cancels(seed: int) -> None:
    engines = [Harness(pages=2 + 24) for _ in range(3)]
    assert run_random_pulls(engines, toy_reference, seed, in_part=True) > 60, "the search is not about nothing"
