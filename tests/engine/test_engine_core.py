"""The engine over the toy model: every wrong, missing or stale page would change the tokens."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from engine_harness import ROOT, SMALL, Harness, Loop, Pair, prompt

from baton.core.attempt import Attempt
from baton.core.errors import ConfigError, InternalError, InvalidRequest, PromptTooLong
from baton.core.hashing import block_hashes
from baton.core.layout import KvLayout
from baton.core.sampling import SamplingParams
from baton.engine.api import Finish, Stage
from baton.engine.batch import StepBatch
from baton.engine.engine import EngineCore
from baton.engine.plan import EngineConfig
from baton.engine.pool import KvPool
from baton.testing.toy_model import TOY_VOCAB_SIZE, ToyRunner, toy_reference

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("loop")


def only(*loops: str) -> pytest.MarkDecorator:
    """For a test that counts steps, or changes what a step does while it runs."""
    return pytest.mark.parametrize("loop", loops, indirect=True)


class Faulty(ToyRunner):
    """Calls `fault` before each step; what it raises is the step's failure, what it returns spoils the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Callable[[StepBatch], list[int] | None] = lambda batch: None

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        spoiled = self.fault(batch)
        logits = super().forward(batch, on_layer)
        logits[spoiled or []] = float("nan")
        return logits


# --- tokens are right -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 15, 16, 17, 31, 64, 100])
def test_prompts_of_any_length_in_chunks(length: int) -> None:
    harness = Harness()
    attempt = harness.submit("a", prompt(length), 20)
    harness.run()
    assert harness.outputs[attempt] == toy_reference(prompt(length), 20)
    assert harness.finishes[attempt] is Finish.LENGTH
    assert sum(step.extend_tokens for step in harness.steps) == length
    assert max(step.extend_tokens for step in harness.steps) <= SMALL.chunk_tokens
    harness.assert_quiet()


def test_many_at_once_prompts_and_decodes_mixed() -> None:
    harness = Harness(pages=200)
    attempts = {}
    for i in range(20):
        attempts[harness.submit(f"r{i}", prompt(5 * i + 1, i), 30 - i)] = toy_reference(prompt(5 * i + 1, i), 30 - i)
        harness.step()
    assert any(step.extend_tokens and step.decode_rows for step in harness.steps)
    harness.run()
    assert harness.outputs == attempts
    harness.assert_quiet()


def test_a_second_turn_finds_prompt_and_answer_in_the_cache() -> None:
    harness = Harness()
    first = harness.submit("turn1", prompt(18), 11)
    harness.run()
    conversation = prompt(18) + harness.outputs[first] + prompt(5, 9)
    second = harness.submit("turn2", conversation, 10)
    harness.run()
    assert harness.cached[second] == 28  # 18 + 10 computed tokens; the eleventh was never computed
    assert harness.outputs[second] == toy_reference(conversation, 10)


def test_identical_prompts_at_once_are_computed_once() -> None:
    harness = Harness()
    same = [harness.submit(f"r{i}", prompt(30), 10) for i in range(6)]
    harness.run()
    assert {tuple(harness.outputs[attempt]) for attempt in same} == {tuple(toy_reference(prompt(30), 10))}
    assert sum(step.extend_tokens for step in harness.steps) == 30 + 5 * 2
    harness.assert_quiet()


