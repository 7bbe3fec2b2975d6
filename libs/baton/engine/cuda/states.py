"""Layers that keep a state, on a GPU: steps of one new token per row by FlashInfer's kernels, where it has them.

**Untested on hardware.** A `States` (baton.engine.state_store) around the one of torch operations, which does all else:
prompts, convolutions, and bringing states from pages and back. When a model is loaded, two steps of each kind of mixer
are tried both ways: what FlashInfer lacks, refuses or computes otherwise stays with torch, and the log says so.

    R  rows    H  heads    P  size of a head    G  groups of heads    N  size of a state    K, V  of a key and a value
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
import torch
import torch.nn.functional as F

from baton.core.layout import STATE, CacheGroup, KvLayout
from baton.engine.batch import StepBatch
from baton.engine.model.gated_delta import GatedDelta
from baton.engine.model.mamba2 import Mamba2
from baton.engine.model.short_conv import convolve
from baton.engine.state_store import Mixer, StatePart, StateStore, state_bytes

log = structlog.get_logger(__name__)

_TRIED_ROWS = 3
_AGREEMENT = 0.03  # of the root mean square: bfloat16 is rounded at other places


@dataclass(frozen=True, slots=True)
class Updates:
    """FlashInfer's functions for one token of each row; None where it lacks one."""

    mamba2: Callable[..., Any] | None  # mamba.selective_state_update
    delta: Callable[..., Any] | None  # gdn_decode.gated_delta_rule_decode

    def mixed(self, layer: int, mixer: Mixer, x_RE: torch.Tensor, store: StateStore) -> torch.Tensor | None:
        """What `mixer.mixed` returns, of rows with one token each; None where there is no function for that."""
        if isinstance(mixer, Mamba2) and self.mamba2 is not None:
            return _mamba2(self.mamba2, layer, mixer, x_RE, store)
        if isinstance(mixer, GatedDelta) and self.delta is not None and not mixer.config.doubled:
            return _gated_delta(self.delta, layer, mixer, x_RE, store)
        return None


def flashinfer_updates(mixers: Iterable[Mixer]) -> Updates:
    """Those for `mixers` that can be imported here."""
    kinds = {type(mixer) for mixer in mixers}
    return Updates(
        _found("flashinfer.mamba", "selective_state_update") if Mamba2 in kinds else None,
        _found("flashinfer.gdn_decode", "gated_delta_rule_decode") if GatedDelta in kinds else None,
    )


def _found(module: str, name: str) -> Callable[..., Any] | None:
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # it looks for compilers and drivers as it loads
        log.warning(
            "states are advanced by plain torch operations: FlashInfer lacks a function", name=name, why=str(error)
        )
        return None
    return found


class GpuStates:
    """Use from one thread at a time."""

    def __init__(
        self, store: StateStore, mixers: Mapping[int, Mixer], updates: Updates, hidden_size: int, device: torch.device
    ) -> None:
        """`mixers`: of the layers that keep a state, on inputs of `hidden_size` columns."""
        self.row_bytes = store.row_bytes
        self._store = store
        self._updates = updates
        self._singles = False
        kinds = {type(mixer): (mixer, store.parts[layer]) for layer, mixer in mixers.items()}
        self._known = {kind for kind, known in kinds.items() if _agrees(updates, *known, hidden_size, device)}

    def bind_pool(self, pool: torch.Tensor) -> None:
        self._store.bind_pool(pool)

    def plan(self, batch: StepBatch) -> None:
        self._store.plan(batch)
        self._singles = all(q_len == 1 for q_len in batch.q_lens_host)

    def mixed(self, layer: int, mixer: Mixer, x_TE: torch.Tensor) -> torch.Tensor:
        if self._singles and type(mixer) in self._known:
            mixed_TN = self._updates.mixed(layer, mixer, x_TE, self._store)
            assert mixed_TN is not None, "mixers of its kind were tried"
            return mixed_TN
        return self._store.mixed(layer, mixer, x_TE)

    def saved(self) -> Callable[[], None]:
        return self._store.saved()


