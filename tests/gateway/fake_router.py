"""A router client without a router: deterministic tokens, counted cancellations, errors and pauses on demand."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Callable, Sequence

from baton.client import (
    Event,
    FinishedEvent,
    Fleet,
    FleetWorker,
    GenerateRequest,
    Model,
    SamplingParams,
    TokenLogprobs,
    TokensEvent,
    Usage,
)
from baton.core.errors import BatonError

NAME = "toy"
PAGE = 16


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task or thread brings about."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


class FakeRouterClient:
    """`script`: the tokens of every answer; without one they are drawn from the prompt, the seed and the position.

    `gate`: when set up, every token waits for it. `fail_after`: (tokens, error) raised in every answer.
    """

    def __init__(self, alphabet: Sequence[int], context_tokens: int = 4096) -> None:
        self.alphabet = list(alphabet)
        self.script: list[int] | None = None
        self.eos: int | None = None
        self.tokens_per_event = 1
        self.gate: asyncio.Event | None = None
        self.fail_after: tuple[int, BaseException] | None = None
        self.requests: list[GenerateRequest] = []
        self.running = 0
        self.cancelled = 0
        self.sent = 0
        self.down: BatonError | None = None
        self.redis_connected = True
        self.ready = True
        self._cached: set[tuple[int, ...]] = set()
        self._model = Model(NAME, context_tokens, "revision-1", True)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event]:
        assert all(request.request_id != other.request_id for other in self.requests), "request ids are unique"
        self.requests.append(request)
        self.running += 1
        finished = False
        try:
            async for event in self._events(request):
                finished = isinstance(event, FinishedEvent)
                yield event
        finally:
            self.running -= 1
            self.cancelled += not finished

    async def models(self) -> list[Model]:
        if self.down is not None:
            raise self.down
        return [Model(NAME, self._model.max_context_tokens, self._model.revision, self.ready)]

    async def fleet(self) -> Fleet:
        if self.down is not None:
            raise self.down
        worker = FleetWorker("unified-1", "unified", "127.0.0.1:1", 1, True, False, 64, 60, 4, 0, 0, NAME, "none")
        return Fleet((worker,), self.redis_connected, 10, 0, len(self.requests))

    async def _events(self, request: GenerateRequest) -> AsyncGenerator[Event]:
        if self.down is not None:
            raise self.down
        sampling, prompt = request.sampling, tuple(request.prompt_token_ids)
        tokens, reason = self._tokens(prompt, sampling)
        cached = self._lookup(prompt)
        for start in range(0, len(tokens), self.tokens_per_event):
            if self.gate is not None:
                await self.gate.wait()
            if self.fail_after is not None and start >= self.fail_after[0]:
                raise self.fail_after[1]
            await asyncio.sleep(0)
            part = tokens[start : start + self.tokens_per_event]
            self.sent += len(part)
            yield TokensEvent(
                part,
                [self.logprobs(token, sampling.top_logprobs) for token in part]
                if sampling.top_logprobs is not None
                else None,
                [self.logprobs(token, sampling.prompt_logprobs) for token in prompt[1:]]
                if sampling.prompt_logprobs is not None and start == 0
                else None,
                cached if start == 0 else None,
            )
        usage = Usage(prompt_tokens=len(prompt), cached_tokens=cached, completion_tokens=len(tokens))
        yield FinishedEvent(reason, usage, tokens[-1] if reason == "stop" else None)

    def _lookup(self, prompt: tuple[int, ...]) -> int:
        cached = (len(prompt) - 1) // PAGE * PAGE if prompt in self._cached else 0
        self._cached.add(prompt)
        return cached

    def _tokens(self, prompt: tuple[int, ...], sampling: SamplingParams) -> tuple[list[int], str]:
        ends = {*sampling.stop_token_ids} | (set() if sampling.ignore_eos else {self.eos})
        tokens: list[int] = []
        while len(tokens) < sampling.max_tokens:
            if self.script is not None and len(tokens) == len(self.script):
                return tokens, "stop"
            tokens.append(self.token_at(prompt, sampling, len(tokens)))
            if tokens[-1] in ends:
                return tokens, "stop"
        return tokens, "length"

    def token_at(self, prompt: tuple[int, ...], sampling: SamplingParams, position: int) -> int:
        forced = [token for token, bias in sampling.logit_bias.items() if bias >= 100]
        if forced:
            return forced[0]
        if self.script is not None:
            return self.script[position]
        seed = 0 if sampling.temperature == 0 or sampling.top_p < 1e-5 else sampling.seed
        digest = hashlib.sha256(repr((prompt, seed, position)).encode()).digest()
        return self.alphabet[int.from_bytes(digest[:4], "little") % len(self.alphabet)]

    def logprobs(self, token: int, top: int) -> TokenLogprobs:
        """The token is the likeliest; the next ones of the alphabet follow, each half as likely."""
        at = self.alphabet.index(token) if token in self.alphabet else 0
        others = [self.alphabet[(at + offset) % len(self.alphabet)] for offset in range(1, top)]
        ranked = [token, *others][:top]
        return TokenLogprobs(token, math.log(0.5), tuple((id, math.log(0.5) * n) for n, id in enumerate(ranked, 1)))