def test_equal_tokens_under_another_root_share_nothing() -> None:
    harness = Harness()
    harness.submit("a", prompt(30), 3)
    harness.run()
    other = harness.submit("b", prompt(30), 3, root_hash=b"another tenant")
    harness.run()
    assert harness.cached[other] == 0
    assert harness.outputs[other] == toy_reference(prompt(30), 3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_preemption_changes_no_token(temperature: float) -> None:
    def run(pages: int) -> Harness:
        harness = Harness(pages=pages)
        for i in range(8):
            params = SamplingParams(temperature=temperature, seed=i, max_tokens=40, top_logprobs=1)
            harness.submit(f"r{i}", prompt(10 + i, i), sampling=params, priority=i % 2)
        harness.run()
        harness.assert_quiet()
        return harness

    roomy, tight = run(200), run(20)
    assert roomy.preempted == 0
    assert tight.preempted > 5
    assert tight.outputs == roomy.outputs
    assert {a: [row.logprobs for row in rows] for a, rows in tight.rows.items()} == {
        a: [row.logprobs for row in rows] for a, rows in roomy.rows.items()
    }
    if temperature == 0.0:
        for i in range(8):
            assert tight.outputs[Attempt(f"r{i}")] == toy_reference(prompt(10 + i, i), 40)


def test_a_retried_request_goes_on_where_the_last_attempt_ended() -> None:
    params = SamplingParams(temperature=0.9, seed=7, max_tokens=20)
    whole = Harness()
    first = whole.submit("a", prompt(13), sampling=params)
    whole.run()
    again = Harness()
    emitted = whole.outputs[first][:8]
    second = again.submit("a", prompt(13) + emitted, prompt_tokens=13, attempt=1, sampling=params)
    again.run()
    assert again.outputs[second] == whole.outputs[first][8:]


# --- how a request ends ---------------------------------------------------------------------------------------------


def test_end_of_sequence_stops_unless_ignored() -> None:
    free = toy_reference(prompt(9), 12)
    eos = free[4]
    stops = Harness(runner=ToyRunner(eos_token_ids={eos}))
    attempt = stops.submit("a", prompt(9), 12)
    stops.run()
    assert stops.outputs[attempt] == toy_reference(prompt(9), 12, eos_token_ids={eos}) == free[: free.index(eos) + 1]
    assert stops.finishes[attempt] is Finish.STOP
    ignoring = stops.submit("b", prompt(9), sampling=SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    stops.run()
    assert stops.outputs[ignoring] == free
    assert stops.finishes[ignoring] is Finish.LENGTH


def test_stop_tokens_stop_and_minimum_length_bars_them() -> None:
    free = toy_reference(prompt(9), 12)
    stop = free[3]
    harness = Harness()
    early = harness.submit(
        "a", prompt(9), sampling=SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(stop,))
    )
    late = harness.submit(
        "b", prompt(9), sampling=SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(stop,), min_tokens=6)
    )
    harness.run()
    assert harness.outputs[early] == free[: free.index(stop) + 1]
    assert harness.finishes[early] is Finish.STOP
    assert stop not in harness.outputs[late][:6]
    assert len(harness.outputs[late]) > 6


def test_max_tokens_counts_what_earlier_attempts_emitted() -> None:
    harness = Harness()
    tokens = prompt(9) + toy_reference(prompt(9), 5)
    attempt = harness.submit("a", tokens, 8, prompt_tokens=9, attempt=2)
    harness.run()
    assert harness.outputs[attempt] == toy_reference(prompt(9), 8)[5:]


def test_context_and_pool_end_a_request_by_length() -> None:
    context = Harness(runner=ToyRunner(max_context_tokens=20))
    attempt = context.submit("a", prompt(15), 100)
    context.run()
    assert context.outputs[attempt] == toy_reference(prompt(15), 5)
    assert context.finishes[attempt] is Finish.LENGTH
    pool = Harness(pages=6)  # 4 usable pages: 16 tokens, and one more that needs no place
    assert pool.engine.max_context_tokens == 17
    attempt = pool.submit("a", prompt(10), 100)
    pool.run()
    assert pool.outputs[attempt] == toy_reference(prompt(10), 7)
    assert pool.finishes[attempt] is Finish.LENGTH
    pool.assert_quiet()


# --- logprobs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4, 7, 40])
def test_prompt_logprobs_do_not_depend_on_chunks_cache_or_preemption(length: int) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=2, top_logprobs=1)
    whole = Harness(config=EngineConfig(max_running=8, max_batch_tokens=64, chunk_tokens=64))
    reference = whole.submit("a", prompt(length), sampling=params)
    whole.run()
    chunked = Harness()
    chunked.submit("warm", prompt(length), 1)
    chunked.run()
    attempt = chunked.submit("a", prompt(length), sampling=params)
    chunked.run()
    assert chunked.cached[attempt] == 0
    first, *later = chunked.rows[attempt]
    assert first.prompt_logprobs is not None
    assert [logprob.token_id for logprob in first.prompt_logprobs] == prompt(length)[1:]
    assert all(len(logprob.top) == 2 for logprob in first.prompt_logprobs)
    assert all(row.prompt_logprobs is None for row in later)
    assert first.prompt_logprobs == whole.rows[reference][0].prompt_logprobs
    for position, logprob in enumerate(first.prompt_logprobs):
        assert logprob.top[0][0] == toy_reference(prompt(length)[: position + 1], 1)[0]
    assert [row.logprobs[0].token_id for row in chunked.rows[attempt] if row.logprobs] == chunked.outputs[attempt]
    chunked.assert_quiet()


