"""A row's memory as the cache that models of `transformers` know, whose contents somebody else keeps.

Such a cache belongs to one text. A layer's part of it is given new keys and values, and answers with all of them; or
gives out a state, and is given the one after. Here a *keeper* has them: notes while a model is loaded
(`baton.engine.model.through.kept`), and pages of the pool in steps (`row_pages`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, SupportsIndex

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

StateName = tuple[str, int]  # its kind, conv or recurrent, and its number


class Keeper(Protocol):
    """What a row's layers keep."""

    @property
    def device(self) -> torch.device: ...

    @property
    def cached_tokens(self) -> int:
        """Tokens of the row before the new ones."""

    def extend(self, layer: int, name: str, part: torch.Tensor) -> torch.Tensor:
        """Keep what the new tokens add, [1, ..., new tokens, width]; what all the row's tokens have."""

    def states_of(self, layer: int) -> Mapping[StateName, torch.Tensor]:
        """The layer's states after the cached tokens, [1, ...]; the caller may write to them."""

    def pooled(self, layer: int) -> int:
        """Tokens that the layer makes one entry of, where it attends to such entries."""


class RowLayer(DynamicLayer):
    """A layer's part: of whichever kind it turns out to be. `states`: after the tokens that it has been given so far;
    none before there are any."""

    def __init__(self, keeper: Keeper, layer: int) -> None:
        super().__init__()
        self._keeper = keeper
        self._layer = layer
        self._seq_length = keeper.cached_tokens
        self._positions: torch.Tensor | None = None
        self.is_initialized = True
        self.states = dict(keeper.states_of(layer)) if keeper.cached_tokens else {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys = self._keeper.extend(self._layer, "keys", key_states)
        self.keys = keys
        self.values = keys if value_states is key_states else self._keeper.extend(self._layer, "values", value_states)
        self._seq_length = int(keys.shape[-2])
        return self.keys, self.values

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """By what models with DeepSeek's sparse attention choose tokens."""
        return self._keeper.extend(self._layer, "index", indexer_key_states)

    def update_index(self, idx_k: torch.Tensor) -> torch.Tensor:
        """By what MiniMax M3 chooses blocks."""
        return self._keeper.extend(self._layer, "index", idx_k)

    def store_compression_weights(
        self, name: str, kv: torch.Tensor, gate: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """What DeepSeek V4 makes entries of, and the first position. Entries are not kept, but made of all tokens in
        every step: that needs no memory of how far the last one came."""
        kv = self._keeper.extend(self._layer, f"{name} values", kv)
        gate = self._keeper.extend(self._layer, f"{name} gates", gate)
        pooled = self._keeper.pooled(self._layer)
        whole = kv.shape[1] // pooled * pooled
        return kv[:, :whole], gate[:, :whole], 0

    def update_compressor_states(self, name: str, compressed: torch.Tensor) -> torch.Tensor:
        """All entries, of which none were there before."""
        return compressed

    def update_overlap_state(self, *_: object) -> tuple[None, None]:
        """What went before the first entry: nothing."""
        return None, None

    @property
    def indexer_position_ids(self) -> torch.Tensor | None:
        """Positions of a text's tokens so far, in time, height and width, of which models that see images (Qwen's) put
        those of new ones to it."""
        if self._positions is None and self._keeper.cached_tokens:
            self._positions = torch.arange(self._keeper.cached_tokens, device=self._keeper.device).expand(3, 1, -1)
        return self._positions

    @indexer_position_ids.setter
    def indexer_position_ids(self, positions: torch.Tensor) -> None:
        self._positions = positions

    def get_seq_length(self, *_: object) -> int:
        return self._seq_length


class _Layers(list[RowLayer]):
    """`count` layers, and as many more as are asked for."""

    def __init__(self, keeper: Keeper, count: int) -> None:
        super().__init__(RowLayer(keeper, layer) for layer in range(count))
        self._keeper = keeper

    def __getitem__(self, index: SupportsIndex | slice) -> RowLayer:
        assert not isinstance(index, slice)
        while len(self) <= index.__index__():
            self.append(RowLayer(self._keeper, len(self)))
        return super().__getitem__(index)


class RowCache(Cache):
    """The cache of one row in one pass."""

    layers: list[RowLayer]

    def __init__(self, keeper: Keeper, layers: int = 1) -> None:
        """`layers`: as many as there are known to be; masks are made before layers are asked for."""
        Cache.__init__(self, layers=_Layers(keeper, layers))  # not that of a class in between
        self._cached = keeper.cached_tokens > 0

    def has_previous_state(self, *_: object, **__: object) -> bool:
        return self._cached

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.layers[layer_idx].states.get(("conv", state_idx)) if self._cached else None

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **_: object,
    ) -> torch.Tensor:
        """What a convolution needs: inputs of the last tokens and, in what is returned, of the new ones."""
        states, name = self.layers[layer_idx].states, ("conv", state_idx)
        if self._cached:
            width = states[name].shape[-1]
            conv_states = torch.cat((states[name], conv_states), dim=-1)
        else:
            width = conv_kernel_size or conv_states.shape[-1]
            conv_states = F.pad(conv_states, (max(0, width - conv_states.shape[-1]), 0))
        states[name] = conv_states[..., -width:]
        return conv_states

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.layers[layer_idx].states.get(("recurrent", state_idx)) if self._cached else None

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **_: object
    ) -> torch.Tensor:
        self.layers[layer_idx].states["recurrent", state_idx] = recurrent_states
        return recurrent_states

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        """A state, to MiniMax."""
        return self.get_recurrent_state(layer_idx)

    def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
        self.update_recurrent_state(linear_cache, layer_idx)


def row_cache_like(own: object) -> type[RowCache]:
    """Of the class of the cache that a model makes for itself, which some insist on."""
    kind = type(own)
    if isinstance(own, DynamicCache) and kind is not DynamicCache:
        return type(f"Row{kind.__name__}", (RowCache, kind), {})
    return RowCache
