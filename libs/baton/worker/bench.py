"""Times the engine that a worker with these settings would run, without a network: what `baton bench engine` measures.

It drives the engine as a worker's loop does: submit, then step until there is nothing to do. Prompts are random token
ids, so that nothing comes from the cache except where a measurement says so. Slow and blocking.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from baton.core.attempt import Attempt
from baton.core.errors import BatonError, ConfigError, InternalError
from baton.core.layout import RESERVED_PAGES, STATE, KvLayout
from baton.core.sampling import SamplingParams
from baton.engine.api import EngineRequest, StepOutput
from baton.worker.build import build_model
from baton.worker.settings import WorkerSettings

_EPOCH = 1
_ROOT = b"baton-bench-root"
_FIRST_TOKEN = 100  # below it vocabularies keep their special tokens


@dataclass(frozen=True, slots=True)
class Timing:
    """`tokens` were computed in `seconds`."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class MixedTiming:
    """A batch of requests from submission to the last token; TTFT by request, in order of submission."""

    output: Timing
    ttft_s: list[float]


@dataclass(slots=True)
class _Decoding:
    attempts: list[Attempt]
    left: int  # tokens that each of them may still draw


class EngineBench:
    """A loaded model and its engine. `load_s`: from nothing to ready to take requests."""

    def __init__(self, settings: WorkerSettings, seed: int = 0, pool_tokens: int = 0) -> None:
        """`pool_tokens`: positions that the pool is made for; 0: its memory is what the settings say. Raises
        ConfigError (CheckpointError) when the checkpoint or the settings cannot work."""
        started = time.perf_counter()
        built = build_model(settings, _EPOCH, partial(pages_of, tokens=pool_tokens) if pool_tokens else None)
        self._memory = built.memory
        self._engine = built.make_engine(None)
        self.load_s = time.perf_counter() - started
        self.layout = built.runner.layout
        self._vocab = built.runner.vocab_size
        self._random = np.random.default_rng(seed)
        self._requests = 0
        self._decoding: _Decoding | None = None

    def prefill(self, tokens: int) -> Timing:
        """One prompt of `tokens`, from submission to its first token."""
        attempt = self._submit(self._prompt(tokens), 1)
        started = time.perf_counter()
        self._step_until_all_have({attempt: 1})
        timing = Timing(tokens, time.perf_counter() - started)
        self._finish()
        return timing

    def open_decode(self, batch: int, context: int, *, tokens: int, shared: bool = False) -> None:
        """Prepare `batch` requests whose prompts have `context` tokens, and which may draw `tokens` each.

        `shared`: the prompts are equal, so that all but one take their full blocks from the cache.
        """
        self.close_decode()
        prompts = [self._prompt(context) for _ in range(1 if shared else batch)]
        if shared:
            self._submit(prompts[0], 1)
            self._finish()
            prompts *= batch
        # Those whose prompts are computed first decode while the others' are: at most so many steps.
        ahead = spare_tokens(1 if shared else batch, context)
        attempts = [self._submit(prompt, tokens + ahead) for prompt in prompts]
        self._decoding = _Decoding(attempts, tokens)
        self._step_until_all_have(dict.fromkeys(attempts, 1))

    def decode(self, steps: int) -> Timing:
        """Draw `steps` tokens more for each request of `open_decode`."""
        if self._decoding is None or self._decoding.left < steps:
            raise ConfigError(f"{steps} decode steps wanted, {self._decoding.left if self._decoding else 0} are left")
        self._decoding.left -= steps
        wanted = steps * len(self._decoding.attempts)
        drawn = 0
        started = time.perf_counter()
        while drawn < wanted:
            drawn += sum(len(row.token_ids) for row in self._step().rows)
        return Timing(drawn, time.perf_counter() - started)

    def close_decode(self) -> None:
        for attempt in self._decoding.attempts if self._decoding else ():
            self._engine.cancel(attempt)
        self._decoding = None
        self._finish()

    def mixed(self, requests: int, input_tokens: int, output_tokens: int) -> MixedTiming:
        """`requests` at once: output tokens over the time from submission to the last one."""
        prompts = [self._prompt(input_tokens) for _ in range(requests)]
        first_s: dict[Attempt, float] = {}
        drawn = 0
        started = time.perf_counter()
        attempts = [self._submit(prompt, output_tokens) for prompt in prompts]
        while self._engine.has_work:
            for row in self._step().rows:
                first_s.setdefault(row.attempt, time.perf_counter() - started)
                drawn += len(row.token_ids)
        return MixedTiming(Timing(drawn, time.perf_counter() - started), [first_s[attempt] for attempt in attempts])

    def close(self) -> None:
        """End the engine's own thread. Nothing may be called afterwards."""
        self._engine.close()

    def _prompt(self, tokens: int) -> list[int]:
        ids: list[int] = self._random.integers(min(_FIRST_TOKEN, self._vocab - 1), self._vocab, tokens).tolist()
        return ids

    def _submit(self, prompt: Sequence[int], output_tokens: int) -> Attempt:
        self._requests += 1
        attempt = Attempt(f"bench-{self._requests}", 0)
        sampling = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
        self._engine.submit(EngineRequest(attempt, prompt, len(prompt), sampling, _ROOT))
        return attempt

    def _step(self) -> StepOutput:
        if not self._engine.has_work:
            raise InternalError("the engine has nothing to do, but was to draw more tokens")
        output = self._engine.step()
        if output.failed:
            error: BatonError = output.failed[0].error
            raise error
        return output

    def _step_until_all_have(self, wanted: dict[Attempt, int]) -> None:
        while wanted:
            for row in self._step().rows:
                if row.attempt in wanted:
                    wanted[row.attempt] -= len(row.token_ids)
                    if wanted[row.attempt] <= 0:
                        del wanted[row.attempt]

    def _finish(self) -> None:
        while self._engine.has_work:
            self._step()


def spare_tokens(batch: int, context: int) -> int:
    """Tokens that a request may draw while the prompts of its batch are computed, 256 tokens a step at the least."""
    return batch * context // 256 + 16


def pages_of(layout: KvLayout, tokens: int) -> int:
    """Of a pool that holds `tokens` positions, with a page and two states to spare for each of 64 requests."""
    blocks = layout.blocks_for(tokens) + 64
    pages = sum(group.size * 2 * 64 if group.kind == STATE else blocks for group in layout.groups)
    return (pages or blocks) + RESERVED_PAGES
