"""Which layers share pages: a model's layers in groups of like attention, so that pages out of a window can be freed.

Asked once, when a model is loaded. As in vLLM's hybrid KV cache manager and Jenga (arXiv 2503.18292) all groups have
about as many layers, so that a page of any of them is the same memory, and one allocator serves them all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from baton.core.layout import CHUNK, FULL, STATE, WINDOW, CacheGroup, KvLayout
from baton.engine.attention import Chunks, Window

STATE_PAGE_BYTES = 64 << 10  # of a layer's page, at most, where pages are made for states alone


def in_groups(
    layout: KvLayout,
    windows: Sequence[Window],
    context_tokens: int,
    state_bytes: Mapping[int, int] | None = None,
    attending: Collection[int] | None = None,
) -> KvLayout:
    """The layout of a model, of one whose pages hold all layers; the same where that is best. See `group_layers`;
    `state_bytes`: of the state of each layer that keeps one."""
    sizes = state_bytes or {}
    if attending is not None and not attending:
        layout = _for_states(layout, max(sizes.values()))
    pages = {layer: -(-size // layout.page_bytes) for layer, size in sizes.items()}
    groups = group_layers(windows, layout.page_size, context_tokens, pages, attending)
    layers = max((len(group.layers) for group in groups), default=layout.layers)
    return replace(layout, layers=layers, groups=groups)


def group_layers(
    windows: Sequence[Window],
    page_size: int,
    context_tokens: int,
    state_pages: Mapping[int, int] | None = None,
    attending: Collection[int] | None = None,
) -> tuple[CacheGroup, ...]:
    """Groups of a model whose layer l attends to `windows[l]`; empty: all layers share pages, which are kept.

    `attending`: layers that do; None: all. `state_pages`: of the state of each layer that keeps one, whether it attends
    or not. States of as many pages are together.

    A window that no context is longer than counts as none, and so do chunks that are no whole pages. Pages are those
    of the full layers, or of the fewest layers of one kind: windows that fewer layers have than see everything
    would waste more of such pages than they free.
    """
    by_kind: dict[tuple[str, int], list[int]] = {}
    for layer, window in enumerate(windows):
        if attending is None or layer in attending:
            by_kind.setdefault(_kind(window, page_size, context_tokens), []).append(layer)
    full = by_kind.pop((FULL, 0), [])
    limited = sum(map(len, by_kind.values()))
    if limited < len(full) or not limited:
        if not state_pages:
            return ()
        full, by_kind = sorted([*full, *(layer for layers in by_kind.values() for layer in layers)]), {}
    for layer, pages in sorted((state_pages or {}).items()):
        by_kind.setdefault((STATE, pages), []).append(layer)
    width = len(full) or min(map(len, by_kind.values()))
    groups = [CacheGroup(FULL, 0, tuple(full))] if full else []
    for (kind, size), layers in by_kind.items():
        parts = -(-len(layers) // width)
        cuts = [len(layers) * part // parts for part in range(parts + 1)]
        groups += [CacheGroup(kind, size, tuple(layers[a:b])) for a, b in pairwise(cuts)]
    return tuple(groups)


def _for_states(layout: KvLayout, state_bytes: int) -> KvLayout:
    """The layout with pages of which a few are as large as a state of so many bytes."""
    narrow = replace(layout, kv_heads=1, total_kv_heads=1, head_dim=1)
    pages = -(-state_bytes // STATE_PAGE_BYTES)
    return replace(narrow, head_dim=-(-state_bytes // (pages * narrow.page_bytes)))


def _kind(window: Window, page_size: int, context_tokens: int) -> tuple[str, int]:
    size = window.size if isinstance(window, Chunks) else window
    if size is None or size >= context_tokens:
        return FULL, 0
    if isinstance(window, Chunks):
        return (FULL, 0) if size % page_size else (CHUNK, size)
    return WINDOW, size
