"""Back-pressure and fairness: no request waits for all of another's bytes, and nothing grows without bound."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from agent_harness import LAYOUT as AGENT_LAYOUT
from agent_harness import attempts, expect_fetched, page_range, pair
from hypothesis import given
from hypothesis import strategies as st

from baton.core.attempt import Attempt
from baton.core.layout import KvLayout
from baton.kv import handoff as h
from baton.kv.handoff.credits import PairCredits
from baton.kv.tcp import TcpTransport
from baton.kv.turns import FORGET, LEAST_BYTES, SPAN_S, Turns

LAYOUT = KvLayout("m", "float16", layers=8, page_size=16, kv_heads=8, head_dim=128)  # 64 KiB pages
POOL_PAGES = 4096
EPOCH = 7
MIB = 1 << 20
SMALL, LARGE = Attempt("small"), Attempt("large")


# Turns: which read starts


def test_requests_take_turns_and_keep_their_own_order():
    turns: Turns[str, str] = Turns(10)
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        turns.add(item[0], item, 10)
    order = []
    while (item := turns.next(0.0)) is not None:
        assert turns.next(0.0) is None  # the bytes of one fill the limit
        order.append(item)
        turns.ended(10, 10, 0.0)
    assert order == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_late_small_request_waits_for_one_read_of_each_other():
    turns: Turns[str, str] = Turns(1)
    for item in ("a1", "a2", "b1", "b2"):
        turns.add(item[0], item, 1)
    assert turns.next(0.0) == "a1"
    turns.add("small", "small", 1)
    turns.ended(1, 1, 0.0)
    rest = []
    while (item := turns.next(0.0)) is not None:
        rest.append(item)
        turns.ended(1, 1, 0.0)
    assert rest == ["b1", "a2", "small", "b2"]


def test_dropped_reads_are_named_and_never_start():
    turns: Turns[str, str] = Turns(100)
    for item in ("a1", "a2", "b1"):
        turns.add(item[0], item, 10)
    assert turns.next(0.0) == "a1"
    assert turns.drop("a") == ["a2"] and turns.drop("a") == []
    assert turns.next(0.0) == "b1" and turns.next(0.0) is None


def test_one_read_is_always_allowed_however_large():
    turns: Turns[str, str] = Turns(10)
    turns.add("a", "a1", 1000)
    turns.add("a", "a2", 1000)
    assert turns.next(0.0) == "a1" and turns.next(0.0) is None
    turns.ended(1000, 0, 1.0)  # it failed
    assert turns.next(1.0) == "a2"


@pytest.mark.parametrize(("bytes_per_s", "limit"), [(125e6, LEAST_BYTES), (400e6, 400e6 * SPAN_S), (10e9, 64 * MIB)])
def test_no_more_is_in_flight_than_keeps_the_link_busy(bytes_per_s: float, limit: float):
    turns: Turns[int, int] = Turns(64 * MIB)
    assert turns.limit_bytes == LEAST_BYTES
    now = 0.0
    for n in range(40):
        turns.add(0, n, MIB)
        assert turns.next(now) == n
        now += MIB / bytes_per_s
        turns.ended(MIB, MIB, now)
    assert turns.limit_bytes == pytest.approx(limit, rel=0.01)
    now += 100.0  # an idle link has not become slow
    turns.add(0, 40, MIB)
    turns.next(now)
    turns.ended(MIB, MIB, now + MIB / bytes_per_s)
    assert turns.limit_bytes == pytest.approx(limit, rel=1.1 - FORGET)


# Credits of a pair: whose announcement goes out


@given(st.integers(1, 4), st.lists(st.integers(0, 4), max_size=60))
def test_credits_are_never_exceeded_nor_lost(most: int, takers: list[int]):
    credits, held = PairCredits(most), []
    for taker in takers:
        if taker == 4 and held:
            held.pop(0)
            credits.give()
        elif credits.take(Attempt(str(taker))):
            held.append(taker)
        while (attempt := credits.next_turn()) is not None:
            assert credits.take(attempt)
            held.append(int(attempt.request_id))
        assert len(held) <= most
    for _ in held:
        credits.give()
    taken = 0
    while (attempt := credits.next_turn()) is not None:
        taken += credits.take(attempt)
    new = Attempt("new")
    while credits.take(new):
        taken += 1
    assert taken == most


def source_side(**limits: float) -> h.SourceSide:
    return h.SourceSide(LAYOUT, POOL_PAGES, EPOCH, lambda *place: 0, h.SourceLimits(**limits))


def produce_all(side: h.SourceSide, attempt: Attempt, first: int, pages: int, now: float = 0.0) -> list[h.Action]:
    """All layers, and the commit; pool pages `first ...`."""
    ids, ones = np.arange(first, first + pages, dtype=np.uint32), np.ones(pages, np.uint32)
    actions: list[h.Action] = []
    for layer in range(LAYOUT.layers):
        actions += side.produced(attempt, layer, layer + 1, 0, ids, ones, 0.0, now)
    return actions + side.commit(attempt, pages * LAYOUT.page_size, b"", 0.0, now)


def announced(actions: list[h.Action]) -> list[tuple[Attempt, int]]:
    return [(action.attempt, action.announcement.seq) for action in actions if isinstance(action, h.SendAnnounce)]


def test_a_source_announces_in_turn_to_each_reader():
    side = source_side(pair_credits=2, max_announce_bytes=MIB)
    one, two, other = Attempt("one"), Attempt("two"), Attempt("other")
    sent = []
    for n, (attempt, peer) in enumerate([(one, "peer"), (two, "peer"), (other, "another peer")]):
        side.offer(attempt, 16 * LAYOUT.page_size, 0.0)
        side.open(peer, attempt, 0, EPOCH, 4, 0.0)
        sent += announced(produce_all(side, attempt, 2 + 16 * n, 16))
    # `one` has taken both credits of its pair, and waits first for the next; another pair has its own
    assert sent == [(one, 0), (one, 1), (other, 0), (other, 1)]
    order, waiting = [], [(one, 0), (one, 1)]
    while waiting:
        attempt, seq = waiting.pop(0)
        new = announced(side.read_done("peer", attempt, seq, 0.0))
        order += new
        waiting += new
    assert [attempt for attempt, _ in order[:8]] == [one, two] * 4
    assert {(attempt, seq) for attempt, seq in order} >= {(two, 0), (two, 7), (one, 7)}


def test_a_handoff_that_ends_gives_its_credits_to_those_that_wait():
    side = source_side(pair_credits=2, max_announce_bytes=MIB)
    for n, attempt in enumerate((LARGE, SMALL)):
        side.offer(attempt, 16 * LAYOUT.page_size, 0.0)
        side.open("peer", attempt, 0, EPOCH, 4, 0.0)
        produce_all(side, attempt, 2 + 16 * n, 16)
    assert announced(side.close("peer", LARGE, False, "gave up")) == [(SMALL, 0), (SMALL, 1)]
    assert side.outstanding == 2


def test_a_stuck_reader_costs_a_bounded_number_of_messages_and_its_leases_end():
    """However much is computed for it: a reader that does not answer gets no more than the pair's credits."""
    side = source_side(pair_credits=5, max_announce_bytes=MIB, lease_s=10.0)
    handoffs = [Attempt(f"r{n}") for n in range(50)]
    for attempt in handoffs:
        side.offer(attempt, 16 * LAYOUT.page_size, 0.0)
        side.open("stuck", attempt, 0, EPOCH, 4, 0.0)
    actions = [action for n, attempt in enumerate(handoffs) for action in produce_all(side, attempt, 2 + 16 * n, 16)]
    assert len(actions) == len(announced(actions)) == side.outstanding == 5
    side.offer(SMALL, 16, 0.0)  # another reader is not concerned
    side.open("lively", SMALL, 0, EPOCH, 4, 0.0)
    assert announced(produce_all(side, SMALL, 4000, 1)) == [(SMALL, seq) for seq in range(4)]
    assert side.next_deadline() == 10.0
    ended = side.tick(10.0)
    assert sum(isinstance(action, h.ReportReleased) for action in ended) == len(handoffs) + 1
    assert announced(ended) == [] and side.outstanding == side.active == 0


