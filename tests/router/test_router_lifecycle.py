"""The life of a request under every fault, on a clock that only tests move."""

from __future__ import annotations

import random

import pytest
from router_sim import Sim

from baton.core.errors import (
    AttemptFailed,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from baton.core.sampling import SamplingParams
from baton.router.ports import Fetch, Finish, Offer, Row, RunAll
from baton.router.request import Phase
from baton.testing.toy_engine import toy_tokens

PROMPT = [1, 2, 3]


def test_a_pair_serves_a_request() -> None:
    sim = Sim()
    _, caller = sim.submit(PROMPT, 5)
    sim.run()
    assert caller.tokens == toy_tokens(PROMPT, 5)
    assert caller.finish is Finish.LENGTH
    offer, fetch = sim["p0"].assignments[0], sim["d0"].assignments[0]
    assert offer.stage == Offer("d0")
    assert isinstance(fetch.stage, Fetch) and (fetch.stage.worker_id, fetch.stage.worker_epoch) == ("p0", 1)
    assert offer.attempt == fetch.attempt
    usage = caller.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.attempts) == (3, 5, 1)
    assert (usage.prefill_worker, usage.decode_worker, usage.handoff.bytes) == ("p0", "d0", 1024)
    sim.assert_quiet()


def test_one_token_is_prefilled_whole() -> None:
    sim = Sim()
    _, caller = sim.submit(PROMPT, 1)
    sim.run()
    assert caller.tokens == toy_tokens(PROMPT, 1)
    assert sim["p0"].assignments[0].stage == RunAll()
    assert sim["d0"].assignments == []


def test_a_first_token_that_ends_the_request_cancels_decode() -> None:
    sim = Sim()
    stop = toy_tokens(PROMPT, 1)[0]
    _, caller = sim.submit(PROMPT, sampling=SamplingParams(max_tokens=9, stop_token_ids=(stop,)))
    sim.run()
    assert (caller.tokens, caller.finish, caller.stop_token_id) == ([stop], Finish.STOP, stop)
    assert len(sim["d0"].cancelled) == 1
    sim.assert_quiet()


def test_decode_waits_for_the_first_token() -> None:
    """Two workers, two streams: decode's frames may overtake prefill's first token."""
    sim = Sim()
    _, caller = sim.submit(PROMPT, 5)
    sim["p0"].step()
    for _ in range(3):
        sim["d0"].step()
        sim["d0"].deliver()
    assert caller.tokens == []
    sim["p0"].deliver()
    assert caller.tokens == toy_tokens(PROMPT, 3)
    sim.run()
    assert caller.tokens == toy_tokens(PROMPT, 5)
    sim.assert_quiet()


def test_decode_may_even_finish_first() -> None:
    sim = Sim()
    _, caller = sim.submit(PROMPT, 3)
    sim["p0"].step()
    for _ in range(4):
        sim["d0"].step()
        sim["d0"].deliver()
    sim["p0"].deliver()
    assert caller.tokens == toy_tokens(PROMPT, 3)
    assert caller.finish is Finish.LENGTH
    sim.assert_quiet()


