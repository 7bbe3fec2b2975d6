"""Trace files in the form that Mooncake published (FAST'25): one JSON object per line.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, ..., 2354]}

`timestamp` is in milliseconds, ascending. `hash_ids` name the blocks of 512 prompt tokens, the last of which may be
partial: equal ids are equal blocks under equal prefixes. The prompt made of a line has equal tokens for equal ids, so
that the server's cache sees the reuse that the traced service saw.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.cli.bench.workload import Content, Conversation, Turn, Writer
from baton.core.errors import ConfigError

BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TraceLine:
    """One request of the trace; lengths in tokens of the traced service."""

    timestamp_ms: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def read_trace(path: Path, limit: int | None = None) -> list[TraceLine]:
    """The first `limit` lines. Raises ConfigError naming file and line of what is wrong."""
    found: list[TraceLine] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                if limit is not None and len(found) == limit:
                    break
                if text.strip():
                    found.append(_parse(text, f"{path}, line {number}", found[-1].timestamp_ms if found else 0.0))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not found:
        raise ConfigError(f"{path} has no requests")
    return found


def conversations(lines: list[TraceLine], writer_seed: int, vocab: int, *, block_tokens: int, speed: float,
                  text: bool) -> Iterator[Conversation]:  # fmt: skip
    """The trace's requests, due at its times divided by `speed`.

    `block_tokens` tokens are made for each hash id; below 512 all lengths shrink alike, and the reuse stays the same.
    """
    if block_tokens < 1 or speed <= 0:
        raise ConfigError(f"block tokens {block_tokens}, speed {speed}: need at least 1, more than 0")
    scale = block_tokens / BLOCK_TOKENS
    for line in lines:
        input_tokens = max(1, round(line.input_length * scale))
        output_tokens = max(1, round(line.output_length * scale))
        blocks = [Writer((writer_seed, block), vocab, text=text).content(block_tokens) for block in line.hash_ids]
        due_s = (line.timestamp_ms - lines[0].timestamp_ms) / 1e3 / speed
        yield Conversation((Turn(_joined(blocks, input_tokens), output_tokens),), due_s=due_s)


def _joined(blocks: list[Content], tokens: int) -> Content:
    """The first `tokens` of all blocks, which are of one kind."""
    words = [word for block in blocks if isinstance(block, str) for word in block.split()]
    ids = [token for block in blocks if not isinstance(block, str) for token in block]
    return " ".join(words[:tokens]) if words else ids[:tokens]


def _parse(text: str, where: str, not_before_ms: float) -> TraceLine:
    try:
        raw: Any = json.loads(text)
        line = TraceLine(
            float(raw["timestamp"]),
            int(raw["input_length"]),
            int(raw["output_length"]),
            tuple(int(block) for block in raw["hash_ids"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{where}: no request of a trace ({error!r}); it needs timestamp, input_length, output_length and hash_ids"
        ) from None
    blocks = -(-line.input_length // BLOCK_TOKENS)
    if line.input_length < 1 or line.output_length < 1:
        raise ConfigError(f"{where}: {line.input_length} tokens in, {line.output_length} out; both must be at least 1")
    if len(line.hash_ids) != blocks:
        raise ConfigError(
            f"{where}: {line.input_length} input tokens are {blocks} blocks of {BLOCK_TOKENS}, "
            f"but there are {len(line.hash_ids)} hash_ids"
        )
    if line.timestamp_ms < not_before_ms:
        raise ConfigError(f"{where}: timestamp {line.timestamp_ms:g} is before that of the line above")
    return line