def test_a_small_request_passes_a_large_one_that_waits_for_pages():
    """The large one's reader has no pages and does not open it: the small one is announced, read and released."""
    side, reader = source_side(), h.ReaderSide(LAYOUT)
    for n, (attempt, pages) in enumerate([(LARGE, 512), (SMALL, 1)]):
        side.offer(attempt, pages * LAYOUT.page_size, 0.0)
        assert announced(produce_all(side, attempt, 2 + 600 * n, pages)) == []
    reader.connected("peer", EPOCH, POOL_PAGES)
    reader.fetch("peer", SMALL, LAYOUT.page_size, 0, np.array([9], np.uint32), EPOCH, 60.0, 0.0)
    (announce, commit) = side.open("peer", SMALL, 0, EPOCH, 4, 0.0)
    assert isinstance(announce, h.SendAnnounce) and isinstance(commit, h.SendCommit)
    reader.announced("peer", SMALL, announce.announcement, 0.0)
    reader.read_finished(SMALL, 0, 0, "", 0.0)
    assert any(isinstance(action, h.SendConfirm) for action in reader.recorded("peer", SMALL, commit.record, 0.0))


# A whole pair over a slow link, in virtual time


class SlowLink:
    """One source, one reader, and a link that moves one read at a time at `bytes_per_s`; messages take no time."""

    def __init__(self, bytes_per_s: float) -> None:
        self.now = 0.0
        self.ended: dict[Attempt, float] = {}
        self.rate = bytes_per_s
        self.source = source_side()
        self.reader = h.ReaderSide(LAYOUT, h.ReaderLimits(stall_timeout_s=0.5))
        self.reader.connected("peer", EPOCH, POOL_PAGES)
        self.turns: Turns[Attempt, h.StartRead] = Turns(64 * MIB)
        self.moving: list[h.StartRead] = []
        self.pages: Iterator[int] = itertools.count(2)

    def place(self, attempt: Attempt, pages: int) -> None:
        """A prompt that is computed already."""
        first = next(itertools.islice(self.pages, pages - 1, None)) - pages + 1
        self.act(self.source.offer(attempt, pages * LAYOUT.page_size, self.now))
        produce_all(self.source, attempt, first, pages, self.now)
        own = np.arange(first, first + pages, dtype=np.uint32)
        tokens = pages * LAYOUT.page_size
        self.act(self.reader.fetch("peer", attempt, tokens, 0, own, EPOCH, 600.0, self.now))

    def run(self) -> None:
        while self.moving:
            start = self.moving.pop(0)
            self.now += self.size(start) / self.rate
            self.act(self.reader.tick(self.now))
            self.turns.ended(self.size(start), self.size(start), self.now)
            self.act(self.reader.read_finished(start.attempt, start.seq, 0, "", self.now))
            self.start()

    def start(self) -> None:
        while (start := self.turns.next(self.now)) is not None:
            self.reader.read_started(start.attempt, start.seq, self.now)
            self.moving.append(start)

    def size(self, start: h.StartRead) -> int:
        return (start.layer_end - start.layer_start) * len(start.local_pages) * LAYOUT.page_bytes

    def act(self, actions: list[h.Action]) -> None:
        for action in actions:
            attempt = getattr(action, "attempt", None)
            match action:
                case h.SendOpen():
                    opening = action.first_page, action.worker_epoch, action.credits, self.now
                    self.act(self.source.open("peer", attempt, *opening))
                case h.SendAnnounce():
                    self.act(self.reader.announced("peer", attempt, action.announcement, self.now))
                case h.SendCommit():
                    self.act(self.reader.recorded("peer", attempt, action.record, self.now))
                case h.SendReadDone():
                    self.act(self.source.read_done("peer", attempt, action.seq, self.now))
                case h.SendConfirm():
                    self.act(self.source.confirm("peer", attempt, self.now))
                case h.SendConfirmed():
                    self.act(self.reader.confirmed("peer", attempt, action.alive, action.reason))
                case h.SendClose():
                    self.act(self.source.close("peer", attempt, action.released, action.reason))
                case h.StartRead():
                    self.turns.add(attempt, action, self.size(action))
                    self.start()
                case h.ReportFetched():
                    self.ended[attempt] = self.now
                case h.ReportFailed() | h.FencePeer():
                    raise AssertionError(action)


