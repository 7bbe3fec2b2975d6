"""Pulls and loans alone: what they tell the agent and the engine, in every order of events."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from test_desks import A, FakeCounter, FakeEngine, request

from baton.core.attempt import Attempt
from baton.core.errors import HandoffFailed
from baton.core.hashing import HASH_BYTES
from baton.core.layout import CacheGroup, KvLayout
from baton.core.tiers import Tier
from baton.engine.api import Admitted, Loan, MovedOut, Reserved, Stage, StepOutput
from baton.kv import local
from baton.kv.local import (
    Abort,
    CancelFetch,
    Commit,
    Fetch,
    Fetched,
    FetchFailed,
    Offer,
    Produced,
    Released,
    Restore,
    Restored,
    RestoredPart,
    Wanted,
)
from baton.rpc.v1 import worker_pb2 as pb
from baton.worker import metrics
from baton.worker.loans import Loans
from baton.worker.pull_meter import FORGET_S, PullMeter
from baton.worker.pulls import Pulls
from baton.worker.tiering import Tiering

LAYOUT = KvLayout("toy", "float32", layers=2, page_size=4, kv_heads=1, head_dim=4)
HASHES = [bytes([n]) * HASH_BYTES for n in range(3)]


class Engine(FakeEngine):
    """Holds `loan` for everybody."""

    def __init__(self) -> None:
        super().__init__()
        self.loan = Loan([4, 9, 2], [1, 1, 5], 12)

    def pulled(self, attempt: Attempt, tokens: int) -> None:
        self.calls.append(("pulled", attempt, tokens))

    def lend(self, attempt: Attempt, block_hashes: list[bytes]) -> Loan:
        self.calls.append(("lend", attempt, block_hashes))
        return self.loan

    def tiered(self, block_hashes: list[bytes], tier: Tier | None) -> None:
        self.calls.append(("tiered", block_hashes, tier))

    def moved(self, batch: int) -> None:
        self.calls.append(("moved", batch))

    def use_tier(self, free_pages: int) -> None:
        self.calls.append(("use_tier", free_pages))

    def take_back(self, attempt: Attempt) -> None:
        self.calls.append(("take_back", attempt))


@pytest.fixture
def counter() -> FakeCounter:
    counter = FakeCounter()
    counter.engine = Engine()
    return counter


def assign(worker_id: str = "p1", address: str = "127.0.0.1:7") -> pb.Assign:
    agent = pb.AgentDescription(address=address, epoch=3, transport="tcp")
    return pb.Assign(pull=pb.Pull(worker_id=worker_id, worker_epoch=9, agent=agent, tokens=16))


def restored(tokens: int) -> Restored:
    parts = (RestoredPart(Tier.HOST, 512, 10.0, 10.1), RestoredPart(Tier.DISK, 256, 10.1, 10.3))
    return Restored(A, tokens, parts)


def fetched(tokens: int) -> Fetched:
    return Fetched(A, tokens, b"", 4096, 10.0, 10.2, 10.4, 10.5)


class TestPulls:
    @pytest.fixture
    def pulls(self, counter: FakeCounter) -> Pulls:
        pulls = Pulls(counter, LAYOUT, "me", timeout_s=1.5)
        pulls.on_agent_connected()
        assert pulls.assigned(request(Stage.RUN_ALL), assign()).pull_tokens == 16
        return pulls

    def reserve(self, pulls: Pulls) -> None:
        pulls.on_step(StepOutput(reserved=[Reserved(A, 1, [5, 9, 6], HASHES, tokens=16)]))

    def test_reserved_pages_are_asked_for_then_used(self, pulls, counter):
        self.reserve(pulls)
        (sent,) = counter.sent
        assert isinstance(sent, Fetch)
        assert (sent.first_page, sent.tokens, sent.timeout_s) == (1, 16, 1.5)
        assert (sent.source_worker_id, sent.source_worker_epoch, sent.source_agent_epoch) == ("p1", 9, 3)
        assert sent.block_hashes == b"".join(HASHES)
        assert np.frombuffer(sent.page_ids, "<u4").tolist() == [5, 9, 6]
        assert counter.engine.calls == []
        assert pulls.on_agent_message(fetched(16))
        assert counter.engine.calls == [("pulled", A, 16)]
        assert pulls.meter.bytes_per_s == pytest.approx(4096 / 0.5)

    @pytest.mark.parametrize(("message", "tokens"), [(fetched(8), 8), (FetchFailed(A, "not_held: nothing"), 0)])
    def test_what_does_not_come_is_computed(self, pulls, counter, message, tokens):
        self.reserve(pulls)
        assert pulls.on_agent_message(message)
        assert counter.engine.calls == [("pulled", A, tokens)]
        assert not counter.failed

    def test_a_failure_is_a_price(self, pulls):
        self.reserve(pulls)
        pulls.on_agent_message(FetchFailed(A, "stall: nothing for 5 s"))
        assert pulls.meter.wait_s > 0

    def test_other_messages_are_not_its_business(self, pulls):
        for message in (fetched(16), FetchFailed(A, "x"), Released(A, "released", "")):
            assert not pulls.on_agent_message(message)

    def test_a_prefix_that_turns_out_to_be_here_is_not_pulled(self, pulls, counter):
        pulls.on_step(StepOutput(admitted=[Admitted(A, 16, 0.1)]))
        assert counter.sent == []

    def test_cancelled_while_reading_waits_for_quiet(self, pulls, counter):
        self.reserve(pulls)
        counter.done(A)
        pulls.cancelled(A)
        assert counter.sent[1:] == [CancelFetch(A, "cancelled")]
        assert counter.engine.calls == []
        pulls.on_agent_message(FetchFailed(A, "cancelled: x"))
        assert counter.engine.calls == [("pulled", A, 0)]

    def test_cancelled_before_the_agent_knew(self, pulls, counter):
        counter.done(A)
        self.reserve(pulls)
        pulls.cancelled(A)
        assert counter.sent == []
        assert counter.engine.calls == [("pulled", A, 0)]

    def test_lost_agent_keeps_pages_until_it_is_quiet(self, pulls, counter):
        self.reserve(pulls)
        counter.connected = False
        pulls.on_agent_lost()
        assert isinstance(counter.failed[0][1], HandoffFailed)
        assert counter.engine.calls == [("cancel", A)]
        pulls.on_agent_connected()
        assert counter.engine.calls == [("cancel", A), ("pulled", A, 0)]

    def test_decode_pulls_under_a_name_of_its_own(self, counter):
        """Prefill may pull for the same attempt from the same worker, where a loan has one reader."""
        pulls = Pulls(counter, LAYOUT, "me", timeout_s=1.5)
        pulls.on_agent_connected()
        assert pulls.assigned(request(Stage.FETCH), assign()).pull_tokens == 16
        self.reserve(pulls)
        (sent,) = counter.sent
        assert sent.attempt != A and sent.attempt.request_id.startswith(A.request_id) and sent.attempt.n == A.n
        assert not pulls.on_agent_message(fetched(16)), "this is about the handoff"
        pulls.cancelled(A)
        assert counter.sent[1:] == [CancelFetch(sent.attempt, "cancelled")]
        assert pulls.on_agent_message(FetchFailed(sent.attempt, "cancelled: cancelled"))
        assert counter.engine.calls == [("pulled", A, 0)]

    def test_reservation_after_the_agent_was_lost_is_computed(self, pulls, counter):
        counter.connected = False
        pulls.on_agent_lost()
        self.reserve(pulls)
        assert counter.engine.calls == [("pulled", A, 0)]
        assert not counter.failed

    @pytest.mark.parametrize("message", [pb.Assign(), assign(worker_id="me"), assign(address="")])
    def test_what_cannot_be_pulled_is_computed(self, pulls, message):
        assert pulls.assigned(request(Stage.RUN_ALL), message).pull_tokens == 0

    def test_without_an_agent_everything_is_computed(self, counter):
        pulls = Pulls(counter, LAYOUT, "me", timeout_s=1.5)
        assert pulls.assigned(request(Stage.OFFER), assign()).pull_tokens == 0


class TestRestores:
    """The engine says that the host tier has it."""

    @pytest.fixture
    def pulls(self, counter: FakeCounter) -> Pulls:
        pulls = Pulls(counter, LAYOUT, "me", timeout_s=1.5)
        pulls.on_agent_connected()
        return pulls

    def reserve(self, pulls: Pulls, extend_tokens_per_s: float = 0.0) -> None:
        reserved = Reserved(A, 1, [5, 9, 6], HASHES, [Tier.HOST, Tier.HOST, Tier.DISK], 16)
        pulls.on_step(StepOutput(reserved=[reserved]), extend_tokens_per_s)

    def test_it_is_asked_for_then_used(self, pulls, counter):
        self.reserve(pulls)
        (sent,) = counter.sent
        assert sent == Restore(A, 1, np.array([5, 9, 6], "<u4").tobytes(), b"".join(HASHES))
        assert pulls.on_agent_message(restored(16))
        assert counter.engine.calls == [("pulled", A, 16)]
        assert pulls.meter.bytes_per_s == 0
        rates = {tier: meter.bytes_per_s for tier, meter in pulls.prices.meters.items()}
        assert rates == {Tier.HOST: pytest.approx(5120), Tier.DISK: pytest.approx(1280)}

    @pytest.mark.parametrize(("message", "tokens"), [(restored(12), 12), (FetchFailed(A, "not_held: none"), 0)])
    def test_what_the_agent_lacks_is_computed(self, pulls, counter, message, tokens):
        self.reserve(pulls)
        pulls.on_agent_message(message)
        assert counter.engine.calls == [("pulled", A, tokens)]

    def test_it_has_a_span(self, pulls, counter, exporter):
        counter.trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        self.reserve(pulls)
        pulls.on_agent_message(restored(16))
        self.reserve(pulls)
        pulls.on_agent_message(FetchFailed(A, "not_held: none"))
        whole, failed = exporter.get_finished_spans()
        assert whole.name == failed.name == "worker.restore" and whole.parent.span_id == 0x00F067AA0BA902B7
        assert whole.attributes["baton.bytes"] == 768 and whole.end_time == 10_300_000_000
        assert [event.name for event in whole.events] == ["host read", "disk read"]
        assert whole.status.is_ok and not failed.status.is_ok and "not_held" in failed.status.description

    def measured(self, pulls: Pulls, host: float, disk: float) -> None:
        """So many bytes per second, without a wait; a block has 256 bytes and 4 tokens."""
        pulls.prices.meters[Tier.HOST].came(1000, 0.0, 1000 / host)
        pulls.prices.meters[Tier.DISK].came(1000, 0.0, 1000 / disk)

    @pytest.mark.parametrize(
        ("host", "disk", "pages"),
        [
            (1e6, 1e6, 3),
            (1e6, 300_000, 3),
            (1e6, 200_000, 2),
            (250_000, 1e6, 3),
            (100_000, 1e6, 0),
            (200_000, 200_000, 0),
        ],
    )
    def test_only_what_comes_sooner_than_it_is_computed_is_brought(self, pulls, counter, host, disk, pages):
        """Computing a block takes 1 ms, and so does bringing it at 256,000 bytes per second. Two are in memory, the
        third is on disk."""
        self.measured(pulls, host, disk)
        self.reserve(pulls, 4000.0)
        if not pages:
            assert counter.sent == [] and counter.engine.calls == [("pulled", A, 0)]
            return
        (sent,) = counter.sent
        assert sent.block_hashes == b"".join(HASHES[:pages]) and len(sent.page_ids) == 4 * pages
        fetched = metrics.restores.labels(outcome="fetched")._value
        before = fetched.get()
        pulls.on_agent_message(restored(4 + 4 * pages))
        assert fetched.get() == before + 1, "all of what was asked for"
        assert counter.engine.calls == [("pulled", A, 4 + 4 * pages)]

    def test_waiting_counts_too(self, pulls, counter):
        pulls.prices.came(10.0, [RestoredPart(Tier.HOST, 1 << 20, 10.4, 10.5)])
        assert pulls.prices.meters[Tier.HOST].wait_s == pytest.approx(0.4)
        self.reserve(pulls, 4000.0)
        assert counter.sent == []

    def test_each_tier_waits_for_itself(self, pulls):
        parts = [RestoredPart(Tier.HOST, 100, 10.1, 10.5), RestoredPart(Tier.DISK, 100, 10.7, 10.9)]
        pulls.prices.came(10.0, parts)
        waits = [pulls.prices.meters[tier].wait_s for tier in (Tier.HOST, Tier.DISK)]
        assert waits == [pytest.approx(0.1), pytest.approx(0.2)]

    def test_a_cancelled_one_just_ends(self, pulls, counter):
        self.reserve(pulls)
        counter.done(A)
        pulls.cancelled(A)
        assert len(counter.sent) == 1 and counter.engine.calls == []
        pulls.on_agent_message(restored(16))
        assert counter.engine.calls == [("pulled", A, 16)]


class TestPagesOfSeveralKinds:
    """Six pages, without one of which the others are of no use: they save 12 tokens."""

    @pytest.fixture
    def pulls(self, counter: FakeCounter) -> Pulls:
        pulls = Pulls(counter, replace(LAYOUT, groups=(CacheGroup("state", 6, (0, 1)),)), "me", timeout_s=1.5)
        pulls.on_agent_connected()
        return pulls

    def reserve(self, pulls: Pulls, tokens_per_s: float = 0.0) -> None:
        reserved = Reserved(
            A, 0, [5, 9, 6, 7, 8, 4], [bytes([n]) * HASH_BYTES for n in range(6)], [Tier.HOST] * 6, 16, 4
        )
        pulls.on_step(StepOutput(reserved=[reserved]), tokens_per_s)

    @pytest.mark.parametrize(("came", "tokens"), [(6, 16), (5, 0), (1, 0)])
    def test_all_or_nothing(self, pulls, counter, came, tokens):
        self.reserve(pulls)
        (sent,) = counter.sent
        assert len(sent.page_ids) == 6 * 4
        pulls.on_agent_message(restored(4 * came))
        assert counter.engine.calls == [("pulled", A, tokens)]

    @pytest.mark.parametrize(("bytes_per_s", "asks"), [(500_000, False), (520_000, True)])
    def test_only_when_sooner_than_computed(self, pulls, counter, bytes_per_s, asks):
        """12 tokens take 3 ms, and so do six pages of 256 bytes at 512,000 bytes per second."""
        pulls.prices.meters[Tier.HOST].came(1000, 0.0, 1000 / bytes_per_s)
        self.reserve(pulls, 4000.0)
        assert bool(counter.sent) is asks
        assert counter.engine.calls == ([] if asks else [("pulled", A, 0)])


class TestTiering:
    BATCH = MovedOut(4, HASHES, [7, 3, 5])

    @pytest.fixture
    def tiering(self, counter: FakeCounter) -> Tiering:
        tiering = Tiering(counter, pages=160)
        tiering.on_agent_connected(100)
        assert counter.engine.calls == [("use_tier", 20)]
        counter.engine.calls.clear()
        return tiering

    def test_pages_are_reused_when_they_are_copied(self, tiering, counter):
        tiering.on_step(StepOutput(moved_out=[self.BATCH]))
        assert counter.sent == [local.MoveOut(4, np.array([7, 3, 5], "<u4").tobytes(), b"".join(HASHES))]
        assert counter.engine.calls == []
        assert tiering.on_agent_message(local.Placed(Tier.DISK, HASHES[1] + HASHES[0]))
        assert tiering.on_agent_message(local.Placed(None, HASHES[2]))
        assert tiering.on_agent_message(local.MovedOut(4))
        assert counter.engine.calls == [
            ("tiered", [HASHES[1], HASHES[0]], Tier.DISK),
            ("tiered", [HASHES[2]], None),
            ("moved", 4),
        ]
        assert tiering.on_agent_message(local.MovedOut(4)), "and once only"
        assert len(counter.engine.calls) == 3

    def test_without_an_agent_the_blocks_are_lost(self, tiering, counter):
        counter.connected = False
        tiering.on_step(StepOutput(moved_out=[self.BATCH]))
        assert counter.engine.calls == [("moved", 4), ("tiered", HASHES, None)]

    def test_a_lost_agent_keeps_pages_until_it_is_quiet(self, tiering, counter):
        tiering.on_step(StepOutput(moved_out=[self.BATCH]))
        tiering.on_agent_lost()
        assert counter.engine.calls == [("use_tier", 0)]
        tiering.on_agent_connected(0)
        assert counter.engine.calls == [("use_tier", 0), ("moved", 4)]


class TestLoans:
    @pytest.fixture
    def loans(self, counter: FakeCounter) -> Loans:
        return Loans(counter, LAYOUT)

    def test_what_is_held_is_lent_until_released(self, loans, counter):
        assert loans.on_agent_message(Wanted(A, 1, b"".join(HASHES)))
        offer, produced, commit = counter.sent
        assert offer == Offer(A, 12)
        assert isinstance(produced, Produced)
        assert (produced.layer_start, produced.layer_end, produced.page_start) == (0, 2, 0)
        assert np.frombuffer(produced.page_ids, "<u4").tolist() == [4, 9, 2]
        assert np.frombuffer(produced.generations, "<u4").tolist() == [1, 1, 5]
        assert isinstance(commit, Commit) and (commit.tokens, commit.state) == (12, b"")
        assert counter.engine.calls == [("lend", A, HASHES)]
        assert loans.on_agent_message(Released(A, "released", ""))
        assert counter.engine.calls[1:] == [("take_back", A)]

    @pytest.mark.parametrize("pages", [[], [4], [4, 9]])
    def test_a_prefix_that_is_of_no_use_is_not_lent(self, loans, counter, pages):
        counter.engine.loan = Loan(pages, [1] * len(pages), 4 * len(pages))
        assert loans.on_agent_message(Wanted(A, 2, HASHES[2]))
        assert isinstance(counter.sent[0], Abort) and len(counter.sent) == 1
        assert counter.engine.calls[1:] == [("take_back", A)]
        assert not loans.on_agent_message(Released(A, "released", "")), "an offer of that name is the desk's"

    def test_a_loan_has_one_reader(self, loans, counter):
        loans.on_agent_message(Wanted(A, 0, HASHES[0]))
        sent = len(counter.sent)
        loans.on_agent_message(Wanted(A, 0, HASHES[0]))
        assert len(counter.sent) == sent and counter.engine.calls == [("lend", A, [HASHES[0]])]

    def test_a_new_agent_frees_what_was_lent(self, loans, counter):
        loans.on_agent_message(Wanted(A, 0, HASHES[0]))
        loans.on_agent_connected()
        loans.on_agent_connected()
        assert counter.engine.calls[1:] == [("take_back", A)]


def test_the_price_of_a_pull_is_smoothed_and_forgotten():
    now = [100.0]
    meter = PullMeter(lambda: now[0])
    assert (meter.wait_s, meter.bytes_per_s) == (0, 0)
    meter.came(1000, 0.4, 0.1)
    assert (meter.wait_s, meter.bytes_per_s) == (0.4, 10_000)
    meter.came(2000, 0.2, 0.1)
    assert meter.wait_s == pytest.approx(0.35) and meter.bytes_per_s == pytest.approx(12_500)
    meter.failed(2.35)
    assert meter.wait_s == pytest.approx(0.85)
    now[0] += FORGET_S
    assert (meter.wait_s, meter.bytes_per_s) == (0, 0)
    meter.failed(0.1)
    assert (meter.wait_s, meter.bytes_per_s) == (0.1, 0)


def test_an_older_workers_fetch_is_no_pull():
    """Messages between agents and workers of different versions: a field that is not sent has its default."""
    fields = msgspec.to_builtins(Fetch(A, "x:1", 1, "w", 2, 4, 0, b"", 1.0))
    assert msgspec.convert(fields[:-1], Fetch).block_hashes == b""
