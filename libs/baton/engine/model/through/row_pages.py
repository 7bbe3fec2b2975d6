"""What the rows of a step keep, in pages of the pool, one row at a time.

Of each token a layer has its tracks one after the other, all of them in what is the place of K and V elsewhere. States
are read before a row's new tokens, and written after them (baton.engine.state_store).

    n  new tokens of the row     E  elements that a token has in a layer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from baton.core.errors import InternalError
from baton.core.layout import KvLayout
from baton.engine.batch import StepBatch
from baton.engine.elements import Elements
from baton.engine.model.through.kept import KeptLayer, Track
from baton.engine.model.through.row_cache import RowCache, StateName
from baton.engine.state_store import StateStore


class RowPages:
    """A keeper (baton.engine.model.through.row_cache) for the rows of a step. `kept`: by each layer of the model.

    Layers of the pool are numbered: those with tracks, then those with states.
    """

    def __init__(self, layout: KvLayout, kept: Sequence[KeptLayer], dtype: torch.dtype) -> None:
        self._page_size = layout.page_size
        self._kept = kept
        self._elements = Elements(layout, dtype)
        self._pool = torch.empty(0)
        tracked = [layer for layer, keeps in enumerate(kept) if keeps.tracks]
        stateful = [layer for layer, keeps in enumerate(kept) if keeps.states]
        self._slots = {layer: slot for slot, layer in enumerate(tracked)}
        self._places = {layer: len(tracked) + at for at, layer in enumerate(stateful)}
        parts = {place: tuple(kept[layer].states.values()) for layer, place in self._places.items()}
        self._store = StateStore(layout, parts) if parts else None
        self._row: StepBatch | None = None
        self._on_layer: Callable[[int], None] | None = None
        self._extended: dict[int, set[str]] = {}  # by the row's new tokens
        self.cached_tokens = 0

    @property
    def device(self) -> torch.device:
        return self._pool.device

    def bind_pool(self, pool: torch.Tensor) -> None:
        layers, pages, planes, page_size, heads, head_dim = pool.shape
        self._pool = self._elements.of(pool).view(layers, pages, planes, page_size, heads * head_dim)
        if self._store is not None:
            self._store.bind_pool(pool)

    def begin(self, row: StepBatch, on_layer: Callable[[int], None] | None) -> None:
        """The only row of the batch `row` is at work from now on. `on_layer` as for ModelRunner.forward."""
        self._row, self._on_layer = row, on_layer
        self.cached_tokens = row.seq_lens_host[0] - row.q_lens_host[0]
        self._extended = {layer: set() for layer in self._slots}
        if self._store is not None:
            self._store.plan(row)

    def end(self, cache: RowCache) -> None:
        """Keep the states that `cache` was left with. Raises InternalError when the model left a layer out."""
        for layer, extended in self._extended.items():
            if len(extended) != len(self._kept[layer].tracks):
                raise InternalError(f"a step gave layer {layer} {len(extended)} of what it keeps of each token")
        for layer, place in self._places.items():
            assert self._store is not None
            states = cache.layers[layer].states
            self._store.write(place, [states[name] for name in self._kept[layer].states])
            self._tell(place)
        self._row = self._on_layer = None

    def extend(self, layer: int, name: str, part: torch.Tensor) -> torch.Tensor:
        assert self._row is not None
        track = self._kept[layer].tracks.get(name) if layer < len(self._kept) else None
        if track is None or name in self._extended[layer]:
            raise InternalError(f"a step gave {name} to layer {layer} as it did not at start")
        slot, slots, page_size = self._slots[layer], self._row.slots, self._page_size
        stored = self._elements.stored(track.flat(part))
        places = self._places_of(track)
        for plane, within, own in places:
            self._pool[slot][slots // page_size, plane, slots % page_size, within] = stored[:, own]
        self._extended[layer].add(name)
        if len(self._extended[layer]) == len(self._kept[layer].tracks):
            self._tell(slot)
        if not self.cached_tokens:
            return part
        table = self._row.page_table[0, : -(-self.cached_tokens // page_size)]
        parts = [self._pool[slot, :, plane, :, within].index_select(0, table) for plane, within, _ in places]
        held = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)  # [pages, page_size, elements]
        numbers = self._elements.numbers(held.flatten(0, 1)[: self.cached_tokens])
        return torch.cat((track.shaped(numbers), part), dim=-2)

    def states_of(self, layer: int) -> Mapping[StateName, torch.Tensor]:
        if self._store is None or layer not in self._places:
            return {}
        return dict(zip(self._kept[layer].states, self._store.read(self._places[layer]), strict=True))

    def pooled(self, layer: int) -> int:
        return self._kept[layer].pooled

    def _places_of(self, track: Track) -> list[tuple[int, slice, slice]]:
        """Where a token's part is: planes, which elements of them, and of the part. A token keeps to its own place in
        both planes, so that pages can become pages of another size."""
        size, found = self._pool.shape[-1], []
        for plane in range(track.start // size, -(-track.end // size)):
            start, end = max(track.start, plane * size), min(track.end, (plane + 1) * size)
            within = slice(start - plane * size, end - plane * size)
            found.append((plane, within, slice(start - track.start, end - track.start)))
        return found

    def _tell(self, slot: int) -> None:
        if self._on_layer is not None:
            self._on_layer(slot)