class TestWorkerLost:
    def test_prefill_before_the_first_token(self) -> None:
        sim = Sim(prefill=2, decode=2)
        request, caller = sim.submit(PROMPT, 6)
        assert request.run is not None
        first = request.run.placement
        sim[first.prefill].kill()
        assert request.run.attempt.n == 1, "placed anew at once"
        assert request.run.placement.prefill != first.prefill
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 6)
        assert first.decode is not None
        assert len(sim[first.decode].cancelled) == 1, "the other half of the attempt is cancelled"
        sim.assert_quiet()

    def test_prefill_after_the_first_token_before_the_handoff(self) -> None:
        sim = Sim(prefill=2, decode=2)
        request, caller = sim.submit(PROMPT, 6)
        assert request.run is not None
        first = request.run.placement
        sim[first.prefill].step()
        sim[first.prefill].deliver()
        assert request.phase is Phase.HANDOFF
        sim[first.prefill].kill()
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 6)
        assert caller.attempts[:2] == [0, 1]
        sim.assert_quiet()

    def test_prefill_after_the_handoff_does_not_matter(self) -> None:
        sim = Sim(prefill=2, decode=2)
        request, caller = sim.submit(PROMPT, 6)
        sim.run(until=lambda: request.phase is Phase.DECODE)
        assert request.run is not None
        sim[request.run.placement.prefill].kill()
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 6)
        assert caller.usage is not None and caller.usage.attempts == 1

    def test_decode_before_the_first_token(self) -> None:
        sim = Sim(prefill=2, decode=2)
        request, caller = sim.submit(PROMPT, 6)
        assert request.run is not None
        first = request.run.placement
        assert first.decode is not None
        sim[first.decode].kill()
        assert request.run.attempt.n == 0, "prefill's first token is still worth having"
        sim[first.prefill].step()
        sim[first.prefill].deliver()
        assert caller.tokens == toy_tokens(PROMPT, 1)
        assert request.run.attempt.n == 1 and request.run.placement.decode != first.decode
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 6)
        sim.assert_quiet()

    def test_both(self) -> None:
        sim = Sim(prefill=2, decode=2)
        request, caller = sim.submit(PROMPT, 6)
        assert request.run is not None
        first = request.run.placement
        assert first.decode is not None
        sim[first.decode].kill()
        sim[first.prefill].kill()
        assert request.run is not None and request.run.attempt.n == 1
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 6)

    def test_decode_in_mid_stream(self) -> None:
        sim = Sim(prefill=2, decode=2)
        request, caller = sim.submit(PROMPT, 9)
        sim.run(until=lambda: len(caller.tokens) == 4)
        assert request.run is not None
        lost = request.run.placement.decode
        assert lost is not None
        sim[lost].kill()
        assert request.run.placement.decode != lost
        resumed = sim[request.run.placement.prefill].assignments[-1]
        assert list(resumed.token_ids[:7]) == PROMPT + toy_tokens(PROMPT, 4)
        assert resumed.prompt_tokens == 3
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 9)
        assert caller.usage is not None
        assert (caller.usage.attempts, caller.usage.completion_tokens) == (2, 9)
        sim.assert_quiet()

    def test_the_only_worker_comes_back_as_another_incarnation(self) -> None:
        sim = Sim(prefill=0, decode=0, unified=1)
        request, caller = sim.submit(PROMPT, 9)
        sim.run(until=lambda: len(caller.tokens) == 4)
        sim["u0"].kill()
        assert request.phase is Phase.QUEUED
        sim.clock.advance(20)
        sim["u0"].start()
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 9)
        assert caller.attempts == [0] * 4 + [1] * 5
        sim.assert_quiet()

    def test_a_newer_incarnation_replaces_a_connected_one(self) -> None:
        sim = Sim(prefill=0, decode=0, unified=1)
        old = sim["u0"]
        other = type(old)(sim, "u0", "unified")
        other.epoch = 5
        other.start()
        assert not sim.fleet.on_description(old, old.info), "the old one is refused"
        _request, caller = sim.submit(PROMPT, 3)
        assert len(other.assignments) == 1
        assert old.assignments == []
        sim.workers["u0"] = other
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 3)


class TestHandoff:
    def test_that_is_not_needed_may_fail_before_the_last_token_is_heard(self) -> None:
        """Prefill's first token ends the request, so it hands nothing over; decode's complaint may come first."""
        sim = Sim()
        stop = toy_tokens(PROMPT, 1)[0]
        request, caller = sim.submit(PROMPT, sampling=SamplingParams(max_tokens=9, stop_token_ids=(stop,)))
        sim["p0"].step()
        sim["d0"].engine.fail_handoffs = 1
        sim["d0"].step()
        sim["d0"].deliver()
        assert not caller.is_over
        sim["p0"].deliver()
        assert (caller.tokens, caller.finish) == ([stop], Finish.STOP)
        assert request.usage.attempts == 1
        sim.assert_quiet()

    def test_failure_makes_a_new_attempt_elsewhere(self) -> None:
        sim = Sim(prefill=2, decode=2)
        request, caller = sim.submit(PROMPT, 6)
        assert request.run is not None
        first = request.run.placement
        assert first.decode is not None
        sim[first.decode].engine.fail_handoffs = 1
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 6)
        last = caller.usage
        assert last is not None and last.attempts == 2
        assert {last.prefill_worker, last.decode_worker}.isdisjoint({first.prefill, first.decode})
        sim.assert_quiet()

    def test_a_pair_that_cannot_hand_over_is_given_up_for_decode_alone(self) -> None:
        sim = Sim()
        sim["d0"].engine.fail_handoffs = 1000
        _, caller = sim.submit(PROMPT, 6)
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 6)
        assert sim["d0"].assignments[-1].stage == RunAll()
        sim.assert_quiet()

    def test_that_never_ends_has_a_deadline(self) -> None:
        sim = Sim(prefill=2, decode=2, handoff_s=3.0)
        request, caller = sim.submit(PROMPT, 6)
        assert request.run is not None and request.run.placement.decode is not None
        decode = sim[request.run.placement.decode]
        decode.engine.silent_handoffs = True
        sim.run(until=lambda: request.phase is Phase.HANDOFF)
        sim.clock.advance(3.1)
        assert request.run is not None and request.run.attempt.n == 1
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 6)
        assert len(decode.cancelled) == 1

    def test_without_agents_decode_does_all(self) -> None:
        sim = Sim(prefill=0, decode=0)
        sim.add("p", "prefill", agent=False)
        sim.add("d", "decode", agent=False)
        _, caller = sim.submit(PROMPT, 6)
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 6)
        assert sim["p"].assignments == []


