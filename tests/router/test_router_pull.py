"""Where a prefix comes from: computed, or pulled from a worker that holds it, whichever is faster as measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_router_policy import LIMITS, in_pools, worker

from baton.core.attempt import Attempt
from baton.core.layout import CacheGroup, KvLayout
from baton.core.sampling import SamplingParams
from baton.router import convert
from baton.router.policy import Placement, _decode_s, place
from baton.router.policy_facts import RequestFacts, WorkerFacts
from baton.router.policy_pull import Holders, Pull
from baton.router.ports import AgentInfo, Assignment, Offer, PullFrom

# 1000 tokens are computed in 1 s, or pulled in 5 ms and 16 ms more.


def chosen(fleet: list[WorkerFacts], cached: dict[str, int], request: RequestFacts | None = None) -> Placement:
    answer = place(request or RequestFacts("m", 1001, 100), fleet, in_pools(cached), LIMITS, 0)
    assert isinstance(answer, Placement)
    return answer


def pair(*others: WorkerFacts, **facts: object) -> list[WorkerFacts]:
    return [worker("p0", "prefill", **facts), worker("d0", "decode"), *others]


def test_prefill_takes_what_decode_generated() -> None:
    answer = chosen(pair(), {"p0": 496, "d0": 896})
    assert (answer.prefill, answer.decode) == ("p0", "d0")
    assert answer.pull is not None and (answer.pull.source, answer.pull.tokens) == ("d0", 896)
    assert answer.extend_tokens == 105
    assert answer.predicted_s == pytest.approx(0.105 + 0.005 + 400 * (1 << 14) / 1e9)


def test_prefill_takes_what_another_prefill_computed() -> None:
    """The holder is busy for longer than pulling takes: the other one gets the request, and the prefix."""
    busy = worker("p1", "prefill", waiting_extend_tokens=2000)
    request = RequestFacts("m", 1101, 100)
    answer = chosen(pair(busy), {"p1": 992}, request)
    assert answer.prefill == "p0" and answer.pull is not None
    assert (answer.pull.source, answer.pull.tokens, answer.extend_tokens) == ("p1", 992, 109)
    at_home = chosen(pair(worker("p1", "prefill")), {"p1": 992}, request)
    assert (at_home.prefill, at_home.pull) == ("p1", None)


def best(cached: dict[str, int], tokens: int = 1001, **facts: object) -> Pull | None:
    """What the prefill worker of a pair would pull."""
    fleet = pair(**facts)
    return Holders(RequestFacts("m", tokens, 9), fleet, cached).best(fleet[0], cached.get("p0", 0))


def test_a_slow_link_is_not_used() -> None:
    cached = {"d0": 992}
    assert best(cached, pull_bytes_per_s=1.0e7) is None
    assert best(cached, pull_bytes_per_s=1.0e8) is not None
    assert best(cached, pull_wait_s=1.0) is None


def test_nothing_is_pulled_that_is_here_or_too_little() -> None:
    assert best({"p0": 992, "d0": 992}) is None
    assert best({"p0": 992, "d0": 1001}) is None
    assert best({"d0": 16}, extend_tokens_per_s=1e6) is None


def test_the_last_token_is_always_computed() -> None:
    pull = best({"d0": 1024}, tokens=1024)
    assert pull is not None and pull.tokens == 1008


@pytest.mark.parametrize("facts", [{"transport": ""}, {"transport": "tcp"}, {"fingerprint": "g"}, {"penalty_s": 9.0}])
def test_who_cannot_be_read_from_or_is_suspect_is_no_source(facts: dict[str, object]) -> None:
    assert chosen(pair(worker("d1", "decode", **facts)), {"d1": 992}).pull is None


def test_who_failed_the_request_is_no_source() -> None:
    holders = Holders(RequestFacts("m", 1001, 9, {"d0": 1}), pair(), {"d0": 992})
    assert holders.best(worker("p0", "prefill"), 0) is None


def test_the_longest_prefix_wins_then_the_least_busy_holder() -> None:
    fleet = pair(worker("a", running=9), worker("b", running=1), worker("c"))
    best = Holders(RequestFacts("m", 1001, 9), fleet, {"a": 800, "b": 800, "c": 96}).best(fleet[0], 0)
    assert isinstance(best, Pull) and (best.source, best.tokens) == ("b", 800)


def test_a_conversation_moves_when_its_worker_is_crowded() -> None:
    """Moving costs others too: between workers that are about as busy, it stays."""
    for running, place_of in ((3, "d0"), (30, "d1")):
        answer = chosen([worker("d0", running=running), worker("d1", running=2)], {"d0": 976})
        assert (answer.prefill, answer.pull is not None) == (place_of, place_of == "d1")


def test_a_decode_worker_pulls_from_another_and_runs_the_rest_itself() -> None:
    fleet = [worker("d0", "decode", running=32, waiting=9), worker("d1", "decode")]
    answer = chosen(fleet, {"d0": 992})
    assert (answer.prefill, answer.decode, answer.reason) == ("d1", None, "short suffix")
    assert answer.pull is not None and answer.pull.source == "d0"


def test_decode_pulls_what_prefill_pulls_where_computing_does_not_hide_the_handoff() -> None:
    """A long prefix is elsewhere, a short rest is computed: if prefill handed it over afterwards, decode would wait."""
    fleet = pair(worker("d1", running=40, waiting=9), kv_bytes_per_token=1 << 17)
    fleet[1] = worker("d0", kv_bytes_per_token=1 << 17)
    request, cached = RequestFacts("m", 8100, 100), {"d1": 8000}
    answer = chosen(fleet, cached, request)
    assert (answer.prefill, answer.decode, answer.pull and answer.pull.source) == ("p0", "d0", "d1")
    assert answer.decode_pull is not None
    assert (answer.decode_pull.source, answer.decode_pull.tokens) == ("d1", 8000)
    assert 0 < answer.decode_pull.saved_s < 8000 * (1 << 17) / 1e9
    hidden = chosen(fleet, cached, RequestFacts("m", 20_000, 100))  # 12 s of computing hide it all
    assert hidden.pull is not None and hidden.decode_pull is None
    at_home = chosen(fleet, {"d1": 8000, "d0": 8000}, request)
    assert at_home.decode != "d0" or at_home.decode_pull is None


def test_the_assignment_names_the_source() -> None:
    agent = AgentInfo("h:1", 7, "ucx")
    fields = (Attempt("r", 1), [1, 2, 3], 3, SamplingParams(), Offer("d0"), 5.0)
    message = convert.assign_message(4, Assignment(*fields, pull=PullFrom("d0", 3, agent, 2))).assign
    assert (message.pull.worker_id, message.pull.worker_epoch, message.pull.tokens) == ("d0", 3, 2)
    assert (message.pull.agent.address, message.pull.agent.epoch) == ("h:1", 7)
    assert not convert.assign_message(4, Assignment(*fields)).assign.HasField("pull")


WINDOWED = KvLayout(
    "m", "bfloat16", 4, 16, 8, 128, groups=(CacheGroup("full", 0, (3,)), CacheGroup("window", 64, (0, 1, 2)))
)


def test_bytes_and_pages_of_models_with_windows_and_states() -> None:
    """What moves is the pages of full attention that are not held, and windows and states whole; so it is with what a
    request needs in a pool."""
    page = WINDOWED.pool_bytes(1)
    facts = worker("w", layout=WINDOWED, kv_bytes_per_token=page // 16)
    assert (facts.pages(1000), facts.pages(1000, 992), facts.pages(20)) == (63 + 5, 1 + 5, 2 + 2)
    assert facts.kv_bytes(1000, 992) == 6 * page
    state = replace(WINDOWED, groups=(CacheGroup("state", 3, (0, 1)),))
    facts = worker("w", layout=state, kv_bytes_per_token=page // 16)
    assert (facts.pages(9), facts.pages(100_000, 99_000)) == (3, 3)
    plain = worker("w", layout=replace(WINDOWED, groups=()), kv_bytes_per_token=100)
    assert (plain.pages(1000, 992), plain.kv_bytes(1000, 992)) == (1, 800)


def test_a_long_prompt_fits_a_worker_whose_windows_are_short() -> None:
    """Few pages are free; a prompt of the model needs few, however long it is."""
    short = replace(WINDOWED, groups=(CacheGroup("window", 64, (0, 1, 2)),))
    few = {"free_pages": 12, "evictable_pages": 0, "token_limit": 100_000}
    request = RequestFacts("m", 5000, 100)
    plain, windowed = (
        _decode_s(worker("d", **few, **layout), request, 0, LIMITS) for layout in ({}, {"layout": short})
    )
    assert windowed < plain
