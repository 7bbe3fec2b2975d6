"""Matrices of a checkpoint, brought together and made into whatever multiplies by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from baton.engine.model.config import DecoderConfig
from baton.engine.model.projection import MakeProjection, Mlp, Projection
from baton.engine.model.tensors import TensorReader


@dataclass(frozen=True, slots=True)
class Matrices:
    """Reads matrices by name, and makes products of them by `projection` as soon as they are read."""

    reader: TensorReader
    projection: MakeProjection

    def linear(self, names: Sequence[str], outs: Sequence[int], fan_in: int, bias: bool) -> Projection:
        return self.projection(*self.parts(names, outs, fan_in, bias))

    def parts(
        self, names: Sequence[str], outs: Sequence[int], fan_in: int, bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the named matrices, one after the other; of one name, the checkpoint has them so."""
        if len(names) == 1:
            outs = [sum(outs)]
        weight = self.reader.stacked([f"{name}.weight" for name in names], [(out, fan_in) for out in outs])
        if not bias:
            return weight, None
        return weight, self.reader.stacked([f"{name}.bias" for name in names], [(out,) for out in outs])

    def mlp(self, config: DecoderConfig, gate_up: Sequence[str], down: str, size: int, bias: bool) -> Mlp:
        outs, hidden = [size, size] if config.gated else [size], config.hidden_size
        return Mlp(
            gate_up=self.linear(gate_up, outs, hidden, bias),
            down=self.linear([down], [hidden], size, bias),
        )