class TestStages:
    def test_no_first_token(self) -> None:
        sim = Sim(prefill=2, decode=2, first_token_s=5.0)
        request, caller = sim.submit(PROMPT, 6)
        assert request.run is not None
        stuck = sim[request.run.placement.prefill]
        stuck.engine.stalled = True
        sim.clock.advance(5.1)
        assert request.run is not None and request.run.placement.prefill != stuck.worker_id
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 6)

    def test_stall_between_tokens(self) -> None:
        sim = Sim(prefill=2, decode=2, stall_s=5.0)
        request, caller = sim.submit(PROMPT, 9)
        sim.run(until=lambda: len(caller.tokens) == 4)
        assert request.run is not None and request.run.placement.decode is not None
        stuck = sim[request.run.placement.decode]
        stuck.engine.stalled = True
        sim.clock.advance(4.9)
        assert request.run.attempt.n == 0
        sim.clock.advance(0.2)
        assert request.run is not None and request.run.placement.decode != stuck.worker_id
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 9)

    def test_the_total_deadline_cancels_everything(self) -> None:
        sim = Sim()
        _, caller = sim.submit(PROMPT, 1000, deadline_s=1.0)
        sim.run()
        assert isinstance(caller.error, DeadlineExceeded)
        assert caller.tokens == toy_tokens(PROMPT, len(caller.tokens))
        assert len(caller.tokens) > 10
        sim.assert_quiet()

    def test_long_prompts_get_more_time(self) -> None:
        sim = Sim(prefill=1, decode=1, first_token_s=1.0)
        request, _ = sim.submit(list(range(1, 3001)), 3)  # 3 s of work at the reported rate
        sim["p0"].engine.stalled = True
        sim.clock.advance(12.0)
        assert request.usage.attempts == 1
        sim.clock.advance(2.0)
        assert request.usage.attempts == 2


