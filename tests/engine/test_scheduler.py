"""Planning: who computes what in a step, who waits, who gives way. No model, no tensors."""

from __future__ import annotations

import random

import pytest

from baton.core.attempt import Attempt
from baton.core.errors import ConfigError
from baton.core.sampling import SamplingParams
from baton.engine.api import EngineRequest, Finish, Stage
from baton.engine.ledger import PageLedger
from baton.engine.plan import EngineConfig, StepPlan
from baton.engine.pool import PageAllocator
from baton.engine.request import Phase, RequestState
from baton.engine.scheduler import MAX_PASSES, Scheduler

PAGE = 4
SMALL = EngineConfig(max_running=8, max_batch_tokens=32, chunk_tokens=16, patience_s=2.0)


class Desk:
    """A scheduler whose steps are carried out by saying so; the drawn token is always 1."""

    def __init__(self, usable_pages: int = 64, config: EngineConfig = SMALL) -> None:
        self.ledger = PageLedger(PageAllocator(usable_pages + 2), PAGE)
        self.scheduler = Scheduler(self.ledger, config, logprob_chunk_tokens=8)
        self.now = 0.0
        self.arrivals = 0
        self.names: dict[str, RequestState] = {}

    def submit(
        self,
        name: str,
        tokens: list[int] | int,
        *,
        stage: Stage = Stage.RUN_ALL,
        priority: int = 0,
        max_tokens: int = 1 << 20,
        prompt_logprobs: int | None = None,
    ) -> RequestState:
        """`tokens` as a number: that many, in nobody else's words."""
        self.arrivals += 1
        token_ids = [1_000 * self.arrivals + i for i in range(tokens)] if isinstance(tokens, int) else tokens
        params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs)
        request = EngineRequest(Attempt(name), token_ids, len(token_ids), params, b"root", stage, priority)
        state = RequestState.of(request, self.arrivals, self.now, PAGE)
        self.names[name] = state
        self.scheduler.submit(state)
        return state

    def step(self) -> StepPlan:
        plan = self.scheduler.plan(self.now)
        assert plan is not None
        for row in plan.rows:
            self.scheduler.computed(row)
            if row.draws:
                row.request.append(1)
                if row.request.stage is Stage.OFFER:
                    self.scheduler.hold(row.request)
                elif row.request.output_len >= row.request.sampling.max_tokens:
                    self.scheduler.end(row.request)
        self.ledger.audit(self.scheduler.live)
        self.scheduler.audit()
        return plan

    def settle(self, *names: str) -> None:
        """Step until all of these decode."""
        while any(self.names[name].phase is not Phase.DECODING for name in names):
            self.step()

    def cache(self, tokens: list[int]) -> None:
        """Leave the blocks of `tokens` in the cache."""
        self.submit("cached", tokens, max_tokens=1)
        while self.scheduler.has_work:
            self.step()


def spans(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(row.request.attempt.request_id, row.start, row.end) for row in plan.rows]


def begun(plan: StepPlan) -> list[str]:
    return [request.attempt.request_id for request in plan.begun]


def test_a_long_prompt_is_computed_in_chunks_that_end_with_pages() -> None:
    desk = Desk()
    desk.submit("a", 37)
    assert [spans(desk.step()) for _ in range(4)] == [[("a", 0, 16)], [("a", 16, 32)], [("a", 32, 37)], [("a", 37, 38)]]


def test_decodes_come_first_and_prompts_share_the_rest_of_the_budget() -> None:
    desk = Desk()
    desk.submit("a", 5)
    desk.submit("b", 6)
    desk.settle("a", "b")
    desk.submit("c", 30)
    desk.submit("d", 30)
    assert spans(desk.step()) == [("a", 5, 6), ("b", 6, 7), ("c", 0, 16), ("d", 0, 12)]
    assert spans(desk.step()) == [("a", 6, 7), ("b", 7, 8), ("c", 16, 30), ("d", 12, 28)]


def test_logits_are_wanted_where_a_token_is_drawn_and_of_the_whole_prompt_if_asked() -> None:
    desk = Desk()
    desk.submit("a", 20)
    desk.submit("b", 10, prompt_logprobs=0)
    wanted = [[(row.logits_start, row.end) for row in desk.step().rows] for _ in range(3)]
    assert wanted == [[(16, 16), (0, 8)], [(19, 20), (8, 10)], [(20, 21), (10, 11)]]


def test_max_running_bounds_those_that_fetch_too_but_not_those_that_only_hold_pages() -> None:
    desk = Desk(config=EngineConfig(max_running=2, max_batch_tokens=32, chunk_tokens=16))
    desk.submit("offer", 5, stage=Stage.OFFER)
    desk.submit("fetch", 5, stage=Stage.FETCH)
    desk.submit("a", 5)
    assert begun(desk.step()) == ["offer", "fetch"]
    assert desk.names["offer"].phase is Phase.HELD
    assert begun(desk.step()) == ["a"]
    desk.submit("b", 5)
    assert begun(desk.step()) == []


