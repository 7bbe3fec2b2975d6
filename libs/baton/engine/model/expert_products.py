"""What multiplies by the matrices of all experts of a layer, on devices that do so at once.

Made while weights are read (baton.engine.model.expert_weights), of matrices that are all there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch

from baton.engine.model.decoder_config import DecoderConfig
from baton.engine.model.experts import ExpertMlps, GroupedLinear, GroupedMlps, LoopedMlps
from baton.engine.model.matrices import Matrices, Matrix
from baton.engine.model.projection import KeepProjection, Mlp, Projection
from baton.engine.model.quantized.matrix import QuantizedMatrix

Part: TypeAlias = tuple[Matrix, torch.Tensor | None]  # of one expert: weight [out, in], and bias [out]
_FewBits: TypeAlias = tuple[QuantizedMatrix, torch.Tensor | None]


def expert_mlps(matrices: Matrices, gate_up: Sequence[Part], down: Sequence[Part]) -> ExpertMlps:
    """The MLPs of all experts, of matrices that it takes over.

    Of few bits by one product for all. Where there is none for their kind, they are spread out if there is the memory;
    if not, the experts that are hit are multiplied by one after the other, so that what a checkpoint stores in few
    bits takes no more. Whole ones by one product.
    """
    by, both = matrices.products.experts, [_in_few_bits(matrices, parts) for parts in (gate_up, down)]
    few = [parts for parts in both if parts is not None]
    if by is not None and len(few) == 2:
        at_once = [by.at_once([weight for weight, _ in parts], _biases(parts)) for parts in few]
        joined = [product for product in at_once if product is not None]
        if len(joined) == 2:
            matrices.count_kept(len(gate_up) + len(down))
            return GroupedMlps(*joined)
        apart = [] if by.spread_out else [_apart(matrices, by.one, parts) for parts in few]
        if apart and None not in apart:
            matrices.count_kept(len(gate_up) + len(down))
            return LoopedMlps(tuple(map(Mlp, *[products for products in apart if products is not None])))
    return GroupedMlps(_whole(matrices, gate_up), _whole(matrices, down))


def spread_out_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    """Of all experts' matrices as `dtype`; 0: the model has none."""
    moe = config.moe
    if moe is None:
        return 0
    return len(moe.layers) * moe.experts * 3 * moe.size * config.hidden_size * dtype.itemsize


def _in_few_bits(matrices: Matrices, parts: Sequence[Part]) -> list[_FewBits] | None:
    """None where one of them is to stay whole."""
    found = [(matrices.in_few_bits(weight), bias) for weight, bias in parts]
    few = [(weight, bias) for weight, bias in found if weight is not None]
    return few if len(few) == len(parts) else None


def _apart(matrices: Matrices, keep: KeepProjection, parts: Sequence[_FewBits]) -> list[Projection] | None:
    made: list[Projection] = []
    for weight, bias in parts:
        kept = matrices.kept(weight, bias, keep)
        if kept is None:
            return None
        made.append(kept)
    return made


def _whole(matrices: Matrices, parts: Sequence[Part]) -> GroupedLinear:
    return GroupedLinear(torch.stack([matrices.dense(weight) for weight, _ in parts]), _biases(parts))


def _biases(parts: Sequence[Part] | Sequence[_FewBits]) -> torch.Tensor | None:
    biases = [bias for _, bias in parts if bias is not None]
    return torch.stack(biases) if biases else None