class TestErrors:
    def test_the_callers_mistakes_are_final(self) -> None:
        sim = Sim(prefill=2, decode=2)
        for worker in ("p0", "p1"):
            sim[worker].engine.fail_next = [InvalidRequest("token 99 is not in the vocabulary", param="prompt")]
        request, caller = sim.submit()
        sim.run(until=lambda: caller.is_over)
        assert isinstance(caller.error, InvalidRequest) and caller.error.param == "prompt"
        assert request.usage.attempts == 1
        sim.run(steps=3)
        sim.assert_quiet()

    @pytest.mark.parametrize("error", [Unavailable("no agent"), AttemptFailed("x"), InternalError("CUDA error")])
    def test_the_workers_mistakes_are_not(self, error: Exception) -> None:
        sim = Sim(prefill=2, decode=2)
        sim["p0"].engine.fail_next = [error]  # type: ignore[list-item]
        sim["p1"].engine.fail_next = [error]  # type: ignore[list-item]
        _, caller = sim.submit(PROMPT, 4)
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 4)

    def test_attempts_are_bounded_and_spaced(self) -> None:
        sim = Sim(prefill=0, decode=0, unified=1, max_attempts=4)
        sim["u0"].engine.fail_next = [AttemptFailed(f"no {n}") for n in range(100)]
        request, caller = sim.submit()
        sim.run()
        assert isinstance(caller.error, Unavailable)
        assert "4 attempts" in caller.error.message and "no 3" in caller.error.message
        assert sim.clock.now - request.arrived_at > 0.3, "later attempts wait a little"
        sim.assert_quiet()

    def test_a_worker_that_cancels_by_itself_is_left(self) -> None:
        sim = Sim(prefill=0, decode=0, unified=2)
        request, caller = sim.submit(PROMPT, 4)
        assert request.run is not None
        worker = sim[request.run.placement.prefill]
        worker.listeners.pop(1).on_row(Row([], Finish.CANCELLED))
        worker.engine.cancel(1)
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 4)

    def test_failing_workers_are_avoided_by_the_next_requests(self) -> None:
        sim = Sim(prefill=0, decode=0, unified=2)
        sim["u0"].engine.fail_next = [AttemptFailed("sick")]
        for _ in range(2):
            sim.submit(PROMPT, 2)
        sim.run()
        for _ in range(4):
            _, caller = sim.submit(PROMPT, 2)
            sim.run()
            assert caller.usage is not None and caller.usage.prefill_worker == "u1"
        sim.clock.advance(120.0)
        used = set()
        for _ in range(6):
            for worker in sim.workers.values():
                worker.report()
            _, caller = sim.submit(PROMPT, 2)
            sim.run()
            assert caller.usage is not None
            used.add(caller.usage.prefill_worker)
        assert used == {"u0", "u1"}, "forgiven after a while"


class TestCancel:
    @pytest.mark.parametrize("tokens_before", [0, 1, 3])
    def test_at_each_stage(self, tokens_before: int) -> None:
        sim = Sim()
        request, caller = sim.submit(PROMPT, 9)
        sim.run(until=lambda: len(caller.tokens) >= tokens_before)
        sim.lifecycle.cancel(request)
        assert caller.finish is Finish.CANCELLED
        sim.assert_quiet()
        sim.lifecycle.cancel(request)
        for worker in sim.workers.values():
            worker.step()
            worker.deliver()
        assert len(caller.tokens) == tokens_before, "late frames are dropped"

    def test_while_waiting(self) -> None:
        sim = Sim(prefill=0, decode=0)
        sim.is_settled = False
        request, caller = sim.submit()
        assert request.phase is Phase.QUEUED
        sim.lifecycle.cancel(request)
        assert caller.finish is Finish.CANCELLED
        sim.assert_quiet()

    def test_while_paused_between_attempts(self) -> None:
        sim = Sim(prefill=0, decode=0, unified=1)
        sim["u0"].engine.fail_next = [AttemptFailed("x")] * 3
        request, caller = sim.submit()
        sim.run(until=lambda: request.phase is Phase.PAUSED)
        sim.lifecycle.cancel(request)
        assert caller.finish is Finish.CANCELLED
        sim.clock.advance(10.0)
        sim.assert_quiet()