def test_higher_priority_first_then_longest_cached_prefix_then_arrival() -> None:
    desk = Desk(config=EngineConfig(max_running=8, max_batch_tokens=16, chunk_tokens=8))
    shared = list(range(16))
    desk.cache(shared)
    desk.submit("old", 8)
    desk.submit("hit8", [*shared[:8], *range(500, 508)])
    desk.submit("hit16", [*shared, *range(600, 608)])
    desk.submit("urgent", 8, priority=1)
    assert begun(desk.step()) == ["urgent", "hit16"]
    assert begun(desk.step()) == ["hit8", "old"]


def test_nobody_is_passed_over_for_longer_than_the_patience() -> None:
    desk = Desk(config=EngineConfig(max_running=8, max_batch_tokens=16, chunk_tokens=8, patience_s=2.0))
    shared = list(range(16))
    desk.cache(shared)
    desk.submit("old", 40)
    admitted: list[str] = []
    for i in range(12):
        desk.submit(f"hit{i}", [*shared, *range(1_000 * i, 1_000 * i + 16)], max_tokens=1)
        desk.submit(f"more{i}", [*shared, *range(1_000 * i + 500, 1_000 * i + 516)], max_tokens=1)
        admitted += begun(desk.step())
        desk.now += 0.3
    assert desk.names["old"].phase is not Phase.WAITING
    assert 2 <= admitted.index("old") <= 2 * 8


def test_a_prompt_waits_while_another_computes_most_of_what_it_lacks() -> None:
    desk = Desk()
    shared = list(range(24))
    desk.submit("first", [*shared, 99])
    desk.submit("same", [*shared, 98])
    desk.submit("other", [*shared[:4], *range(500, 510)])
    plan = desk.step()
    assert begun(plan) == ["first", "other"]
    plan = desk.step()
    assert begun(plan) == []
    plan = desk.step()
    assert plan.admitted[0].cached_tokens == 24
    assert spans(plan)[-1] == ("same", 24, 25)


def test_an_urgent_prompt_does_not_wait_for_one_that_is_not() -> None:
    desk = Desk()
    desk.submit("first", list(range(24)))
    desk.step()
    desk.submit("urgent", list(range(24)), priority=1)
    assert begun(desk.step()) == ["urgent"]


def test_small_requests_pass_a_large_one_that_waits_for_pages_but_only_so_often() -> None:
    desk = Desk(usable_pages=20, config=EngineConfig(max_running=8, max_batch_tokens=64, chunk_tokens=64))
    desk.submit("holder", 40, stage=Stage.FETCH)  # has 10 pages for as long as its handoff takes
    desk.step()
    desk.submit("large", 40)  # needs 10, and one must be left for the one that will decode
    passed = 0
    for i in range(3 * MAX_PASSES):
        desk.submit(f"small{i}", 4, max_tokens=1)
        passed += len(begun(desk.step()))
    assert passed == MAX_PASSES
    desk.scheduler.end(desk.names["holder"])
    assert begun(desk.step())[0] == "large"


def test_admission_leaves_a_page_for_each_that_decodes() -> None:
    desk = Desk(usable_pages=6)
    desk.submit("a", 4)
    desk.settle("a")
    desk.step()  # a has 2 pages now
    desk.submit("b", 16)
    assert begun(desk.step()) == []
    assert not desk.names["b"].pages
    desk.submit("c", 12)
    assert begun(desk.step()) == ["c"]


def test_admission_leaves_a_page_for_each_newcomer_of_the_same_step() -> None:
    desk = Desk(usable_pages=4)
    desk.submit("a", 8)
    desk.submit("b", 8)
    assert begun(desk.step()) == ["a"]


def test_preemption_takes_from_the_least_important_and_most_recent() -> None:
    desk = Desk(usable_pages=8)
    desk.submit("high", 4, priority=1)
    desk.submit("old", 4)
    desk.submit("new", 4)
    desk.settle("high", "old", "new")
    seen: list[str] = []
    while len(seen) < 2:
        desk.step()
        seen += [
            name for name in ("new", "old", "high") if desk.names[name].phase is Phase.WAITING and name not in seen
        ]
    assert seen == ["new", "old"]
    assert desk.names["high"].phase is Phase.DECODING


def test_a_preempted_request_comes_back_with_its_tokens_and_is_admitted_only_once() -> None:
    desk = Desk(usable_pages=8)
    desk.submit("old", 12, max_tokens=14)
    desk.submit("new", 12, max_tokens=14)
    admissions = preempted = 0
    longest = 0
    while desk.scheduler.has_work:
        plan = desk.step()
        admissions += len(plan.admitted)
        preempted += plan.preempted
        assert len(desk.names["new"].tokens) >= longest
        longest = len(desk.names["new"].tokens)
    assert preempted > 0
    assert admissions == 2
    assert {request.output_len for request in desk.names.values()} == {14}


