"""The rows of the comparison, and how an engine is asked for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from link import Link, RunnerFailed
from models import Model
from roofline import Machine, decode_s, mixed_s, prefill_s

SHARED_FROM_TOKENS = 512
SPARE_TOKENS = 64  # that early rows of a batch may draw while the prompts of others are computed
WARM_TOKENS = 1024  # what computes more than this is warm from the rows before it
COMMAND_TIMEOUT_S = 240.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """Which rows there are. `steps`: decode steps of one timing; there are `repeats` timings, and one before them."""

    prefill: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    mixed: tuple[int, int, int]  # requests, tokens in, tokens out
    steps: int
    repeats: int

    @property
    def decode_tokens(self) -> int:
        return self.steps * (self.repeats + 1)

    @property
    def pool_tokens(self) -> int:
        """Most KV positions that any row needs at once."""
        requests, input_tokens, output_tokens = self.mixed
        decode = max(self.batches) * (self.decode_tokens + SPARE_TOKENS) + max(
            context if is_shared(batch, context) else batch * context
            for batch in self.batches
            for context in self.contexts
        )
        return max(max(self.prefill), decode, requests * (input_tokens + output_tokens)) + 1024

    @property
    def context(self) -> int:
        """Longest request, with room for the first token."""
        return max(*self.prefill, max(self.contexts) + self.decode_tokens + SPARE_TOKENS, sum(self.mixed[1:])) + 16


FULL = Sizes((128, 1024, 4096), (1, 8, 32), (128, 2048), (32, 256, 64), 16, 5)
SMOKE = Sizes((32, 64), (1, 4), (32, 600), (4, 32, 8), 4, 2)


def is_shared(batch: int, context: int) -> bool:
    """Rows of a batch share a long context: it is computed once, so that measuring takes longer than preparing."""
    return batch > 1 and context > SHARED_FROM_TOKENS


@dataclass(frozen=True, slots=True)
class Case:
    """A row: `timed` on each link gives tokens per second, between `opened`.

    `warm`: the first timing is not counted. `seconds`: what one engine may spend on its timings before it gets fewer
    than all repeats; the last one may end later.
    """

    name: str
    command: dict[str, Any]
    open: dict[str, Any] | None = None
    warm: bool = True
    seconds: float = 25.0

    @contextmanager
    def opened(self, link: Link) -> Iterator[None]:
        if self.open is None:
            yield
            return
        link.ask(COMMAND_TIMEOUT_S, **self.open)
        try:
            yield
        finally:
            link.ask(COMMAND_TIMEOUT_S, do="close_decode")

    def timed(self, link: Link) -> tuple[float, float]:
        """(tokens per second, seconds). Raises RunnerFailed."""
        reply = link.ask(COMMAND_TIMEOUT_S, **self.command)
        if reply["seconds"] <= 0:
            raise RunnerFailed("it took no time at all, which cannot be", fatal=False)
        return reply["tokens"] / reply["seconds"], reply["seconds"]

    def roofline_tokens_per_s(self, machine: Machine, model: Model) -> float:
        """Most tokens per second that the machine allows."""
        command = self.command
        if command["do"] == "prefill":
            tokens = int(command["tokens"])
            return tokens / prefill_s(machine, model, tokens)
        if self.open is not None:
            batch, context = int(self.open["batch"]), int(self.open["context"])
            return batch / decode_s(machine, model, batch, context, shared=bool(self.open["shared"]))
        requests, input_tokens, output_tokens = (int(command[key]) for key in ("requests", "input", "output"))
        return requests * output_tokens / mixed_s(machine, model, requests, input_tokens, output_tokens)


def cases(sizes: Sizes) -> list[Case]:
    found = [
        Case(f"prefill {tokens}", {"do": "prefill", "tokens": tokens}, warm=tokens <= WARM_TOKENS)
        for tokens in sizes.prefill
    ]
    for context in sizes.contexts:
        for batch in sizes.batches:
            shared = is_shared(batch, context)
            opening: dict[str, Any] = {"do": "open_decode", "batch": batch, "context": context, "shared": shared}
            name = f"decode {batch} at {context}" + (" shared" if shared else "")
            step = {"do": "decode", "steps": sizes.steps}
            found.append(Case(name, step, {**opening, "tokens": sizes.decode_tokens}))
    requests, input_tokens, output_tokens = sizes.mixed
    mixed = {"do": "mixed", "requests": requests, "input": input_tokens, "output": output_tokens}
    found.append(Case(f"mixed {requests} x ({input_tokens} in + {output_tokens} out)", mixed, warm=False, seconds=60.0))
    return found
