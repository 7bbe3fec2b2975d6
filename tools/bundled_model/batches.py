"""Training batches: rows of generated dialogues of about equal length, made from (seed, step) alone.

A batch depends on nothing but its seed and step, so training resumes anywhere, and any number of processes may make
batches ahead. Rows are padded on the right; with causal attention padding needs no mask. Knows no model.

Most rows get position ids with a few random gaps (the idea of PoSE, Zhu et al. 2023, "PoSE: Efficient Context Window
Extension of LLMs via Positional Skip-wise Training"): a short row then trains the distances of a long context.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from tools.bundled_model.dialogue import AS_IS, Dialogue, Mix
from tools.bundled_model.encoding import ChatEncoder, Cuts, Encoded
from tools.bundled_model.lexicon import Split

_SMALLEST_ROOM = 24  # tokens; no episode fits in less
_MISSES = 3  # episodes that were too long, before a row is closed


@dataclass(frozen=True, slots=True)
class Stage:
    """Part of the curriculum, until `until` (share of all steps).

    Rows have these `lengths` with these `weights`, and this `mix` of skills. `gaps` is the share of rows whose
    positions have gaps, `cuts` the share of users' words that are written in two parts.
    """

    until: float
    lengths: tuple[int, ...]
    weights: tuple[float, ...]
    mix: Mix = AS_IS
    gaps: float = 0.0
    cuts: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """`tokens` per step, padding included. Positions with gaps stay below `context_tokens`."""

    seed: int
    steps: int
    tokens: int
    context_tokens: int
    stages: Sequence[Stage]


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of T tokens, and S supervised predictions in them.

    `sources` index the flattened [B * T] positions whose next token is learned, `targets` are those tokens, and
    `turns` says which assistant message each belongs to; message t shows skill `skills[t]`.
    """

    ids: torch.Tensor  # int64 [B, T]
    positions: torch.Tensor  # int64 [B, T]
    sources: torch.Tensor  # int64 [S]
    targets: torch.Tensor  # int64 [S]
    turns: torch.Tensor  # int64 [S]
    skills: Sequence[str]

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.ids.to(device, non_blocking=True),
            self.positions.to(device, non_blocking=True),
            self.sources.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.turns.to(device, non_blocking=True),
            self.skills,
        )


def row(
    encoder: ChatEncoder, seed: str, split: Split, length: int, mix: Mix = AS_IS, cut_share: float = 0.0
) -> Encoded:
    """One dialogue of at most `length` tokens; rarely none, when its opening leaves no room."""
    dialogue = Dialogue(seed, split, length, mix)
    cuts = Cuts(random.Random(f"cuts {seed}"), cut_share) if cut_share else None
    encoded = encoder.encode(dialogue.opening, dialogue.tools, cuts)
    misses = 0
    while misses < _MISSES and length - len(encoded.ids) > _SMALLEST_ROOM:
        episode = encoder.encode(dialogue.next_episode(length - len(encoded.ids)), cuts=cuts)
        if len(encoded.ids) + len(episode.ids) > length:
            misses += 1
        else:
            encoded.extend(episode)
    return encoded


def collate(rows: Sequence[Encoded], positions: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Rows side by side, padded on the right to the longest."""
    length = max(len(encoded.ids) for encoded in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    where = torch.zeros((len(rows), length), dtype=torch.int64)
    sources: list[int] = []
    targets: list[int] = []
    turns: list[int] = []
    skills: list[str] = []
    for index, encoded in enumerate(rows):
        ids[index, : len(encoded.ids)] = torch.tensor(encoded.ids)
        where[index, : len(encoded.ids)] = torch.tensor(positions[index])
        for turn in encoded.turns:
            sources += range(index * length + turn.start - 1, index * length + turn.end - 1)
            targets += encoded.ids[turn.start : turn.end]
            turns += [len(skills)] * (turn.end - turn.start)
            skills.append(turn.skill)
    return Batch(ids, where, torch.tensor(sources), torch.tensor(targets), torch.tensor(turns), skills)


def make_batch(encoder: ChatEncoder, plan: BatchPlan, step: int) -> Batch:
    """The batch of one step."""
    rng = random.Random(f"batch {plan.seed} {step}")
    stage = next((stage for stage in plan.stages if step < stage.until * plan.steps), plan.stages[-1])
    length = rng.choices(stage.lengths, stage.weights)[0]
    rows: list[Encoded] = []
    while len(rows) < max(1, plan.tokens // length):
        seed = f"train {plan.seed} {step} {rng.random()}"
        encoded = row(encoder, seed, Split.TRAIN, length, stage.mix, stage.cuts)
        if encoded.turns:
            rows.append(encoded)
    spare = plan.context_tokens - length
    positions = [_positions(rng, len(encoded.ids), spare if rng.random() < stage.gaps else 0) for encoded in rows]
    return collate(rows, positions, encoder.pad_id)


def held_out_batch(encoder: ChatEncoder, seed: int, rows: int, length: int) -> Batch:
    """Dialogues of held-out words and names, with plain positions."""
    made = (row(encoder, f"held out {seed} {index}", Split.HELD_OUT, length) for index in range(4 * rows))
    kept = [encoded for encoded in made if encoded.turns][:rows]
    return collate(kept, [range(len(encoded.ids)) for encoded in kept], encoder.pad_id)


def _positions(rng: random.Random, length: int, spare: int) -> list[int]:
    """Rising positions of `length` tokens, with one to three gaps of together at most `spare` at random places."""
    count = min(length, rng.randint(1, 3))
    reach = int(max(0, spare) * rng.random() ** 2)  # small jumps are more common than large ones
    shifts = sorted(rng.randint(0, reach) for _ in range(count))
    jumps = dict(zip(sorted(rng.sample(range(length), count)), shifts, strict=True))
    positions, shift = [], 0
    for index in range(length):
        shift = jumps.get(index, shift)
        positions.append(index + shift)
    return positions


class _Steps(Dataset[Batch]):
    """Map-style view of a range of steps, for the loader's processes."""

    def __init__(self, encoder: ChatEncoder, plan: BatchPlan, first: int) -> None:
        self._make = partial(make_batch, encoder, plan)
        self._first, self._count = first, plan.steps - first

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:
        return self._make(self._first + index)


def batches(encoder: ChatEncoder, plan: BatchPlan, first_step: int, workers: int) -> Iterator[Batch]:
    """Batches of the steps from `first_step` on, made by `workers` processes ahead of time (0: in this one)."""
    loader = DataLoader(
        _Steps(encoder, plan, first_step),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)
