"""Attention of a model of `transformers` over the paged pool: its calls, made to fit one `AttentionBackend`.

All layers of a pool have heads of one size, and a backend one scale. What a model has in fewer heads, or narrower ones,
is filled up with zeros, which change no score and no sum; another scale goes into the queries.

    T  new tokens of all rows together      H  query heads      K  key/value heads      D  size of a head
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from baton.core.errors import CheckpointError, InternalError
from baton.engine.attention import AttentionBackend, Scoring, Window
from baton.engine.cpu.library import ALIGNMENT
from baton.engine.model.through.interface import MaskFunction
from baton.engine.model.through.probe import Site, stand_in
from baton.engine.state_store import StatePart

_NO_SINK = -1e30  # a score that no weight is left for


@dataclass(frozen=True, slots=True)
class Shape:
    """What a pool and a backend must be like for all sites: `windows` per layer of the pool, beside which there are
    `states`, of each layer that keeps one. `stored`: the type of elements, where neither model nor user decide it."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[Window, ...]
    scale: float | None = None
    soft_cap: float | None = None
    sinks: tuple[torch.Tensor, ...] | None = None
    states: tuple[tuple[StatePart, ...], ...] = ()
    stored: str | None = None

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.scale, self.soft_cap, self.sinks)


def shape_of(sites: Sequence[Site]) -> Shape:
    """The shape that all sites fit into. Raises CheckpointError, naming what they cannot have in common."""
    caps = {site.soft_cap for site in sites}
    if len(caps) > 1:
        raise CheckpointError("its layers have different soft caps")
    if any(not site.writes and site.sinks is not None for site in sites):
        raise CheckpointError("layers with attention sinks share K and V")
    writers = [site for site in sites if site.writes]
    kv_heads = max(site.kv_heads for site in sites)
    groups = max(site.heads // site.kv_heads for site in sites)
    widest = max(max(site.k_dim, site.v_dim) for site in sites)
    return Shape(
        layers=len(writers),
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        head_dim=padded_head_dim(widest),
        windows=tuple(site.window for site in writers),
        scale=Counter(site.scale for site in sites).most_common(1)[0][0],
        soft_cap=caps.pop(),
        sinks=_sinks(writers, kv_heads, groups),
    )


def padded_head_dim(widest: int) -> int:
    """The size of heads in pages: one that Baton's kernels know."""
    return -(-widest // ALIGNMENT) * ALIGNMENT


def _sinks(writers: Sequence[Site], kv_heads: int, groups: int) -> tuple[torch.Tensor, ...] | None:
    """Sinks of each layer of the pool: in layers without any they take nothing. None: there are none at all."""
    known = next((site.sinks for site in writers if site.sinks is not None), None)
    if known is None:
        return None
    return tuple(
        known.new_full((kv_heads * groups,), _NO_SINK)
        if site.sinks is None
        else fitted(site.sinks.view(1, site.kv_heads, -1), kv_heads, groups).flatten()
        for site in writers
    )


class PagedCalls:
    """A listener for one step after another: writes K and V to the pool and attends there. Use from one thread.

    Raises InternalError when a forward pass asks for other attention than it did while the model was loaded.
    """

    def __init__(self, sites: Sequence[Site], shape: Shape, backend: AttentionBackend, device: torch.device) -> None:
        self._sites = sites
        self._shape = shape
        self._backend = backend
        self._mask = stand_in(device)
        self._next = 0
        self._on_layer: Callable[[int], None] | None = None
        self._latest: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, on_layer: Callable[[int], None] | None) -> None:
        """A forward pass begins, of a batch that the backend has planned."""
        self._next, self._on_layer = 0, on_layer
        self._latest.clear()

    def end(self) -> None:
        """It has ended."""
        self._on_layer = None
        self._latest.clear()
        if self._next != len(self._sites):
            raise InternalError(f"a step asked for attention {self._next} times, not {len(self._sites)}")

    def mask(self, function: MaskFunction) -> torch.Tensor | None:
        return self._mask

    def attend(
        self,
        module: torch.nn.Module,
        q_1HTD: torch.Tensor,
        k_1KTD: torch.Tensor,
        v_1KTD: torch.Tensor,
        mask: torch.Tensor | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        site = self._sites[self._next] if self._next < len(self._sites) else None
        if site is None or site.module is not module:
            raise InternalError(f"a step asked for attention in another order than at start (call {self._next})")
        self._next += 1
        shape, slot = self._shape, site.slot
        if site.writes:
            k_TKD = fitted(k_1KTD[0].transpose(0, 1), shape.kv_heads, shape.head_dim)
            v_TKD = fitted(v_1KTD[0].transpose(0, 1), shape.kv_heads, shape.head_dim)
            self._latest[slot] = (k_TKD, v_TKD)
            self._backend.write(slot, k_TKD, v_TKD)
            if self._on_layer is not None:
                self._on_layer(slot)
        q_THD = q_1HTD[0].transpose(0, 1)
        if shape.scale is not None and site.scale != shape.scale:
            q_THD = q_THD * (site.scale / shape.scale)
        groups = shape.heads // shape.kv_heads
        by_kv_head = fitted(q_THD.unflatten(1, (site.kv_heads, -1)), shape.kv_heads, groups, shape.head_dim)
        out_THD = self._backend.run(slot, by_kv_head.flatten(1, 2), *self._latest[slot])
        out = out_THD.unflatten(1, (shape.kv_heads, groups))
        out = out[:, : site.kv_heads, : site.heads // site.kv_heads, : site.v_dim]
        return out.flatten(1, 2)[None]


def fitted(x: torch.Tensor, *sizes: int) -> torch.Tensor:
    """`x` [T, ...], filled up with zeros to [T, *sizes]."""
    missing = [size - has for size, has in zip(sizes, x.shape[1:], strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [pad for size in reversed(missing) for pad in (0, size)])
