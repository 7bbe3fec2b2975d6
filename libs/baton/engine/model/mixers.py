"""What layers have in place of attention, or beside it, that keep a state of constant size; and what these are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baton.engine.model.decoder_config import DecoderConfig
from baton.engine.model.gated_delta import GatedDelta, gated_delta_state
from baton.engine.model.heads import AttentionHeads
from baton.engine.model.kimi_delta import KimiDelta
from baton.engine.model.mamba1 import Mamba1, mamba1_state
from baton.engine.model.mamba2 import Mamba2, mamba2_state
from baton.engine.model.short_conv import ShortConv, conv_state
from baton.engine.state_store import StatePart

StateMixer = ShortConv | Mamba1 | Mamba2 | GatedDelta | KimiDelta


@dataclass(frozen=True, slots=True)
class Beside:
    """A layer that attends and keeps a state, both of the same input. Its output matrix takes what was attended and
    what was mixed, one after the other."""

    heads: AttentionHeads
    mixer: StateMixer


def state_parts(config: DecoderConfig, dtype: torch.dtype) -> tuple[StatePart, ...]:
    """What a layer that keeps a state keeps for each row, of a model that computes in `dtype`; nothing, where none
    does."""
    if config.mamba1 is not None:
        return mamba1_state(config.mamba1, dtype)
    if config.mamba2 is not None:
        return mamba2_state(config.mamba2, dtype)
    if config.gated_delta is not None:
        return gated_delta_state(config.gated_delta, dtype)
    return () if config.conv is None else (conv_state(config.hidden_size, config.conv.width, dtype),)
