"""Weights of a mixture of experts, however a checkpoint has them: one by one, all in one tensor, or as MXFP4."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from baton.engine.model.decoder_config import DecoderConfig
from baton.engine.model.expert_products import Part, expert_mlps
from baton.engine.model.experts import ExpertMlps, Experts, LoopedMlps, Router
from baton.engine.model.matrices import Matrices, Matrix, by_outputs
from baton.engine.model.moe_config import MoeConfig
from baton.engine.model.projection import Linear, Mlp
from baton.engine.model.quantized.fp4 import MX_GROUP, mxfp4

# Where all experts are multiplied by at once; elsewhere one after the other, each by the device's best product.
GROUPED_DEVICES = ("cuda",)


class ExpertLoader:
    """The mixture of one layer, whose tensors stand under `prefix`."""

    def __init__(self, config: DecoderConfig, moe: MoeConfig, matrices: Matrices, prefix: str) -> None:
        self._config = config
        self._moe = moe
        self._matrices = matrices
        self._reader = matrices.reader
        self._prefix = prefix

    def experts(self) -> Experts:
        moe, names, hidden = self._moe, self._moe.mixture.names, self._config.hidden_size
        router = [self._named(names.router)]
        weight, bias = self._matrices.dense_parts(router, [moe.experts], hidden, moe.mixture.router_bias)
        correction = shared_gate = shared = None
        if names.correction is not None and moe.corrected:
            correction = self._reader.one(self._named(names.correction), (moe.experts,)).float()
        if moe.shared_size:
            shared = self._mlp(names.shared_gate_up, names.shared_down, moe.shared_size, False)
            if names.shared_gate is not None:
                gate = self._matrices.one(self._named(names.shared_gate), (1, hidden))
                shared_gate = Linear(self._matrices.dense(gate))
        routing = Router(moe.routing, Linear(weight.float(), None if bias is None else bias.float()), correction)
        return Experts(routing, self._mlps(), shared, shared_gate)

    def _mlps(self) -> ExpertMlps:
        moe, names, hidden = self._moe, self._moe.mixture.names, self._config.hidden_size
        whole, grouped = self._whole(), self._reader.device.type in GROUPED_DEVICES
        if whole is None and "{}" in names.down and not grouped:
            bias = moe.mixture.expert_bias
            every = [([name.format(i) for name in names.gate_up], names.down.format(i)) for i in range(moe.experts)]
            return LoopedMlps(tuple(self._mlp(gate_up, down, moe.size, bias) for gate_up, down in every))
        read = self._gathered_parts if "{}" in names.down else self._stacked_parts
        into, out = names.gate_up, names.down
        if whole is not None:
            read, into, out = self._whole_parts, whole[:1], whole[1]
        width = 2 * moe.size if self._config.gated else moe.size
        gate_up = read([self._named(name) for name in into], width, hidden)
        if moe.mixture.interleaved:
            for each in gate_up:
                _gates_first(each)
        down = read([self._named(out)], hidden, moe.size)
        if grouped:
            return expert_mlps(self._matrices, gate_up, down)
        make = self._matrices.product
        return LoopedMlps(tuple(Mlp(make(*one), make(*other)) for one, other in zip(gate_up, down, strict=True)))

    def _mlp(self, gate_up: Sequence[str], down: str, size: int, bias: bool) -> Mlp:
        return self._matrices.mlp(self._config, list(map(self._named, gate_up)), self._named(down), size, bias)

    def _named(self, name: str) -> str:
        return f"{self._prefix}.{name}"

    def _whole(self) -> tuple[str, str] | None:
        """Names by which the checkpoint has all experts at once, outputs before inputs; None: it has them otherwise."""
        names = self._moe.mixture.names
        there = names.whole is not None and self._named(names.whole[0]) in self._reader.entries
        return names.whole if there or not names.gate_up else None

    def _whole_parts(self, names: Sequence[str], outs: int, fan_in: int) -> list[Part]:
        """Of each expert, which the checkpoint has in one tensor: weight [outs, fan_in], and bias."""
        return [(weight, None) for weight in self._reader.one(names[0], (self._moe.experts, outs, fan_in))]

    def _gathered_parts(self, names: Sequence[str], outs: int, fan_in: int) -> list[Part]:
        """Of each expert, which the checkpoint has one by one: weight [outs, fan_in], and bias."""
        parts, bias = [outs // len(names)] * len(names), self._moe.mixture.expert_bias
        return [
            self._matrices.parts([name.format(i) for name in names], parts, fan_in, bias)
            for i in range(self._moe.experts)
        ]

    def _stacked_parts(self, names: Sequence[str], outs: int, fan_in: int) -> list[Part]:
        """The same, which the checkpoint has in one tensor: as MXFP4, or inputs before outputs."""
        moe, reader, experts, (name,) = self._moe, self._reader, self._moe.experts, names
        weights: Iterable[Matrix]
        if f"{name}_blocks" in reader.entries:
            groups = fan_in // MX_GROUP
            blocks = reader.raw(f"{name}_blocks", (experts, outs, groups, MX_GROUP // 2), {"U8": torch.uint8})
            scales = reader.raw(f"{name}_scales", (experts, outs, groups), {"U8": torch.uint8})
            weights = map(mxfp4, blocks.flatten(2), scales)
        else:
            weights = reader.one(name, (experts, fan_in, outs)).transpose(1, 2).contiguous()
        biases = reader.one(f"{name}_bias", (experts, outs)) if moe.mixture.expert_bias else [None] * experts
        return list(zip(weights, biases, strict=True))


def _gates_first(part: Part) -> None:
    """Outputs of gates and ups that take turns: all gates before all ups, in place."""
    weight, bias = part
    for rows in (*by_outputs(weight), *(() if bias is None else (bias,))):
        rows.copy_(torch.cat((rows[0::2], rows[1::2])))
