"""Weights of what stands in a layer in place of attention, or beside it, and keeps a state."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from baton.engine.model.decoder_config import DecoderConfig
from baton.engine.model.delta_config import GatedDeltaConfig
from baton.engine.model.gated_delta import GatedDelta
from baton.engine.model.hybrid_config import ConvConfig
from baton.engine.model.kimi_delta import KimiDelta
from baton.engine.model.mamba1 import Mamba1
from baton.engine.model.mamba2 import Mamba2
from baton.engine.model.mamba_config import NO_NORM, Mamba1Config, Mamba2Config
from baton.engine.model.matrices import Matrices, picked
from baton.engine.model.mixers import StateMixer
from baton.engine.model.pointwise import Norm
from baton.engine.model.projection import Linear, Projection, Scaled
from baton.engine.model.short_conv import ShortConv


class MixerLoader:
    """The mixer of layer `layer`, whose tensors stand under `prefix`, and its output matrix."""

    def __init__(self, config: DecoderConfig, matrices: Matrices, layer: int, prefix: str) -> None:
        self._config = config
        self._names = config.names_of(layer)
        self._matrices = matrices
        self._reader = matrices.reader
        self._prefix = prefix

    def mixer(self) -> tuple[StateMixer, Projection]:
        config, names = self._config, self._names
        if config.conv is not None:
            return self._short_conv(config.conv), self._output(names.conv_out, config.hidden_size, config.conv.bias)
        if config.mamba1 is not None:
            return self._mamba1(config.mamba1), self._output(names.conv_out, config.mamba1.inner, config.mamba1.bias)
        if config.mamba2 is not None:
            output = self._output(names.conv_out, config.mamba2.inner, config.mamba2.output_bias)
            if config.multipliers is not None:
                output = Scaled(output, after=config.multipliers.mixer_out)
            return self._mamba2(config.mamba2), output
        assert config.gated_delta is not None, "a layer with a state has a mixer"
        mixer = (self._kimi_delta if config.kimi_delta else self._gated_delta)(config.gated_delta)
        return mixer, self._output(names.delta_out, config.gated_delta.values, False)

    def _output(self, name: str, fan_in: int, bias: bool) -> Projection:
        return self._matrices.linear([f"{self._prefix}.{name}"], [self._config.hidden_size], fan_in, bias)

    def _short_conv(self, conv: ConvConfig) -> ShortConv:
        name, hidden = f"{self._prefix}.{self._names.conv}", self._config.hidden_size
        bias = self._reader.one(f"{name}.bias", (hidden,)) if conv.bias else None
        into = self._matrices.linear([f"{self._prefix}.{self._names.conv_in}"], [3 * hidden], hidden, conv.bias)
        return ShortConv(into, self._taps([name], [hidden], conv.width), bias)

    def _mamba1(self, mamba1: Mamba1Config) -> Mamba1:
        names, reader, inner = self._names, self._reader, mamba1.inner
        under, conv = f"{self._prefix}.{names.mixer}", f"{self._prefix}.{names.conv}"
        # What is left of a state is multiplied up over all tokens: these few outputs keep their bits.
        parts = [mamba1.rank, mamba1.state, mamba1.state]
        selected, _ = self._matrices.dense_parts([f"{under}.x_proj"], parts, inner, False)
        step, step_bias = self._matrices.dense_parts([f"{under}.dt_proj"], [inner], mamba1.rank, True)
        assert step_bias is not None
        norms = None
        if mamba1.norm_eps is not None:
            dt, b, c = (self._selected_norm(f"{under}.{name}_layernorm", size, mamba1.norm_weights)
                        for name, size in zip(("dt", "b", "c"), parts, strict=True))  # fmt: skip
            norms = dt, b, c
        return Mamba1(
            config=mamba1,
            input=self._matrices.linear(
                [f"{self._prefix}.{names.conv_in}"], [2 * inner], self._config.hidden_size, mamba1.bias
            ),
            conv_WI=self._taps([conv], [inner], mamba1.width),
            conv_bias_I=reader.one(f"{conv}.bias", (inner,)) if mamba1.conv_bias else None,
            selected=Linear(selected),
            norms=norms,
            step=Linear(step),
            step_bias_I=step_bias.float(),
            a_IN=-reader.one(f"{under}.A_log", (inner, mamba1.state)).float().exp(),
            d_I=reader.one(f"{under}.D", (inner,)).float(),
        )

    def _selected_norm(self, name: str, size: int, stored: bool) -> Norm:
        reader = self._reader
        plain = torch.ones(size, dtype=reader.dtype, device=reader.device)
        return Norm(reader.one(f"{name}.weight", (size,)) if stored else plain)

    def _mamba2(self, mamba2: Mamba2Config) -> Mamba2:
        prefix, names, channels = self._prefix, self._names, mamba2.channels
        under, conv = f"{names.mixer}", f"{prefix}.{names.conv}"
        a_log, d, dt_bias = (self._by_head(f"{under}.{name}", mamba2.heads) for name in ("A_log", "D", "dt_bias"))
        norm = None
        if mamba2.gating != NO_NORM:
            norm = Norm(self._reader.one(f"{prefix}.{under}.norm.weight", (mamba2.inner,)))
        return Mamba2(
            config=mamba2,
            input=self._mamba2_input(mamba2),
            conv_WC=self._taps([conv], [channels], mamba2.width),
            conv_bias_C=self._reader.one(f"{conv}.bias", (channels,)) if mamba2.conv_bias else None,
            a_H=-a_log.exp(),
            d_H=d,
            dt_bias_H=dt_bias,
            norm=norm,
            eps=self._config.norm_eps,
        )

    def _mamba2_input(self, mamba2: Mamba2Config) -> Projection:
        shared, multipliers = mamba2.groups * mamba2.state, self._config.multipliers
        parts = [mamba2.inner, mamba2.inner, shared, shared, mamba2.heads]
        name = f"{self._prefix}.{self._names.conv_in}"
        product = self._matrices.linear([name], parts, self._config.hidden_size, mamba2.bias)
        if multipliers is None:
            return product
        after = torch.tensor(multipliers.mixed).repeat_interleave(torch.tensor(parts))
        return Scaled(product, multipliers.mixer_in, after.to(self._reader.device, self._reader.dtype))

    def _gated_delta(self, delta: GatedDeltaConfig) -> GatedDelta:
        names, hidden, heads = self._names, self._config.hidden_size, delta.value_heads
        named = [f"{self._prefix}.{name}" for name in names.delta_in]
        parts = [delta.keys, delta.keys, delta.values, delta.values]
        into, _ = self._matrices.kinds(named, _outs(parts, len(named)), hidden, False)
        if len(named) == 1:
            into = picked(into, _by_part(parts, delta.key_heads))
        # What is left of a state is multiplied up over all tokens: these few outputs keep their bits.
        named = [f"{self._prefix}.{name}" for name in names.delta_rates]
        rates, _ = self._matrices.dense_parts(named, [heads, heads], hidden, False)
        if len(named) == 1:
            rates = rates[_by_part([heads, heads], delta.key_heads)]
        named = [f"{self._prefix}.{name}" for name in names.delta_conv]
        a_log, dt_bias = (self._by_head(f"linear_attn.{name}", heads) for name in ("A_log", "dt_bias"))
        return GatedDelta(
            config=delta,
            input=self._matrices.product(into, None),
            rates=Linear(rates),
            conv_WC=self._taps(named, _outs(parts[:3], len(named)), delta.width),
            a_H=-a_log.exp(),
            bias_H=dt_bias,
            norm=Norm(self._reader.one(f"{self._prefix}.{names.delta_norm}.weight", (delta.value_dim,))),
        )

    def _kimi_delta(self, delta: GatedDeltaConfig) -> KimiDelta:
        names, hidden, heads, size = self._names, self._config.hidden_size, delta.key_heads, delta.key_dim
        under = f"{self._prefix}.{names.mixer}"

        def dense(name: str, outs: int, fan_in: int) -> Projection:
            return Linear(self._matrices.dense_parts([f"{under}.{name}"], [outs], fan_in, False)[0])

        return KimiDelta(
            config=delta,
            input=self._matrices.linear(
                [f"{self._prefix}.{name}" for name in names.delta_in], [delta.keys] * 3, hidden, False
            ),
            written=dense("b_proj", heads, hidden),
            left=(dense("f_a_proj", size, hidden), dense("f_b_proj", delta.keys, size)),
            gate=(
                self._matrices.linear([f"{under}.g_a_proj"], [size], hidden, False),
                self._matrices.linear([f"{under}.g_b_proj"], [delta.keys], size, False),
            ),
            conv_WC=self._taps([f"{self._prefix}.{name}" for name in names.delta_conv], [delta.keys] * 3, delta.width),
            a_H1=-self._reader.one(f"{under}.A_log", (1, 1, heads, 1)).float().exp().view(heads, 1),
            bias_HK=self._reader.one(f"{under}.dt_bias", (delta.keys,)).float().view(heads, size),
            norm=Norm(self._reader.one(f"{self._prefix}.{names.delta_norm}.weight", (size,)).float()),
        )

    def _by_head(self, name: str, heads: int) -> torch.Tensor:
        """A number for each head, float32."""
        return self._reader.one(f"{self._prefix}.{name}", (heads,)).float()

    def _taps(self, names: Sequence[str], channels: Sequence[int], width: int) -> torch.Tensor:
        """Weights of a convolution, [width, channels], wherever a checkpoint has cut the channels."""
        entries = [self._reader.entries.get(f"{name}.weight") for name in names]
        cut = [entry.shape[0] for entry in entries if entry is not None]
        shapes = [(count, 1, width) for count in (cut if sum(cut) == sum(channels) else channels)]
        return self._reader.stacked([f"{name}.weight" for name in names], shapes)[:, 0].T.contiguous()


def _outs(parts: list[int], matrices: int) -> list[int]:
    """Outputs of the matrices that have the parts in that order, the first matrix all that others have not."""
    first = len(parts) - matrices + 1
    return [sum(parts[:first]), *parts[first:]]


def _by_part(parts: Sequence[int], heads: int) -> torch.Tensor:
    """Where outputs stand, part by part, of a matrix that has them head by head, all parts of each."""
    numbers = torch.arange(sum(parts)).view(heads, -1)
    return torch.cat([part.flatten() for part in numbers.split([part // heads for part in parts], dim=1)])