def _mamba2(
    update: Callable[..., Any], layer: int, mixer: Mamba2, x_RE: torch.Tensor, store: StateStore
) -> torch.Tensor:
    config = mixer.config
    gate_RI, xbc_RC, dt_RH = mixer.input(x_RE).split((config.inner, config.channels, config.heads), dim=-1)
    conv, state_RHPN = store.read(layer)
    xbc_RC, conv = convolve(xbc_RC, conv, mixer.conv_WC, store)
    xbc_RC = F.silu(xbc_RC if mixer.conv_bias_C is None else xbc_RC + mixer.conv_bias_C)
    shared = config.groups * config.state
    x_RI, b_RS, c_RS = xbc_RC.split((config.inner, shared, shared), dim=-1)
    over_head = (config.heads, config.head_dim)
    # Numbers of a head are told from those of its elements by strides of 0.
    y_RHP = update(
        state_RHPN,
        x_RI.unflatten(1, over_head),
        dt_RH.float()[..., None].expand(-1, *over_head),
        mixer.a_H[:, None, None].expand(*over_head, config.state),
        b_RS.unflatten(1, (config.groups, config.state)),
        c_RS.unflatten(1, (config.groups, config.state)),
        mixer.d_H[:, None].expand(over_head),
        dt_bias=mixer.dt_bias_H[:, None].expand(over_head),
        dt_softplus=True,
    )
    store.write(layer, (conv, state_RHPN))
    return mixer.gated(y_RHP.flatten(1).float(), gate_RI)


def _gated_delta(
    update: Callable[..., Any], layer: int, mixer: GatedDelta, x_RE: torch.Tensor, store: StateStore
) -> torch.Tensor:
    config = mixer.config
    qkv_RC, gate_RI = mixer.input(x_RE).split((config.channels, config.values), dim=-1)
    written_RH, left_RH = mixer.rates(x_RE).chunk(2, dim=-1)
    conv, state_RHKV = store.read(layer)
    qkv_RC, conv = convolve(qkv_RC, conv, mixer.conv_WC, store)
    q_RX, k_RX, v_RI = F.silu(qkv_RC).split((config.keys, config.keys, config.values), dim=-1)
    y_R1HV, _ = update(
        *(each[:, None].unflatten(2, (config.key_heads, config.key_dim)) for each in (q_RX, k_RX)),
        v_RI[:, None].unflatten(2, (config.value_heads, config.value_dim)),
        state_RHKV,
        (-mixer.a_H).log(),
        left_RH[:, None].contiguous(),
        mixer.bias_H,
        written_RH[:, None].contiguous(),
    )
    store.write(layer, (conv, state_RHKV))
    return mixer.gated(y_R1HV[:, 0], gate_RI)


def _agrees(updates: Updates, mixer: Mixer, parts: Sequence[StatePart], hidden_size: int, device: torch.device) -> bool:
    """Whether two steps of random rows come to the same both ways."""
    name = type(mixer).__name__
    try:
        ours = _tried(mixer, parts, hidden_size, device, updates.mixed)
        theirs = _tried(mixer, parts, hidden_size, device, lambda at, of, x_RE, states: of.mixed(at, x_RE, states))
    except Exception as error:  # kernels are compiled for the GPU at hand, and refuse sizes each in its own way
        log.warning("states are advanced by plain torch operations: FlashInfer fails", mixer=name, why=str(error))
        return False
    if ours is None or theirs is None:
        return False
    agrees = bool((ours - theirs).norm() <= _AGREEMENT * theirs.norm())
    if not agrees:
        log.warning("states are advanced by plain torch operations: FlashInfer computes otherwise", mixer=name)
    return agrees


@torch.inference_mode()
def _tried(
    mixer: Mixer,
    parts: Sequence[StatePart],
    hidden_size: int,
    device: torch.device,
    mixed: Callable[[int, Mixer, torch.Tensor, StateStore], torch.Tensor | None],
) -> torch.Tensor | None:
    """What two steps of some rows come to, float32, over a pool of their own; None where `mixed` cannot."""
    rows, layout = _TRIED_ROWS, KvLayout("", "bfloat16", 1, 16, 1, 64)
    pages = -(-state_bytes(parts) // layout.page_bytes)
    store = StateStore(replace(layout, groups=(CacheGroup(STATE, pages, (0,)),)), {0: parts})
    store.bind_pool(torch.zeros((1, rows * pages, layout.page_bytes), dtype=torch.uint8, device=device))
    table = torch.arange(rows * pages, device=device).view(rows, pages)
    none = torch.zeros(rows, dtype=torch.int64, device=device)
    batch = StepBatch(none, none, none, none, none, none, none, [1] * rows, [2] * rows)
    batch = replace(batch, views=(replace(batch, state_sources=table, state_targets=table),))
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(2):
        x_RE = torch.randn((rows, hidden_size), generator=generator).to(device, parts[0].dtype)
        store.plan(batch)
        found.append(mixed(0, mixer, x_RE, store))
    return None if found[0] is None else torch.cat([each.float() for each in found if each is not None])