def test_prompt_logprobs_start_anew_when_the_prompt_is_preempted() -> None:
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0)
    harness = Harness(pages=16, config=EngineConfig(max_running=8, max_batch_tokens=32, chunk_tokens=4))
    harness.submit("old", prompt(11, 1), 24)
    for _ in range(4):
        harness.step()
    attempt = harness.submit("new", prompt(33), sampling=params)
    for _ in range(9):
        harness.step()
    assert harness.preempted == 1
    assert attempt in harness.cached
    assert attempt not in harness.outputs
    harness.run()
    assert harness.outputs[attempt] == toy_reference(prompt(33), 2)
    logprobs = harness.rows[attempt][0].prompt_logprobs
    assert logprobs is not None
    assert [logprob.token_id for logprob in logprobs] == prompt(33)[1:]


def test_no_prompt_logprobs_once_output_was_emitted() -> None:
    params = SamplingParams(temperature=0, max_tokens=4, prompt_logprobs=1)
    harness = Harness()
    attempt = harness.submit("a", prompt(9) + toy_reference(prompt(9), 2), prompt_tokens=9, sampling=params)
    harness.run()
    assert all(row.prompt_logprobs is None for row in harness.rows[attempt])


def test_penalties_count_prompt_and_output() -> None:
    biased = SamplingParams(temperature=0, max_tokens=6, logit_bias={7: 100.0}, frequency_penalty=2.0)
    harness = Harness()
    attempt = harness.submit("a", prompt(9), sampling=biased)
    harness.run()
    assert harness.outputs[attempt] == [7] * 6


# --- handoff --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 3, 4, 15, 16, 17, 47, 48])
def test_a_handed_over_request_decodes_the_same_tokens(length: int) -> None:
    pair = Pair()
    attempt = pair.submit("a", prompt(length), 12)
    pair.prefill.run()
    pair.decode.run()
    assert not pair.decode.engine.has_work
    assert pair.prefill.engine.load().lent_pages == pair.pages(attempt)
    pair.hand_over(attempt)
    pair.decode.run()
    pair.prefill.run()
    assert pair.tokens(attempt) == toy_reference(prompt(length), 12)
    assert pair.decode.finishes[attempt] is Finish.LENGTH
    assert pair.prefill.cached[attempt] == pair.decode.cached[attempt] == 0
    pair.prefill.assert_quiet()
    pair.decode.assert_quiet()


@only("plain")
def test_pages_are_announced_layer_by_layer_as_their_chunk_is_computed() -> None:
    pair = Pair()
    attempt = pair.submit("a", prompt(42), 2)
    counts = []
    while pair.prefill.engine.has_work:
        pair.prefill.step()
        counts.append(len(pair.baton.calls))
    assert counts[:3] == [2, 4, 6]
    assert pair.baton.calls == [
        (attempt, layer, layer + 1, first, pages) for first, pages in ((0, 4), (4, 4), (8, 3)) for layer in range(2)
    ]


def test_a_cached_prefix_is_announced_at_once_and_a_second_handoff_moves_only_the_rest() -> None:
    pair = Pair()
    first = pair.submit("a", prompt(32), 10)
    pair.prefill.run()
    pair.decode.run()
    pair.hand_over(first)
    pair.decode.run()
    longer = prompt(32) + pair.tokens(first) + prompt(3, 5)
    second = pair.submit("b", longer, 10)
    pair.prefill.run()
    pair.decode.run()
    assert pair.prefill.cached[second] == 32
    assert pair.decode.cached[second] == 40  # the decode worker holds the answer, too
    assert pair.decode.reserved[second].first_page == 10
    assert len(pair.decode.reserved[second].page_ids) == 2
    assert (second, 0, 2, 0, 8) in pair.baton.calls
    pair.hand_over(second)
    pair.decode.run()
    assert pair.tokens(second) == toy_reference(longer, 10)