def test_a_request_that_waits_for_its_handoff_keeps_its_pages() -> None:
    desk = Desk(usable_pages=6)
    desk.submit("decoding", 4)
    desk.settle("decoding")
    desk.submit("fetch", 8, stage=Stage.FETCH)
    plan = desk.step()
    held = plan.reserved[0].page_ids
    assert (plan.reserved[0].first_page, len(held)) == (0, 2)
    while desk.names["decoding"].phase is Phase.DECODING:  # until it has only itself to preempt
        desk.step()
    assert desk.names["fetch"].pages.view.tolist() == held
    desk.step()
    assert not desk.scheduler.has_work
    desk.scheduler.end(desk.names["fetch"])
    assert desk.scheduler.has_work
    assert begun(desk.step()) == ["decoding"]


def test_an_announced_prompt_keeps_its_pages_while_it_is_computed() -> None:
    desk = Desk(usable_pages=13, config=EngineConfig(max_running=2, max_batch_tokens=32, chunk_tokens=4))
    desk.submit("decoding", 4)
    desk.settle("decoding")
    offer = desk.submit("offer", 40, stage=Stage.OFFER)
    assert begun(desk.step()) == ["offer"]
    offer.announced = True
    pages = offer.pages.view.tolist()
    while desk.names["decoding"].phase is Phase.DECODING:
        desk.step()
    assert offer.phase is Phase.EXTENDING
    assert offer.pages.view.tolist() == pages


def test_a_fetch_reserves_only_what_the_cache_lacks() -> None:
    desk = Desk()
    desk.cache(list(range(8)))
    desk.submit("whole", list(range(8)), stage=Stage.FETCH)
    desk.submit("tail", list(range(10)), stage=Stage.FETCH)
    plan = desk.step()
    assert [(r.attempt.request_id, r.first_page, len(r.page_ids)) for r in plan.reserved] == [
        ("whole", 2, 0),
        ("tail", 2, 1),
    ]
    assert [admitted.cached_tokens for admitted in plan.admitted] == [8, 8]


def test_one_token_at_least_is_computed_of_a_prompt_that_is_cached_whole() -> None:
    desk = Desk()
    desk.cache(list(range(8)))
    desk.submit("same", list(range(8)))
    plan = desk.step()
    assert plan.admitted[0].cached_tokens == 4
    assert spans(plan) == [("same", 4, 8)]


@pytest.mark.parametrize(
    ("tokens", "params", "finish"),
    [
        ([5], {}, Finish.STOP),
        ([5], {"ignore_eos": True}, None),
        ([6], {"stop_token_ids": (6,), "ignore_eos": True}, Finish.STOP),
        ([5], {"min_tokens": 1}, None),
        ([4, 5], {"min_tokens": 1}, Finish.STOP),
        ([4, 4, 4], {"max_tokens": 3}, Finish.LENGTH),
        ([4, 4, 5], {"max_tokens": 3}, Finish.STOP),
        ([4, 4, 4], {}, None),
        ([4, 4, 4, 4], {}, Finish.LENGTH),
    ],
)
def test_what_ends_a_request(tokens: list[int], params: dict, finish: Finish | None) -> None:
    sampling = SamplingParams(**{"max_tokens": 100, **params})
    state = RequestState.of(EngineRequest(Attempt("a"), [9] * 4, 4, sampling, b"root"), 0, 0.0, PAGE, 8)
    for token in tokens:
        state.append(token)
    assert state.finish(frozenset({5})) is finish


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EngineConfig(max_running=0), "max_running is 0"),
        (EngineConfig(chunk_tokens=3), "chunk_tokens is 3; it must be at least a page, 4"),
        (EngineConfig(max_running=8, max_batch_tokens=11), "must be at least 12"),
    ],
)
def test_limits_that_cannot_work_are_refused(config: EngineConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Desk(config=config)


@pytest.mark.parametrize("seed", range(8))
def test_random_loads_stay_within_the_limits_and_all_end(seed: int) -> None:
    rng = random.Random(seed)
    config = EngineConfig(max_running=4, max_batch_tokens=20, chunk_tokens=12)
    desk = Desk(usable_pages=24, config=config)
    submitted = 0
    for _ in range(4_000):
        if submitted < 60 and rng.random() < 0.3:
            tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 60))]
            desk.submit(f"r{submitted}", tokens, priority=rng.randrange(2), max_tokens=rng.randrange(1, 30))
            submitted += 1
        plan = desk.step()
        assert sum(row.end - row.start for row in plan.rows) <= config.max_batch_tokens
        assert desk.scheduler.running <= config.max_running
        assert not (plan.preempted and plan.begun)
        for row in plan.rows:
            assert row.end - row.start <= config.chunk_tokens
            assert row.draws or row.end % PAGE == 0
        desk.now += 0.1
        if submitted == 60 and not desk.scheduler.has_work:
            break
    assert desk.scheduler.waiting == desk.scheduler.running == desk.scheduler.owed_tokens == 0
    assert all(request.output_len == request.sampling.max_tokens for request in desk.names.values())
    assert desk.ledger.lent_pages == 0
