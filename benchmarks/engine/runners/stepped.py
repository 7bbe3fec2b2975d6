"""Engines that take requests and advance them all by `step`, as a serving loop drives them: Baton and vLLM."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod

from protocol import Timed

SPARE_TOKENS = 64


class SteppedRunner(ABC):
    """`protocol.Runner` over three verbs."""

    about: str

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._decoding: list[str] = []

    @abstractmethod
    def add(self, name: str, prompt: list[int], tokens: int) -> None:
        """Queue a greedy request for exactly `tokens` tokens."""

    @abstractmethod
    def step(self) -> list[tuple[str, int]]:
        """Advance; (request, new tokens) of each request that got some."""

    @abstractmethod
    def abort(self, names: list[str]) -> None: ...

    @abstractmethod
    def busy(self) -> bool: ...

    def prefill(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        self._add(prompt, 1)
        seconds = 0.0
        while self.busy():
            if self.step():
                seconds = time.perf_counter() - started
        return seconds

    def open_decode(self, prompts: list[list[int]], tokens: int) -> None:
        if len(prompts) > 1 and prompts[0] is prompts[1]:
            self.prefill(prompts[0])
        # Those whose prompts are computed first decode while the others' are.
        self._decoding = [self._add(prompt, tokens + SPARE_TOKENS) for prompt in prompts]
        waiting = set(self._decoding)
        while waiting:
            self._check_busy()
            waiting -= {name for name, _ in self.step()}

    def decode(self, steps: int) -> Timed:
        wanted, drawn = steps * len(self._decoding), 0
        started = time.perf_counter()
        while drawn < wanted:
            self._check_busy()
            drawn += sum(tokens for _, tokens in self.step())
        return drawn, time.perf_counter() - started

    def close_decode(self) -> None:
        self.abort(self._decoding)
        self._decoding = []
        while self.busy():
            self.step()

    def mixed(self, prompts: list[list[int]], output_tokens: int) -> Timed:
        drawn = 0
        started = time.perf_counter()
        for prompt in prompts:
            self._add(prompt, output_tokens)
        while self.busy():
            drawn += sum(tokens for _, tokens in self.step())
        return drawn, time.perf_counter() - started

    def _check_busy(self) -> None:
        if not self.busy():
            raise RuntimeError("the engine has nothing to do, but was to draw more tokens")

    def _add(self, prompt: list[int], tokens: int) -> str:
        name = f"request-{next(self._numbers)}"
        self.add(name, prompt, tokens)
        return name