def test_identical_handoff_moves_nothing() -> None:
    pair = Pair()
    for name in "ab":
        attempt = pair.submit(name, prompt(32), 5)
        pair.prefill.run()
        pair.decode.run()
        pair.hand_over(attempt)
        pair.decode.run()
        assert pair.tokens(attempt) == toy_reference(prompt(32), 5)
    assert pair.decode.reserved[attempt].page_ids == []


def test_an_activated_request_that_is_preempted_resumes_by_itself() -> None:
    pair = Pair(decode_pages=22)
    attempts = [pair.submit(f"r{i}", prompt(10 + i, i), 30) for i in range(4)]
    pair.prefill.run()
    for _ in range(400):
        pair.decode.step()
        for attempt in attempts:
            if pair.ready(attempt) and attempt not in pair.decode.outputs:
                pair.decode.outputs[attempt] = []
                pair.hand_over(attempt)
    assert pair.decode.preempted > 0
    for i, attempt in enumerate(attempts):
        assert pair.tokens(attempt) == toy_reference(prompt(10 + i, i), 30)
    pair.decode.assert_quiet()


def test_a_first_token_that_ends_the_request_says_so_and_pages_stay_until_release() -> None:
    pair = Pair()
    attempt = pair.submit("a", prompt(9), 1)
    pair.prefill.run()
    assert pair.prefill.finishes[attempt] is Finish.LENGTH
    assert pair.prefill.engine.load().lent_pages == 3
    pair.prefill.engine.release(attempt, valid=True)
    pair.prefill.assert_quiet()


def test_announced_duplicates_keep_their_pages_until_release() -> None:
    pair = Pair(prefill_pages=30)
    tails = {"one": prompt(9, 1), "two": prompt(9, 2)}
    attempts = []
    for name, tail in tails.items():  # the second does not wait for the first: it is more urgent
        attempts.append(pair.prefill.submit(name, prompt(30) + tail, 1, stage=Stage.OFFER, priority=len(attempts)))
        pair.prefill.step()
    pair.prefill.run()
    filler = pair.prefill.submit("filler", prompt(24, 3), 8)  # takes every page that was let go too early
    pair.prefill.run()
    assert pair.prefill.outputs[filler] == toy_reference(prompt(24, 3), 8)
    for attempt in attempts:
        tokens = prompt(30) + tails[attempt.request_id]
        assert pair.prefill.outputs[attempt] == toy_reference(tokens, 1)
        pair.baton.assert_whole(attempt)
        pair.baton.assert_unchanged(attempt)
        pair.prefill.engine.release(attempt, valid=True)
        pair.prefill.engine.audit()
        pair.prefill.run()
        assert set(block_hashes(ROOT, tokens, 4)) <= pair.prefill.blocks
    pair.prefill.assert_quiet()


def test_a_handoff_that_failed_leaves_nothing_in_the_cache() -> None:
    pair = Pair()
    attempt = pair.submit("a", prompt(20), 5)
    pair.decode.run()
    pair.decode.engine.release(attempt, valid=False)
    pair.decode.run()
    pair.decode.assert_quiet()
    assert pair.decode.engine.load().evictable_pages == 0
    retried = pair.decode.submit("a", prompt(20), 5, attempt=1)
    pair.decode.run()
    assert pair.decode.outputs[retried] == toy_reference(prompt(20), 5)


def test_activation_of_the_wrong_thing_is_a_defect_and_of_the_unknown_is_nothing() -> None:
    pair = Pair()
    running = pair.decode.submit("a", prompt(20), 5)
    fetching = pair.decode.submit("b", prompt(9), 5, stage=Stage.FETCH)
    with pytest.raises(InternalError, match="awaits no handoff"):
        pair.decode.engine.activate(fetching, 1)
    pair.decode.step()
    with pytest.raises(InternalError, match="awaits no handoff"):
        pair.decode.engine.activate(running, 1)
    with pytest.raises(InternalError, match="not in the vocabulary"):
        pair.decode.engine.activate(fetching, TOY_VOCAB_SIZE)
    pair.decode.engine.activate(Attempt("who"), 1)
    pair.decode.engine.release(Attempt("who"), valid=True)
    pair.decode.engine.release(running, valid=False)  # nobody lent its pages: it goes on
    pair.decode.run()
    assert pair.decode.outputs[running] == toy_reference(prompt(20), 5)


