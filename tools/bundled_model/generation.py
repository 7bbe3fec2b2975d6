"""Greedy generation for many prompts at once, with a KV cache. Used by evaluation; Baton itself serves differently."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tools.bundled_model.model import KvCache, Llama


@torch.inference_mode()
def greedy(model: Llama, prompts: Sequence[Sequence[int]], end_id: int, max_new_tokens: int) -> list[list[int]]:
    """Tokens that follow each prompt, up to `end_id` (left out) or `max_new_tokens`. Runs on the CPU in float32.

    Prompts are padded on the right; a row reads its own prompt's columns and what was generated for it.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    widest = int(lengths.max())
    ids = torch.zeros(len(prompts), widest, dtype=torch.int64)
    for index, prompt in enumerate(prompts):
        ids[index, : len(prompt)] = torch.tensor(prompt)
    cache = KvCache(model.shape, len(prompts), widest + max_new_tokens)
    columns = torch.arange(widest + max_new_tokens)
    cache.readable = (columns < lengths[:, None]) | (columns >= widest)
    hidden = model.hidden(ids, torch.arange(widest).expand_as(ids), cache)
    logits = model.logits(hidden[torch.arange(len(prompts)), lengths - 1])
    return _continue(model, cache, logits, lengths, end_id, max_new_tokens)


def _continue(
    model: Llama, cache: KvCache, logits: torch.Tensor, positions: torch.Tensor, end_id: int, max_new_tokens: int
) -> list[list[int]]:
    """Decode from the prompts' last logits; `positions` are those of the next tokens."""
    made: list[list[int]] = [[] for _ in range(len(positions))]
    active = torch.arange(len(positions))
    for _ in range(max_new_tokens):
        chosen = logits.argmax(-1)
        going = chosen != end_id
        if not going.all():
            kept = going.nonzero()[:, 0]
            cache.keep(kept)
            active, chosen, positions = active[kept], chosen[kept], positions[kept]
        if not len(active):
            break
        for row, token in zip(active.tolist(), chosen.tolist(), strict=True):
            made[row].append(token)
        logits = model.logits(model.hidden(chosen[:, None], positions[:, None], cache)[:, 0])
        positions = positions + 1
    return made
