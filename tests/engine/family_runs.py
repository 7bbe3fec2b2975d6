"""What every family must do, native or not: the logits and greedy tokens of `transformers` however work is cut."""

from __future__ import annotations

import random

import torch
from engine_harness import Harness, Pair
from family_checkpoints import VOCAB, Checkpoint
from paged_rows import PagedModel, Row

from baton.core.sampling import SamplingParams
from baton.engine.loading import LoadedRunner
from baton.engine.plan import EngineConfig

CONFIG = EngineConfig(max_running=4, max_batch_tokens=64, chunk_tokens=48)


def tokens_of(seed: int, count: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, VOCAB) for _ in range(count)]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def greedy(n: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True)


def assert_logits_are_the_same(checkpoint: Checkpoint, runner: LoadedRunner) -> None:
    """Whole, in chunks, and after a prefix that rows share."""
    model = PagedModel(runner, pages=40)
    first, second = Row(tokens_of(1, 90)), Row(tokens_of(2, 70))
    whole = model.step([(Row(first.tokens), 90)], all_logits=True)
    close(whole, checkpoint.logits(first.tokens))
    for n in (32, 16, 42):  # states are there after these
        model.step([(first, n)])
    parts = [model.step([(second, n)], all_logits=True) for n in (37, 1, 1, 31)]
    close(torch.cat(parts), checkpoint.logits(second.tokens))
    third = Row([*first.tokens[:48], *tokens_of(3, 20)], cached=48, pages=first.pages[:3])
    fourth = Row([*first.tokens[:32], 9], cached=32, pages=first.pages[:2])
    got = model.step([(third, 20), (fourth, 1)], all_logits=True)
    close(got[:20], checkpoint.logits(third.tokens)[48:])
    close(got[20:], checkpoint.logits(fourth.tokens)[32:])


def assert_engine_decodes_the_same(checkpoint: Checkpoint, runner: LoadedRunner) -> None:
    """In chunks, with prefix hits and preemption."""
    layout = runner.layout
    sees_all = not layout.groups or layout.groups[0].kind == "full"
    state_pages = sum(group.size for group in layout.groups if group.kind == "state")
    windows = sum(group.kind in ("window", "chunk") for group in layout.groups)
    count = (
        120 if windows else 64 if state_pages and sees_all else 24
    )  # what falls out of windows, or states, makes room
    pages = 14 + 4 * state_pages if state_pages else 15 + 7 * windows
    harness = Harness(pages=pages, config=CONFIG, runner=runner)
    prompt = tuple(tokens_of(6, 70))
    first = harness.submit("first", prompt, sampling=greedy(6))
    harness.run()
    assert len(harness.outputs[first]) == 6
    assert harness.outputs[first] == checkpoint.greedy_along(prompt, harness.outputs[first])
    others = [prompt[:40] + tuple(tokens_of(7 + i, 20)) for i in range(3)]
    attempts = [harness.submit(f"other{i}", other, sampling=greedy(count)) for i, other in enumerate(others)]
    harness.run()
    assert harness.preempted > 0 or not sees_all  # all the pages that are needed for long are there from the start
    hits = [harness.cached[attempt] >= 32 for attempt in attempts]
    assert any(hits) if windows or state_pages else all(hits)  # what is needed may be gone when it is wanted
    for attempt, other in zip(attempts, others, strict=True):
        assert len(harness.outputs[attempt]) == count
        assert harness.outputs[attempt] == checkpoint.greedy_along(other, harness.outputs[attempt])
    harness.assert_quiet()


def assert_handed_over_decodes_the_same(checkpoint: Checkpoint, prefill: LoadedRunner, decode: LoadedRunner) -> None:
    """Prefill here and decode there."""
    pages = 10 + 6 * len(prefill.layout.groups)
    pair = Pair(pages, pages, CONFIG, (prefill, decode))
    prompt = tuple(tokens_of(9, 75))
    attempt = pair.submit("r", prompt, 8, sampling=greedy(8))
    pair.prefill.run()
    pair.decode.run()
    pair.hand_over(attempt)
    pair.decode.run()
    assert len(pair.tokens(attempt)) == 8
    assert pair.tokens(attempt) == checkpoint.greedy_along(prompt, pair.tokens(attempt))