# --- cancellation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(8))
def test_cancel_frees_at_once_wherever_the_request_is(steps: int) -> None:
    harness = Harness()
    other = harness.submit("other", prompt(9), 20)
    attempt = harness.submit("a", prompt(40, 3), 4)
    for _ in range(steps):
        harness.step()
    assert harness.engine.cancel(attempt) is True
    harness.engine.audit()
    before = list(harness.outputs[attempt])
    harness.run()
    assert harness.outputs[attempt] == before == toy_reference(prompt(40, 3), 4)[: len(before)]
    assert harness.outputs[other] == toy_reference(prompt(9), 20)
    assert harness.engine.cancel(attempt) is True
    harness.assert_quiet()


@only("plain", "late")
@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("steps", range(5))
def test_a_cancelled_offer_keeps_what_was_announced_until_release(steps: int, valid: bool, loop: str) -> None:
    pair = Pair()
    attempt = pair.prefill.submit("a", prompt(40), 4, stage=Stage.OFFER)
    for _ in range(steps):
        pair.prefill.step()
    assert pair.prefill.engine.cancel(attempt) is (steps == 0)
    announced = len(pair.baton.calls)
    pair.prefill.run()
    assert len(pair.baton.calls) == announced
    assert pair.prefill.engine.load().lent_pages == (0 if steps == 0 else 10)
    assert pair.prefill.engine.cancel(attempt) is (steps == 0)
    pair.prefill.engine.release(attempt, valid=valid)
    pair.prefill.run()
    pair.prefill.assert_quiet()
    landed = max(0, steps - (loop == "late"))  # what a step under way was computing is not shared
    assert pair.prefill.engine.load().evictable_pages == min(4 * landed, 10)


@pytest.mark.parametrize("end", ["invalid", "valid", "activate"])
def test_a_cancelled_fetch_keeps_its_pages_while_they_may_be_written(end: str) -> None:
    pair = Pair()
    attempt = pair.submit("a", prompt(20), 4)
    assert pair.decode.engine.cancel(attempt) is True
    pair.decode.submit("a", prompt(20), 4, stage=Stage.FETCH)
    pair.prefill.run()
    pair.decode.run()
    assert pair.decode.engine.cancel(attempt) is False
    pair.decode.run()
    assert pair.decode.engine.load().lent_pages == 5
    if end == "activate":
        pair.hand_over(attempt)
    else:
        pair.decode.engine.release(attempt, valid=end == "valid")
    pair.decode.run()
    assert attempt not in pair.decode.outputs
    pair.decode.assert_quiet()
    assert pair.decode.engine.load().evictable_pages == (0 if end == "invalid" else 5)


def test_an_activated_fetch_is_cancelled_like_any_other() -> None:
    pair = Pair()
    attempt = pair.submit("a", prompt(20), 50)
    pair.prefill.run()
    pair.decode.run()
    pair.hand_over(attempt)
    pair.decode.step()
    assert pair.decode.engine.cancel(attempt) is True
    pair.decode.run()
    pair.decode.assert_quiet()


# --- failure --------------------------------------------------------------------------------------------------------


@only("plain")
def test_a_step_that_raises_fails_its_batch_and_nobody_else() -> None:
    runner = Faulty()
    harness = Harness(runner=runner, config=EngineConfig(max_running=2, max_batch_tokens=32, chunk_tokens=16))
    failing = [harness.submit(f"bad{i}", prompt(20, i), 9) for i in range(2)]
    spared = harness.submit("good", prompt(20, 7), 9)
    harness.step()

    def fault(batch: StepBatch) -> None:
        raise MemoryError("no room")

    runner.fault = fault
    output = harness.step()
    assert {failed.attempt for failed in output.failed} == set(failing)
    assert all(isinstance(error, InternalError) for error in harness.failures.values())
    assert "MemoryError: no room" in harness.failures[failing[0]].message
    runner.fault = lambda batch: None
    again = harness.submit("bad0", prompt(20), 9, attempt=1)
    harness.run()
    assert harness.outputs[spared] == toy_reference(prompt(20, 7), 9)
    assert harness.outputs[again] == toy_reference(prompt(20), 9)
    harness.assert_quiet()


