"""Layer groups: the tail of a pipeline is foreseen, and the choice follows what is measured."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.core.attempt import Attempt
from baton.core.layout import KvLayout
from baton.kv.pacing import NEAR_BEST, LinkCost, LinkMeter, Pacer, best_group, tail_s

LAYOUT = KvLayout("m", "bfloat16", layers=12, page_size=16, kv_heads=4, head_dim=64)
ONE = Attempt("request", 1)

costs = st.builds(LinkCost, st.floats(1e-5, 1e-2), st.floats(1e-11, 1e-8))


@given(st.integers(1, 40), st.floats(1e-5, 1e-1), st.integers(1 << 10, 1 << 24), costs)
def test_no_grouping_has_a_shorter_tail_than_the_chosen_one(layers, layer_s, layer_bytes, link):
    group = best_group(layers, layer_s, layer_bytes, link)
    tails = [tail_s(layers, layer_s, layer_bytes, link, size) for size in range(1, layers + 1)]
    assert 1 <= group <= layers
    assert tails[group - 1] <= min(tails) * NEAR_BEST
    assert min(tails) >= link.fixed_s + layer_bytes * link.s_per_byte - 1e-9


def test_the_tail_of_known_pipelines():
    link = LinkCost(0.001, 0.0)
    assert tail_s(4, 0.01, 100, link, 1) == pytest.approx(0.001)  # hidden but for the last one
    assert tail_s(4, 0.0001, 100, link, 1) == pytest.approx(0.0001 + 4 * 0.001 - 4 * 0.0001)  # they queue up
    assert tail_s(4, 0.0001, 100, link, 4) == pytest.approx(0.001)  # all in one
    bulk = LinkCost(0.0, 1e-6)
    assert tail_s(4, 0.01, 1000, bulk, 4) == pytest.approx(0.004)
    assert tail_s(4, 0.01, 1000, bulk, 1) == pytest.approx(0.001)


def test_short_prompts_go_in_one_read_and_long_ones_layer_by_layer():
    link = LinkCost(0.002, 1 / 3e9)
    assert best_group(12, 0.0002, 64 << 10, link) == 12
    assert best_group(12, 0.050, 4 << 20, link) == 1
    assert 1 < best_group(12, 0.0008, 256 << 10, link) < 12


def test_the_meter_recovers_a_link():
    meter = LinkMeter()
    assert meter.cost() is None
    meter.add(1000, 0.003)
    assert meter.cost() == LinkCost(0.003, 0.0)
    for size in (1 << 16, 1 << 20, 1 << 22, 1 << 18) * 8:
        meter.add(size, 0.001 + size / 2e9)
    cost = meter.cost()
    assert cost.fixed_s == pytest.approx(0.001, rel=0.2)
    assert 1 / cost.s_per_byte == pytest.approx(2e9, rel=0.05)


def test_the_pacer_measures_what_it_is_told():
    pacer = Pacer(LAYOUT)
    assert pacer.group("reader", 64) == 1
    for layer in range(12):  # 64 pages are 1 MiB; 100 us per layer, of which the link needs 11 ms
        pacer.produced(ONE, layer, layer + 1, 0, 64, layer * 1e-4)
    for seq, size in itertools.islice(zip(itertools.count(), itertools.cycle((1 << 20, 1 << 21))), 10):
        pacer.announced(ONE, seq, size, float(seq))
        pacer.answered("reader", ONE, seq, seq + 0.001 + size / 1e8)
    assert pacer.group("reader", 64) == 12
    assert pacer.group("another", 64) == 1
    two = Attempt("another", 1)
    for layer in range(12):  # now a layer takes 100 ms
        pacer.produced(two, layer, layer + 1, 0, 64, 10 + layer * 0.1)
    assert pacer.group("reader", 64) == 1
    pacer.disconnected("reader")
    assert pacer.group("reader", 64) == 1


def test_announcements_that_wait_for_each_other_are_not_measured():
    pacer = Pacer(LAYOUT)
    for layer in range(2):
        pacer.produced(ONE, layer, layer + 1, 0, 64, layer * 1e-4)
    pacer.announced(ONE, 0, 1 << 20, 0.0)
    pacer.announced(ONE, 1, 1 << 20, 0.0)
    pacer.answered("reader", ONE, 1, 9.0)
    assert pacer.group("reader", 64) == 1
    pacer.answered("reader", ONE, 0, 0.01)
    assert pacer.group("reader", 64) == 12
    pacer.ended(ONE)
    pacer.answered("reader", ONE, 0, 50.0)
    assert pacer.group("reader", 64) == 12
