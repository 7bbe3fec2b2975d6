"""What a model of `transformers` keeps of a row between its tokens, found out by running it once.

A layer has *tracks*, tensors to which every token adds a part (keys and values, and by what some models choose among
them), and *states*, tensors of constant size that every token changes. Some layers have both, some have neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from transformers import DynamicCache

from baton.core.errors import CheckpointError
from baton.engine.model.through.row_cache import RowCache, StateName
from baton.engine.state_store import StatePart

NOTHING_KEPT = "it has no cache of keys and values"


@dataclass(frozen=True, slots=True)
class Track:
    """Tensors [1, *lead, tokens, width]. A token's part is elements `start:end` of all that its layer keeps of it."""

    lead: tuple[int, ...]
    width: int
    start: int

    @property
    def end(self) -> int:
        return self.start + prod(self.lead) * self.width

    def flat(self, part: torch.Tensor) -> torch.Tensor:
        """[tokens, elements]"""
        return part[0].movedim(-2, 0).flatten(1)

    def shaped(self, flat: torch.Tensor) -> torch.Tensor:
        """What `flat` makes of it, [1, *lead, tokens, width]."""
        return flat.unflatten(1, (*self.lead, self.width)).movedim(0, -2)[None]


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """What one of a model's layers keeps. `pooled`: tokens that it makes one entry of, where it does."""

    tracks: Mapping[str, Track]
    states: Mapping[StateName, StatePart]
    pooled: int = 0

    @property
    def elements(self) -> int:
        """Of a token."""
        return max((track.end for track in self.tracks.values()), default=0)


class Notes:
    """A keeper (baton.engine.model.through.row_cache) of one text in plain memory, which takes notes of its first pass.

    `own`: the cache that the model makes for itself.
    """

    def __init__(self, own: object, device: torch.device) -> None:
        self.device = device
        self.cached_tokens = 0
        self._own_layers = own.layers if isinstance(own, DynamicCache) else []
        self._tracks: dict[int, dict[str, Track]] = {}
        self._parts: dict[tuple[int, str], torch.Tensor] = {}
        self._states: list[dict[StateName, torch.Tensor]] = []

    def extend(self, layer: int, name: str, part: torch.Tensor) -> torch.Tensor:
        if self.cached_tokens:
            return torch.cat((self._parts[layer, name], part), dim=-2)
        mine = self._tracks.setdefault(layer, {})
        if name in mine:
            raise CheckpointError(f"it gives {name} to layer {layer} twice")
        start = max((track.end for track in mine.values()), default=0)
        mine[name] = Track(tuple(part.shape[1:-2]), part.shape[-1], start)
        self._parts[layer, name] = part
        return part

    def states_of(self, layer: int) -> Mapping[StateName, torch.Tensor]:
        return {name: state.clone() for name, state in self._states[layer].items()}

    def pooled(self, layer: int) -> int:
        return int(getattr(self._own_layers[layer], "compress_rate", 0)) if layer < len(self._own_layers) else 0

    def kept(self, cache: RowCache, tokens: int) -> tuple[KeptLayer, ...]:
        """What all layers keep, after a first pass over so many tokens. Raises CheckpointError when it is nothing."""
        self._states, self.cached_tokens = [layer.states for layer in cache.layers], tokens
        found = []
        for index, states in enumerate(self._states):
            parts = {name: StatePart(tuple(x.shape[1:]), x.dtype) for name, x in states.items()}
            found.append(KeptLayer(self._tracks.get(index, {}), parts, self.pooled(index)))
        if not any(layer.tracks or layer.states for layer in found):
            raise CheckpointError(NOTHING_KEPT)
        return tuple(found)

    def forgotten(self, next_logits: Callable[[], torch.Tensor]) -> StateName | None:
        """A state on which the logits of what follows the first pass do not hang, if there is one."""
        before, as_they_are = self._states, next_logits()
        for name in dict.fromkeys(name for states in before for name in states):
            self._states = [{each: x + 1 if each == name else x for each, x in states.items()} for states in before]
            if torch.equal(next_logits(), as_they_are):
                return name
        return None
