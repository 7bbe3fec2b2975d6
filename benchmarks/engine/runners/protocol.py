"""How the comparison talks to an engine: one JSON object per line, on stdin and stdout, in each engine's own Python.

    in   {"model": "path", "threads": 2, "cores": [0, 1], "context": 4200, "pool_tokens": 70000, "seed": 0}     once
    out  {"ready": true, "about": "version and settings", "load_s": 1.2}      after a first token from 128 tokens
    in   {"do": "prefill", "tokens": 1024}                                                 out  {"tokens", "seconds"}
    in   {"do": "open_decode", "batch": 8, "context": 128, "tokens": 96, "shared": false}  out  {}
    in   {"do": "decode", "steps": 16}                                                     out  {"tokens", "seconds"}
    in   {"do": "close_decode"}                                                            out  {}
    in   {"do": "mixed", "requests": 32, "input": 256, "output": 64}                       out  {"tokens", "seconds"}
    out  {"error": "..."} instead, when it cannot

Standard library only, since every engine's environment imports it. Whatever engines print goes to stderr.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

FIRST_TOKEN, LAST_TOKEN = 300, 30_000  # ids that are plain tokens in both checkpoints
FIRST_PROMPT_TOKENS = 128
Timed = tuple[int, float]  # tokens, seconds


class Runner(Protocol):
    """An engine. `about` says which version runs with which settings."""

    about: str

    def prefill(self, prompt: list[int]) -> float:
        """Seconds from the prompt to its first token."""

    def open_decode(self, prompts: list[list[int]], tokens: int) -> None:
        """Make requests of `prompts` that are ready to draw their second token; equal prompts may be computed once."""

    def decode(self, steps: int) -> Timed:
        """Draw `steps` tokens for each of them."""

    def close_decode(self) -> None: ...

    def mixed(self, prompts: list[list[int]], output_tokens: int) -> Timed:
        """Output tokens of all, and seconds from the first prompt to the last token."""


class Prompts:
    """Random prompts; no two begin alike, so that no engine's cache can help."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self, tokens: int) -> list[int]:
        return [self._random.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in range(tokens)]

    def some(self, count: int, tokens: int, *, equal: bool = False) -> list[list[int]]:
        return [self.one(tokens)] * count if equal else [self.one(tokens) for _ in range(count)]


def serve(make: Callable[[dict[str, Any]], Runner]) -> None:
    """Serve commands until stdin ends. `make` gets the first line."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(content: dict[str, Any]) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    options = json.loads(sys.stdin.readline())
    prompts = Prompts(options["seed"])
    started = time.perf_counter()
    try:
        runner = make(options)
        load_s = time.perf_counter() - started
        runner.prefill(prompts.one(FIRST_PROMPT_TOKENS))
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        raise
    reply({"ready": True, "about": runner.about, "load_s": load_s})
    for line in sys.stdin:
        try:
            reply(_do(runner, prompts, json.loads(line)))
        except Exception as error:
            reply({"error": f"{type(error).__name__}: {error}"})


def _do(runner: Runner, prompts: Prompts, asked: dict[str, Any]) -> dict[str, Any]:
    match asked["do"]:
        case "prefill":
            return _timed((asked["tokens"], runner.prefill(prompts.one(asked["tokens"]))))
        case "open_decode":
            runner.open_decode(prompts.some(asked["batch"], asked["context"], equal=asked["shared"]), asked["tokens"])
            return {}
        case "decode":
            return _timed(runner.decode(asked["steps"]))
        case "close_decode":
            runner.close_decode()
            return {}
        case "mixed":
            return _timed(runner.mixed(prompts.some(asked["requests"], asked["input"]), asked["output"]))
    raise ValueError(f"unknown command {asked['do']!r}")


def _timed(timed: Timed) -> dict[str, Any]:
    return {"tokens": timed[0], "seconds": timed[1]}