class TestWaiting:
    def test_for_a_worker_to_appear(self) -> None:
        sim = Sim(prefill=0, decode=0)
        sim.fleet.expect_model("toy")
        _, caller = sim.submit(PROMPT, 3)
        sim.clock.advance(10.0)
        assert not caller.is_over
        sim.add("u0", "unified")
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 3)
        assert caller.usage is not None and caller.usage.queued_s > 9

    def test_in_vain(self) -> None:
        sim = Sim(prefill=1, decode=0, queue_s=7.0)
        _, caller = sim.submit()
        sim.clock.advance(7.1)
        assert isinstance(caller.error, Unavailable)
        assert caller.error.retry_after_s and "decode or unified" in caller.error.message
        sim.assert_quiet()

    def test_for_room(self) -> None:
        sim = Sim(prefill=0, decode=0)
        sim.add("u0", "unified", max_running=2)
        callers = [sim.submit([n + 1], 5)[1] for n in range(12)]
        assert sim.lifecycle.queued == 8, "two run, two are ahead"
        sim.run()
        for n, caller in enumerate(callers):
            assert caller.tokens == toy_tokens([n + 1], 5)

    def test_for_room_in_vain(self) -> None:
        sim = Sim(prefill=0, decode=0, queue_s=5.0, first_token_s=100)
        sim.add("u0", "unified", max_running=2)
        sim["u0"].engine.stalled = True
        callers = [sim.submit()[1] for _ in range(5)]
        sim.clock.advance(5.1)
        assert isinstance(callers[-1].error, Overloaded)
        assert [caller.is_over for caller in callers] == [False] * 4 + [True]

    def test_tenants_take_turns(self) -> None:
        sim = Sim(prefill=0, decode=0)
        sim.add("u0", "unified", max_running=1)
        order: list[str] = []
        for tenant in ("a",) * 8 + ("b",) * 2:
            request, _ = sim.submit([1], 2, tenant=tenant)
            request.names.clear()
        for _ in range(40):
            sim.run(steps=1)
            order += [a.attempt.request_id for a in sim["u0"].assignments if a.attempt.request_id not in order]
        turn = [name for name in order if name in ("r8", "r9")]
        assert turn == ["r8", "r9"]
        assert order.index("r9") <= 7, "the small tenant does not wait for all of the large one"

    def test_priority_goes_first(self) -> None:
        sim = Sim(prefill=0, decode=0)
        sim.add("u0", "unified", max_running=1)
        for _ in range(6):
            sim.submit([1], 2)
        sim.submit([1], 2, priority=1)
        sim.run()
        assert [a.attempt.request_id for a in sim["u0"].assignments].index("r6") == 3

    def test_a_full_queue_refuses(self) -> None:
        sim = Sim(prefill=0, decode=0, max_queued=3)
        sim.fleet.expect_model("toy")
        for _ in range(3):
            sim.submit()
        with pytest.raises(Overloaded) as caught:
            sim.submit()
        assert caught.value.retry_after_s and caught.value.retry_after_s >= 1

    def test_a_queue_longer_than_the_deadline_refuses(self) -> None:
        sim = Sim(prefill=0, decode=0)
        sim.add("u0", "unified", max_running=1)
        for _ in range(40):
            sim.submit([1], 20)
        sim.run(steps=300)  # a request leaves every 200 ms
        with pytest.raises(Overloaded, match="s long"):
            sim.submit([1], 20, deadline_s=1.0)
        sim.submit([1], 20, deadline_s=100.0)

    def test_retries_come_before_new_requests(self) -> None:
        sim = Sim(prefill=0, decode=0)
        sim.add("u0", "unified", max_running=1)
        _running, _ = sim.submit([1], 20, request_id="old")
        sim.run(steps=3)
        for _ in range(6):
            sim.submit([1], 2)
        sim["u0"].kill()
        sim["u0"].start()
        sim.run(steps=1)
        assert sim["u0"].assignments[-4].attempt.request_id != "old"
        assert "old" in [a.attempt.request_id for a in sim["u0"].assignments[-3:]]


class TestModels:
    def test_unknown(self) -> None:
        sim = Sim()
        with pytest.raises(ModelNotFound, match="served: toy"):
            sim.submit(model="other")
        sim.assert_quiet()

    def test_unknown_while_workers_are_still_being_met(self) -> None:
        sim = Sim()
        sim.is_settled = False
        _, lost = sim.submit(model="other")
        _, found = sim.submit(model="late")
        sim.clock.advance(2.0)
        sim.add("x", "unified", model="late")
        sim.is_settled = True
        sim.clock.advance(1.0)
        assert isinstance(lost.error, ModelNotFound)
        sim.run()
        assert found.tokens == toy_tokens(PROMPT, 5)

    def test_without_any_worker_requests_wait_for_one(self) -> None:
        sim = Sim(prefill=0, decode=0)
        _, found = sim.submit(model="late")
        sim.clock.advance(2.0)
        assert found.error is None
        sim.add("x", "unified", model="late")
        sim.run()
        assert found.tokens == toy_tokens(PROMPT, 5)

    def test_requests_stay_with_their_model(self) -> None:
        sim = Sim(prefill=0, decode=0)
        sim.add("a", "unified", model="a")
        sim.add("b", "unified", model="b", max_running=1)
        for model in "abbbbbba":
            sim.submit(model=model)
        sim.run()
        assert len(sim["a"].assignments) == 2
        assert len(sim["b"].assignments) == 6


