"""What a model of `transformers` keeps of a row between its tokens, found out by running it once.

A layer has *tracks*, tensors to which every token adds a part (keys and values, and by what some models choose among
them), and *states*, tensors of constant size that every token changes. Some layers have both, some have neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from transformers import Cache

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


@dataclass
class Notes:
    """A keeper (baton.engine.model.through.row_cache) for one pass over some first tokens, which takes notes.

    `own`: the cache that the model makes for itself.
    """

    own: object
    device: torch.device
    cached_tokens: int = 0
    tracks: dict[int, dict[str, Track]] = field(default_factory=dict)

    def extend(self, layer: int, name: str, part: torch.Tensor) -> torch.Tensor:
        mine = self.tracks.setdefault(layer, {})
        if name in mine:
            raise CheckpointError(f"it gives {name} to layer {layer} twice")
        start = max((track.end for track in mine.values()), default=0)
        mine[name] = Track(tuple(part.shape[1:-2]), part.shape[-1], start)
        return part

    def states_of(self, layer: int) -> Mapping[StateName, torch.Tensor]:
        return {}

    def pooled(self, layer: int) -> int:
        layers = self.own.layers if isinstance(self.own, Cache) else []
        return int(getattr(layers[layer], "compress_rate", 0)) if layer < len(layers) else 0

    def kept(self, cache: RowCache) -> tuple[KeptLayer, ...]:
        """Of all layers, after the pass. Raises CheckpointError when there is nothing."""
        found = []
        for index, layer in enumerate(cache.layers):
            parts = {name: StatePart(tuple(x.shape[1:]), x.dtype) for name, x in layer.states.items()}
            found.append(KeptLayer(self.tracks.get(index, {}), parts, self.pooled(index)))
        if not any(layer.tracks or layer.states for layer in found):
            raise CheckpointError(NOTHING_KEPT)
        return tuple(found)