@only("plain", "late")
def test_unusable_logits_fail_only_their_own_row() -> None:
    runner = Faulty()
    harness = Harness(runner=runner)
    attempts = [harness.submit(f"r{i}", prompt(9, i), 9) for i in range(3)]
    harness.step()
    harness.step()
    runner.fault = lambda batch: [1]
    harness.step()
    runner.fault = lambda batch: None
    harness.run()
    assert set(harness.failures) == {attempts[1]}
    for i in (0, 2):
        assert harness.outputs[attempts[i]] == toy_reference(prompt(9, i), 9)
    harness.assert_quiet()


@only("plain")
def test_a_failed_offer_keeps_its_announced_pages_until_release() -> None:
    runner = Faulty()
    pair = Pair()
    pair.prefill = Harness(runner=runner, listener=pair.baton)
    pair.baton.pool = pair.prefill.pool
    attempt = pair.prefill.submit("a", prompt(20), 4, stage=Stage.OFFER)
    pair.prefill.step()

    def fault(batch: StepBatch) -> None:
        raise RuntimeError("broken")

    runner.fault = fault
    pair.prefill.step()
    assert attempt in pair.prefill.failures
    assert pair.prefill.engine.load().lent_pages == 5
    pair.prefill.engine.release(attempt, valid=False)
    pair.prefill.run()
    pair.prefill.assert_quiet()


# --- overlapped steps -----------------------------------------------------------------------------------------------


@only("late")
def test_tokens_come_one_step_late_and_a_token_too_many_is_told_to_nobody() -> None:
    free = toy_reference(prompt(9), 12)
    eos = free[4]
    expected = free[: free.index(eos) + 1]
    seen: list[list[int]] = []
    runner = Faulty()
    runner.eos_token_ids = frozenset({eos})
    runner.fault = lambda batch: seen.append(batch.seq_lens_host)  # type: ignore[func-returns-value]
    harness = Harness(runner=runner)
    attempt = harness.submit("a", prompt(9), 12)
    assert harness.step().rows == []
    harness.run()
    assert harness.outputs[attempt] == expected
    assert seen == [[9 + i] for i in range(len(expected) + 1)]  # the last of them in vain
    assert harness.blocks == set(block_hashes(ROOT, (prompt(9) + expected)[:-1], 4))
    harness.assert_quiet()


@only("late")
def test_a_length_known_beforehand_costs_no_token_too_many() -> None:
    seen: list[list[int]] = []
    runner = Faulty()
    runner.fault = lambda batch: seen.append(batch.seq_lens_host)  # type: ignore[func-returns-value]
    harness = Harness(runner=runner)
    harness.submit("a", prompt(9), 5)
    harness.run()
    assert seen == [[9], [10], [11], [12], [13]]


@only("late")
def test_pages_given_up_while_a_step_is_under_way_are_free_when_it_has_ended() -> None:
    harness = Harness(pages=16)
    harness.submit("other", prompt(9, 1), 30)
    attempt = harness.submit("a", prompt(9), 30)
    for _ in range(3):
        harness.step()
    lent = harness.engine.load().lent_pages
    assert harness.engine.cancel(attempt)
    harness.engine.audit()
    assert harness.engine.load().lent_pages == lent - 2  # the cached ones; the step under way writes to the others
    harness.step()
    assert harness.engine.load().lent_pages <= lent - 3
    harness.run()
    harness.assert_quiet()