def test_on_a_slow_link_a_small_prompt_does_not_wait_for_the_large_ones_before_it():
    """1 Gbit/s, six prompts of 128 MiB under way: the small one has its fair share, and no wait counts as a stall."""
    link = SlowLink(125e6)
    large = [Attempt(f"large-{n}") for n in range(6)]
    for attempt in large:
        link.place(attempt, 256)
    link.place(SMALL, 4)
    link.run()
    assert set(link.ended) == {*large, SMALL}
    one_read = 8 * MIB / link.rate
    assert link.ended[SMALL] < (len(large) + 2) * 2 * one_read  # two announcements of each at the most, and its own
    assert min(link.ended[attempt] for attempt in large) > 5 * link.ended[SMALL]
    assert max(link.ended.values()) == pytest.approx((6 * 128 + 2) * MIB / link.rate)  # the link was never idle


# The same in the agents


async def test_agents_read_in_turn(tmp_path, monkeypatch):
    """A large handoff's reads wait; a small one that comes later is read after the next of them, not after all."""
    order: list[tuple[int, int]] = []  # (first pool page, layer)
    gate, honest = asyncio.Event(), TcpTransport.read

    async def read(self, key, layer_start, layer_end, local_pages, remote_pages):
        if remote_pages[0] >= 2:  # not the canary's
            order.append((int(remote_pages[0]), layer_start))
            await gate.wait()
        return await honest(self, key, layer_start, layer_end, local_pages, remote_pages)

    monkeypatch.setattr(TcpTransport, "read", read)
    settings = {"pair_bytes": 1, "announce_bytes": 8 * AGENT_LAYOUT.page_bytes}
    async with pair(tmp_path, **settings) as (source, reader):
        large, small = next(attempts), next(attempts)
        reader.fetch(large, source, source.hand_over(large, page_range(10, 8)), page_range(10, 8))
        async with asyncio.timeout(10):
            while not order:
                await asyncio.sleep(0.001)
        reader.fetch(small, source, source.hand_over(small, page_range(40, 1)), page_range(40, 1))
        await asyncio.sleep(0.05)
        gate.set()
        expect_fetched(await reader.answer(small), 1)
        expect_fetched(await reader.answer(large), 8)
    assert [page for page, _ in order].index(40) <= 2
    assert [layer for page, layer in order if page == 10] == [0, 1, 2, 3]
