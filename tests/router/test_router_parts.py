"""The router's smaller parts, each by itself."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_sim import Sim, VirtualClock

from baton.core.errors import InvalidRequest, PromptTooLong
from baton.core.hashing import block_hashes, root_hash
from baton.prefix.records import BlockBatch
from baton.router import convert
from baton.router.admission import WaitEstimate
from baton.router.fair_queue import FairQueue
from baton.router.fleet import Fleet
from baton.router.index import BlockNames, PrefixIndex
from baton.router.outbox import MAX_EVENTS, Outbox
from baton.router.policy_facts import Held
from baton.router.ports import AgentInfo, Assignment, Fetch, Finish, Load, Offer, RunAll
from baton.router.request import Submission
from baton.router.settings import RouterSettings
from baton.router.validation import submission
from baton.rpc.v1 import common_pb2, router_pb2, worker_pb2
from baton.testing.fake_worker import LAYOUT

ASKED = Submission("r", "toy", [1], None, 1.0)  # type: ignore[arg-type]


class TestFairQueue:
    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), max_size=30), st.integers(0, 1 << 30))
    def test_order(self, pushes: list[tuple[str, int]], seed: int) -> None:
        """Against a model: priorities first, tenants in turn, each tenant in order; removals anywhere."""
        choose = random.Random(seed)
        queue: FairQueue[int] = FairQueue()
        expected: dict[int, deque[tuple[str, deque[int]]]] = {0: deque(), 1: deque()}
        for item, (tenant, priority) in enumerate(pushes):
            queue.push(item, tenant, priority)
            tenants = dict(expected[priority])
            if tenant not in tenants:
                expected[priority].append((tenant, deque([item])))
            else:
                tenants[tenant].append(item)
        while len(queue):
            level = expected[1] or expected[0]
            tenant, items = level.popleft()
            if choose.random() < 0.2:
                victim = choose.choice(items)
                assert queue.remove(victim, tenant, 1 if expected[1] or level is expected[1] else 0)
                items.remove(victim)
                if items:
                    level.appendleft((tenant, items))
                continue
            assert queue.peek() == items[0]
            assert queue.pop() == items.popleft()
            if items:
                level.append((tenant, items))
        assert queue.peek() is None
        with pytest.raises(IndexError):
            queue.pop()

    def test_returned_ones_come_first(self) -> None:
        queue: FairQueue[str] = FairQueue()
        queue.push("new", "a", 9)
        queue.push_front("old")
        assert list(queue) == ["old", "new"]
        assert queue.pop() == "old"
        queue.push_front("again")
        assert queue.remove("again", "a", 9) and not queue.remove("again", "a", 9)
        assert len(queue) == 1


def test_wait_estimate_follows_the_pace() -> None:
    estimate = WaitEstimate()
    assert estimate.wait_s(5) is None
    for now in range(10):
        estimate.left(now * 2.0, others_wait=True)
    assert estimate.wait_s(5) == pytest.approx(10.0)
    estimate.left(100.0, others_wait=False)
    estimate.left(200.0, others_wait=True)
    assert estimate.wait_s(5) == pytest.approx(10.0), "idle time is not pace"


class TestIndex:
    def test_names_are_made_as_far_as_asked(self) -> None:
        tokens = list(range(100))
        names = BlockNames(LAYOUT, tokens, ASKED)
        root = root_hash(LAYOUT.model_revision, LAYOUT.fingerprint)
        expected = block_hashes(root, tokens, LAYOUT.page_size)
        assert names.first(2) == expected[:2]
        assert names.first(100) == expected
        tokens += range(100, 140)
        assert names.first(100) == block_hashes(root, tokens, LAYOUT.page_size), "emitted tokens name further blocks"

    def test_salt_and_lora_are_part_of_the_name(self) -> None:
        plain = BlockNames(LAYOUT, range(16), ASKED).first(1)
        salted = Submission("r", "toy", [1], None, 1.0, cache_salt="s")  # type: ignore[arg-type]
        tuned = Submission("r", "toy", [1], None, 1.0, lora="l")  # type: ignore[arg-type]
        assert len({plain[0], *(BlockNames(LAYOUT, range(16), asked).first(1)[0] for asked in (salted, tuned))}) == 3

    async def test_long_matches_and_epochs(self) -> None:
        sim = Sim(prefill=2)
        tokens = list(range(16 * 1000))
        names = BlockNames(LAYOUT, tokens, ASKED).first(1000)
        mirror = sim.index.mirror(sim["p0"].info)
        mirror.apply(BlockBatch("p0", sim["p0"].epoch, 1, b"".join(names[:700])))
        mirror.apply(BlockBatch("p1", sim["p1"].epoch + 1, 1, b"".join(names)))
        infos = [sim["p0"].info, sim["p1"].info]
        assert sim.index.held(infos, {}, tokens, ASKED) == {"p0": Held(700 * 16)}, "p1's are of another incarnation"
        cold = {}
        assert sim.index.held(infos, cold, tokens[1:], ASKED) == {}
        assert len(cold[LAYOUT.fingerprint]._hashes) <= 128, "a cold prompt is not hashed to its end"

    async def test_blocks_count_by_tier(self) -> None:
        sim = Sim(prefill=1)
        tokens = list(range(16 * 300))
        names = BlockNames(LAYOUT, tokens, ASKED).first(300)
        parts = [b"".join(names[start:end]) for start, end in ((0, 100), (100, 150), (150, 290))]
        batch = BlockBatch("p0", sim["p0"].epoch, 1, parts[0], host=parts[1], disk=parts[2])
        sim.index.mirror(sim["p0"].info).apply(batch)
        assert sim.index.held([sim["p0"].info], {}, tokens, ASKED) == {"p0": Held(1600, 800, 2240)}

    def test_the_router_uses_it(self) -> None:
        sim = Sim(prefill=2, decode=1)
        prompt = list(range(160))
        names = BlockNames(LAYOUT, prompt, ASKED).first(10)
        sim.index.mirror(sim["p1"].info).apply(BlockBatch("p1", sim["p1"].epoch, 1, b"".join(names)))
        for _ in range(4):
            _, caller = sim.submit(prompt, 2)
            sim.run()
            assert caller.usage is not None and caller.usage.prefill_worker == "p1"


class TestFleet:
    def test_decisions_count_until_reports_show_them(self) -> None:
        sim = Sim(prefill=0, decode=0, unified=1)
        sim["u0"].engine.stalled = True
        sim.submit(list(range(100)), 2)
        facts = sim.fleet.facts("toy")[0]
        assert (facts.pending_requests, facts.pending_extend_tokens, facts.pending_pages) == (1, 100, 7)
        sim["u0"].report()
        assert sim.fleet.facts("toy")[0].pending_requests == 1, "that report may have been on its way already"
        sim["u0"].report()
        facts = sim.fleet.facts("toy")[0]
        assert (facts.pending_requests, facts.waiting, facts.waiting_extend_tokens) == (0, 1, 100)

    def test_silence_makes_suspect(self) -> None:
        sim = Sim(prefill=0, decode=0, unified=2, suspect_s=3.0)
        sim.clock.advance(4.0)
        sim["u1"].report()
        for _ in range(3):
            request, _ = sim.submit()
            assert request.run is not None and request.run.placement.prefill == "u1"

    def test_unknown_roles_and_changed_identities_are_refused(self) -> None:
        fleet = Fleet(VirtualClock().time, 5.0)
        sim = Sim()
        odd = type(sim["p0"])(sim, "x", "verifier")
        assert not fleet.on_description(odd, odd.info)
        assert fleet.on_description(sim["p0"], sim["p0"].info)
        assert not fleet.on_description(sim["p0"], sim["d0"].info)
        fleet.on_load(sim["d0"], Load())
        fleet.on_disconnected(sim["d0"])

    def test_an_agent_that_comes_later_makes_the_pair(self) -> None:
        sim = Sim(prefill=0)
        prefill = sim.add("p0", "prefill", agent=False)
        request, _ = sim.submit()
        assert request.run is not None and request.run.placement.decode is None
        prefill.options["agent"] = True
        assert sim.fleet.on_description(prefill, prefill.info)
        request, _ = sim.submit()
        assert request.run is not None and request.run.placement.decode == "d0"


class TestConvert:
    def test_frames(self) -> None:
        frame = worker_pb2.StepFrame(refs=[7, 9, 8], counts=[2, 0, 1], token_ids=[1, 2, 3], finish=[0, 1, 2])
        frame.logprobs.add(ref=8).tokens.add(token_id=3, logprob=-1.0)
        rows = dict(convert.rows(frame))
        assert [(ref, list(row.token_ids), row.finish) for ref, row in rows.items()] == [
            (7, [1, 2], None), (9, [], Finish.STOP), (8, [3], Finish.LENGTH),
        ]  # fmt: skip
        assert rows[8].logprobs[0].token_id == 3 and rows[7].logprobs == ()

    @pytest.mark.parametrize(
        "broken", [{"counts": [1]}, {"token_ids": [1, 2, 3]}, {"finish": []}, {"counts": [1, 2]}, {"refs": [1, 2, 3]}]
    )
    def test_frames_that_do_not_fit_together(self, broken: dict[str, list[int]]) -> None:
        fields = {"refs": [1, 2], "counts": [1, 1], "token_ids": [5, 6], "finish": [0, 0]} | broken
        with pytest.raises(ValueError):
            list(convert.rows(worker_pb2.StepFrame(**fields)))

    def test_assignments(self) -> None:
        from baton.core.attempt import Attempt
        from baton.core.sampling import SamplingParams

        agent = AgentInfo("a:1", 5, "ucx")
        for stage, kind in ((RunAll(), "run_all"), (Offer("d"), "offer"), (Fetch("p", 3, agent), "fetch")):
            assignment = Assignment(
                Attempt("r", 2), [1, 2, 3], 2, SamplingParams(max_tokens=4), stage, 0.0001, 1, "salt", "lora"
            )
            message = convert.assign_message(11, assignment).assign
            assert (message.ref, message.attempt.n, message.WhichOneof("stage")) == (11, 2, kind)
            assert message.deadline_ms == 1, "0 would mean none"
            assert (list(message.token_ids), message.prompt_tokens) == ([1, 2, 3], 2)
        assert (message.fetch.worker_id, message.fetch.worker_epoch, message.fetch.agent.epoch) == ("p", 3, 5)


class TestValidation:
    def message(self, **fields: object) -> router_pb2.GenerateRequest:
        defaults: dict[str, object] = {
            "model": "toy", "prompt_token_ids": [1, 2], "sampling": common_pb2.Sampling(max_tokens=3),
        }  # fmt: skip
        return router_pb2.GenerateRequest(**(defaults | fields))  # type: ignore[arg-type]

    def test_defaults(self) -> None:
        asked = submission(self.message(), RouterSettings(), Sim().fleet)
        assert asked.request_id and asked.sampling.seed, "the router makes both"
        assert asked.deadline_s == RouterSettings().deadline_s
        assert submission(self.message(deadline_ms=1500), RouterSettings(), Sim().fleet).deadline_s == 1.5

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"model": ""}, "model"),
            ({"prompt_token_ids": []}, "prompt_token_ids"),
            ({"sampling": common_pb2.Sampling()}, "max_tokens"),
            ({"sampling": common_pb2.Sampling(max_tokens=1, temperature=-1)}, "temperature"),
            ({"sampling": common_pb2.Sampling(max_tokens=1, top_p=2)}, "top_p"),
            ({"request_id": "x" * 300}, "request_id"),
            ({"tenant": "x" * 300}, "tenant"),
        ],
    )
    def test_mistakes_name_the_field(self, fields: dict[str, object], param: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            submission(self.message(**fields), RouterSettings(), Sim().fleet)
        assert caught.value.param == param

    def test_too_long_names_limit_and_length(self) -> None:
        with pytest.raises(PromptTooLong, match=r"5000 tokens.*at most 4096"):
            submission(self.message(prompt_token_ids=[1] * 5000), RouterSettings(), Sim().fleet)
        with pytest.raises(PromptTooLong):
            submission(self.message(prompt_token_ids=[1] * 4096), RouterSettings(), Sim().fleet)
        submission(self.message(prompt_token_ids=[1] * 4095), RouterSettings(), Sim().fleet)

    def test_a_pool_smaller_than_the_context_is_the_limit(self) -> None:
        small = Sim(prefill=0, decode=0)
        worker = small.add("u0", "unified", max_context_tokens=1 << 20)
        assert worker.info.token_limit == 1022 * LAYOUT.page_size
        with pytest.raises(PromptTooLong, match=str(worker.info.token_limit)):
            submission(self.message(prompt_token_ids=[1] * 17_000), RouterSettings(), small.fleet)


async def test_an_outbox_nobody_reads_overflows_once_and_stays_bounded() -> None:
    overflows: list[int] = []
    outbox = Outbox(on_overflow=lambda: overflows.append(1))
    event = router_pb2.GenerateEvent()
    for _ in range(MAX_EVENTS + 3):
        outbox.put(event)
    assert len(overflows) == 1
    assert len(await outbox.take()) == MAX_EVENTS


def test_without_redis_there_is_no_index() -> None:
    index = PrefixIndex(None)
    sim = Sim()
    assert index.held([sim["p0"].info], {}, list(range(100)), ASKED) == {}
    assert index.blocks == 0