@only("late", "threaded")
def test_a_step_that_raises_leaves_those_that_joined_after_it_alone() -> None:
    runner = Faulty()
    harness = Harness(runner=runner)
    failing = harness.submit("bad", prompt(20), 9)
    fault = True

    def once(batch: StepBatch) -> None:
        nonlocal fault
        if fault:
            fault = False
            raise MemoryError("no room")

    runner.fault = once
    harness.step()
    spared = harness.submit("good", prompt(20, 7), 9)
    harness.run()
    assert set(harness.failures) == {failing}
    assert harness.outputs[spared] == toy_reference(prompt(20, 7), 9)
    harness.assert_quiet()


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.5},
        {"frequency_penalty": 0.7, "presence_penalty": 0.3},
        {"temperature": 0.8, "seed": 3, "repetition_penalty": 1.2, "min_tokens": 9},
    ],
)
def test_penalties_see_every_token_in_every_loop_and_after_preemption(
    params: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outputs(pages: int) -> dict[Attempt, list[int]]:
        harness = Harness(pages=pages)
        for i in range(6):
            fields = {"temperature": 0.0, "max_tokens": 30, **params}
            harness.submit(f"r{i}", prompt(10 + i, i), sampling=SamplingParams(**fields))
        harness.run()
        assert (harness.preempted > 0) == (pages < 100)
        harness.assert_quiet()
        return dict(harness.outputs)

    found = [outputs(200), outputs(20)]
    monkeypatch.setattr(Loop, "name", "plain")
    assert found == [outputs(200)] * 2


# --- what is told ---------------------------------------------------------------------------------------------------


@only("plain")
def test_blocks_are_told_as_soon_as_they_are_computed_and_again_when_they_go() -> None:
    harness = Harness(pages=12)
    harness.submit("a", prompt(16), 6)
    output = harness.step()
    assert output.stored_blocks == block_hashes(ROOT, prompt(16), 4)
    harness.run()
    tokens = prompt(16) + toy_reference(prompt(16), 6)
    assert harness.blocks == set(block_hashes(ROOT, tokens[:-1], 4))
    harness.submit("b", prompt(36, 1), 1)
    harness.run()
    assert harness.blocks >= set(block_hashes(ROOT, prompt(36, 1), 4))
    harness.assert_quiet()


@only("plain")
def test_load_counts_what_waits_and_measures_what_ran() -> None:
    harness = Harness(config=EngineConfig(max_running=1, max_batch_tokens=32, chunk_tokens=16))
    assert harness.engine.load().extend_tokens_per_s == harness.engine.load().decode_step_s == 0.0
    harness.submit("a", prompt(40), 4)
    harness.submit("b", prompt(24, 1), 4)
    assert harness.engine.load().waiting_extend_tokens == 64
    harness.step()
    load = harness.engine.load()
    assert (load.running, load.waiting, load.waiting_extend_tokens, load.lent_pages) == (1, 1, 48, 10)

    forward = harness.runner.forward

    def slow(batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        harness.clock.now += 0.5
        return forward(batch, on_layer)

    harness.runner.forward = slow  # type: ignore[method-assign]
    harness.run()
    load = harness.engine.load()
    assert load.decode_step_s == pytest.approx(0.5)
    assert 10 < load.extend_tokens_per_s < 40
    harness.assert_quiet()


def test_a_worker_that_can_do_nothing_is_not_asked_to_step() -> None:
    harness = Harness(pages=8)
    assert not harness.engine.has_work
    assert harness.step().duration_s == 0.0
    holder = harness.submit("holder", prompt(20), stage=Stage.FETCH)
    harness.submit("waits", prompt(20, 1), 3)
    harness.run()
    assert harness.engine.load().waiting == 1
    harness.engine.release(holder, valid=False)
    assert harness.engine.has_work
    harness.run()
    harness.assert_quiet()


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "options", "error", "message"),
    [
        ([], {}, InvalidRequest, "the prompt is empty"),
        ([5, 101], {}, InvalidRequest, "token id 101 at position 1 .* ids are 0 to 100"),
        ([5, 3, -1], {}, InvalidRequest, "token id -1 at position 2"),
        ([5, 1 << 70], {}, InvalidRequest, "flat sequence of integers"),
        ([0.5], {}, InvalidRequest, "flat sequence of integers"),
        ([1] * 100, {}, PromptTooLong, "the prompt has 100 tokens; the limit is 99"),
        ([1] * 60, {}, InvalidRequest, "60 tokens need 15 pages of 4 tokens; the pool has 14"),
        ([1] * 56, {"stage": Stage.FETCH}, InvalidRequest, "57 tokens need 15 pages"),
        ([1] * 5, {"prompt_tokens": 6}, InvalidRequest, "prompt_tokens is 6"),
        ([1] * 5, {"prompt_tokens": 0}, InvalidRequest, "prompt_tokens is 0"),
        ([1] * 13, {"prompt_tokens": 5}, InvalidRequest, "8 tokens were emitted already; max_tokens is 8"),
        ([1], {"stage": Stage.OFFER}, InvalidRequest, "hands nothing over"),
        ([1], {"sampling": SamplingParams(stop_token_ids=(200,))}, InvalidRequest, "stop_token_ids"),
    ],
)
def test_what_can_never_run_is_refused_at_once(tokens: list, options: dict, error: type, message: str) -> None:
    harness = Harness(pages=16, runner=ToyRunner(max_context_tokens=100))
    with pytest.raises(error, match=message):
        harness.submit("a", tokens, **options)
    assert not harness.engine.has_work
    harness.assert_quiet()