class TestResubmission:
    """A caller that lost its router comes back with what it has."""

    def test_goes_on_from_the_emitted_tokens(self) -> None:
        sim = Sim()
        _, caller = sim.submit(PROMPT, 6, emitted=toy_tokens(PROMPT, 4), first_attempt=1024)
        sim.run()
        assert caller.tokens == toy_tokens(PROMPT, 6)[4:]
        assert caller.attempts == [1024, 1024]
        assert caller.usage is not None and caller.usage.completion_tokens == 6

    def test_with_everything_is_over_at_once(self) -> None:
        sim = Sim()
        _, caller = sim.submit(PROMPT, 4, emitted=toy_tokens(PROMPT, 4))
        assert caller.finish is Finish.LENGTH
        sim.assert_quiet()

    def test_replaces_the_one_whose_stream_broke_unnoticed(self) -> None:
        sim = Sim()
        _, old = sim.submit(PROMPT, 6, request_id="r")
        sim.run(until=lambda: len(old.tokens) == 2)
        _, new = sim.submit(PROMPT, 6, request_id="r", emitted=old.tokens, first_attempt=1024)
        assert old.finish is Finish.CANCELLED
        sim.run()
        assert old.tokens + new.tokens == toy_tokens(PROMPT, 6)

    def test_an_id_in_use_is_refused(self) -> None:
        sim = Sim()
        sim.submit(request_id="r")
        with pytest.raises(InvalidRequest, match="in use"):
            sim.submit(request_id="r")

    def test_prompt_logprobs_are_asked_for_once(self) -> None:
        sim = Sim(prefill=0, decode=0, unified=2)
        sampling = SamplingParams(max_tokens=5, prompt_logprobs=1)
        request, _caller = sim.submit(PROMPT, sampling=sampling)
        assert request.run is not None
        first = sim[request.run.placement.prefill]
        first.listeners[1].on_row(Row(toy_tokens(PROMPT, 1), prompt_logprobs=["opaque"]))
        first.kill()
        assert request.run is not None
        second = sim[request.run.placement.prefill]
        assert first.assignments[0].sampling.prompt_logprobs == 1
        assert second.assignments[0].sampling.prompt_logprobs is None


@pytest.mark.parametrize("seed", range(40))
def test_any_faults_in_any_order_leave_the_tokens_alone(seed: int) -> None:
    """Workers die, come back, stall and fail handoffs; messages are delayed per worker; callers come and go."""
    choose = random.Random(seed)
    sim = Sim(
        prefill=2, decode=2, unified=seed % 2, first_token_s=2.0, handoff_s=1.0, stall_s=2.0, max_attempts=100,
        local_extend_tokens=0,
    )  # fmt: skip
    workers = list(sim.workers.values())
    callers = []
    for _ in range(400):
        worker = choose.choice(workers)
        match choose.choices(
            ["step", "deliver", "submit", "kill", "start", "stall", "handoff", "cancel", "time"],
            [40, 40, 6, 1, 4, 1, 2, 1, 4],
        )[0]:
            case "step" if worker.is_up:
                worker.step()
            case "deliver" if worker.is_up:
                worker.deliver(choose.randrange(1, 6))
            case "submit":
                prompt = [choose.randrange(1000) for _ in range(choose.randrange(1, 40))]
                count = choose.randrange(1, 12)
                callers.append((prompt, count, *sim.submit(prompt, count)))
            case "kill" if worker.is_up:
                worker.kill()
            case "start" if not worker.is_up:
                worker.start()
            case "stall":
                worker.engine.stalled = not worker.engine.stalled
            case "handoff":
                worker.engine.fail_handoffs = 1
            case "cancel" if callers:
                sim.lifecycle.cancel(choose.choice(callers)[2])
            case "time":
                sim.clock.advance(choose.choice([0.01, 0.1, 1.5]))
        for prompt, count, _, caller in callers:
            assert caller.tokens == toy_tokens(prompt, count)[: len(caller.tokens)]
    for worker in workers:
        worker.engine.stalled = False
        if not worker.is_up:
            worker.start()
    sim.run(steps=3000)
    for prompt, count, _, caller in callers:
        assert caller.error is None, caller.error
        if caller.finish is not Finish.CANCELLED:
            assert (caller.finish, caller.tokens) == (Finish.LENGTH, toy_tokens(prompt, count))
    sim.assert_quiet()