def test_the_largest_request_that_fits_runs() -> None:
    harness = Harness(pages=16)
    attempt = harness.submit("a", prompt(56), 8)
    harness.run()
    assert harness.outputs[attempt] == toy_reference(prompt(56), 1)
    harness.assert_quiet()


def test_an_attempt_is_taken_once() -> None:
    harness = Harness()
    harness.submit("a", prompt(5))
    with pytest.raises(InvalidRequest, match="a#0 is under way already"):
        harness.submit("a", prompt(5))
    harness.submit("a", prompt(5), attempt=1)
    harness.run()
    harness.submit("a", prompt(5))


def test_a_pool_of_another_layout_is_refused() -> None:
    layout = KvLayout("other", "float32", layers=2, page_size=4, kv_heads=1, head_dim=4)
    with pytest.raises(ConfigError, match="model_revision='other'"):
        EngineCore(ToyRunner(), KvPool(layout, 8))


# --- everything at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_random_work_with_handoffs_cancels_and_failures(seed: int) -> None:
    """Two engines with tight pools; requests of all stages share prefixes, are cancelled, and fail in steps and
    handoffs. Whatever was put out is right, and in the end nobody holds a page."""
    rng = random.Random(seed)
    config = EngineConfig(max_running=5, max_batch_tokens=24, chunk_tokens=12, patience_s=0.2)
    runners = (Faulty(), Faulty())
    pair = Pair(rng.choice([30, 60]), rng.choice([24, 60]), config, runners)

    def fault(batch: StepBatch) -> list[int] | None:
        if rng.random() < 0.002:
            raise RuntimeError("no luck")
        return [0] if rng.random() < 0.003 else None

    for runner in runners:
        runner.fault = fault
        runner.eos_token_ids = frozenset({7, 60})
    stems = [prompt(24, 100 + i) for i in range(3)]
    expected: dict[Attempt, list[int]] = {}
    local: set[Attempt] = set()  # RUN_ALL, or handed over
    gone: set[Attempt] = set()

    def drop(attempt: Attempt) -> None:
        gone.add(attempt)
        for harness in (pair.prefill, pair.decode):
            if not harness.engine.cancel(attempt):
                harness.engine.release(attempt, valid=harness is pair.prefill and rng.random() < 0.5)

    for _ in range(12_000):
        if len(expected) < 50 and rng.random() < 0.2:
            tokens = rng.choice(stems)[: rng.randrange(25)] + prompt(rng.randrange(1, 40), len(expected))
            name, n, priority = f"r{len(expected)}", rng.randrange(2, 24), rng.randrange(3)
            if rng.random() < 0.5:
                attempt = pair.submit(name, tokens, n, priority=priority)
            else:
                attempt = pair.decode.submit(name, tokens, n, priority=priority)
                local.add(attempt)
            expected[attempt] = toy_reference(tokens, n, eos_token_ids={7, 60})
        for harness in (pair.prefill, pair.decode):
            for failed in harness.step().failed:
                drop(failed.attempt)
        for attempt in sorted(expected.keys() - local - gone):
            if attempt in pair.prefill.finishes:
                drop(attempt)
            elif pair.ready(attempt) and rng.random() < 0.2:
                pair.hand_over(attempt)
                local.add(attempt)
        live = sorted(expected.keys() - gone - pair.decode.finishes.keys())
        if live and rng.random() < 0.02:
            drop(rng.choice(live))
        if len(expected) == 50 and not live:
            break
    pair.prefill.run()
    pair.decode.run()
    pair.prefill.assert_quiet()
    pair.decode.assert_quiet()
    assert pair.decode.finishes.keys() | gone == expected.keys()
    for attempt, tokens in expected.items():
        output = pair.tokens(attempt)
        assert output == (tokens[: len(output)] if attempt in gone else tokens)
