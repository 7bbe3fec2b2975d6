"""Checkpoints in the formats that quantize them, and what they mean: for tests and benchmarks.

By the formats' own packages (of the `dev` extra) where they run on a CPU, else written from the formats' descriptions,
apart from what reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bitsandbytes import functional as bnb
from compressed_tensors.compressors.mxfp4 import MXFP4PackedCompressor
from compressed_tensors.compressors.naive_quantized import NaiveQuantizationCompressor
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Pack = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
FLOAT8 = torch.float8_e4m3fn
_WEIGHTS = "model.safetensors"
_PROJECTION = re.compile(r"_proj(_with_mqa|_qkvz?|_z)?\.weight$|experts\.\d+\.w[123]\.weight$")


@dataclass(frozen=True)
class Format:
    """`pack` makes tensors (by the ends of their names) of a float32 [out, in], and what they mean, in float32.

    `kept`: a CPU's kernels multiply by it as it is.
    """

    config: Mapping[str, Any]
    pack: Pack
    kept: bool = True
    files: Mapping[str, Any] = field(default_factory=dict)


def requantize(folder: Path, target: Path, form: Format, skipped: Collection[str] = ()) -> Tensors:
    """Write the plain checkpoint `folder` to `target` in another format; returns what its weights mean, in float32.

    Layers' matrices are converted, but for those whose names end in one of `skipped`: the head and the embedding stay.
    """
    target.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file() and file.name not in (_WEIGHTS, "config.json"):
            (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    if form.config:
        config["quantization_config"] = form.config
    for name, content in {"config.json": config, **form.files}.items():
        (target / name).write_text(json.dumps(content))
    meant: Tensors = {}
    stored: Tensors = {}
    for name, tensor in load_file(folder / _WEIGHTS).items():
        if not _PROJECTION.search(name) or name.endswith(tuple(skipped)):
            stored[name] = tensor
            continue
        tensors, meant[name] = form.pack(tensor.float())
        stored.update({f"{name.removesuffix('weight')}{end}": made.clone() for end, made in tensors.items()})
    save_file(stored, target / _WEIGHTS)
    return meant


def _words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Whole numbers [n, many] as int32 [n, many * bits / 32], the first of a word in its lowest bits."""
    places = values.long().unflatten(1, (-1, 32 // bits)) << torch.arange(0, 32, bits)
    words = places.sum(2)
    return (words - (words >> 31 << 32)).int()


def _affine(weight: torch.Tensor, bits: int, group: int, symmetric: bool) -> tuple[torch.Tensor, ...]:
    """Values and zero points, whole numbers, and float16 scales: [out, in], [out, groups], [out, groups]."""
    groups = weight.unflatten(1, (-1, group))
    most = 2**bits - 1
    if symmetric:
        scales = (groups.abs().amax(2) / (most // 2)).half()
        zeros = torch.full(scales.shape, most // 2 + 1)
    else:
        low, high = groups.amin(2).clamp_max(0), groups.amax(2).clamp_min(0)
        scales = ((high - low) / most).half()
        zeros = (-low / scales.float()).round().clamp(1, most)
    values = (groups / scales.float()[:, :, None] + zeros[:, :, None]).round().clamp(0, most)
    return values.flatten(1).long(), zeros.long(), scales


def _meant(values: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group_of: torch.Tensor) -> torch.Tensor:
    return (values - zeros[:, group_of]).float() * scales.float()[:, group_of]


def gptq(bits: int, group: int, *, symmetric: bool, act_order: bool = False, v2: bool = False) -> Format:
    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        fan_in = weight.shape[1]
        group_of = torch.arange(fan_in) // group
        order = (
            torch.randperm(fan_in, generator=torch.Generator().manual_seed(1)) if act_order else torch.arange(fan_in)
        )
        values, zeros, scales = _affine(weight[:, order], bits, group, symmetric)
        back = order.argsort()
        values, group_of = values[:, back], group_of[back]
        stored_zeros = zeros if v2 else zeros - 1
        tensors = {
            "qweight": _words(values, bits).T.contiguous(),
            "qzeros": _words(stored_zeros.T, bits),
            "scales": scales.T.contiguous(),
            "g_idx": group_of.int(),
        }
        return tensors, _meant(values, zeros, scales, group_of)

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": symmetric}
    if v2:
        config["checkpoint_format"] = "gptq_v2"
    return Format(config, pack)


def awq(group: int) -> Format:
    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        values, zeros, scales = _affine(weight, 4, group, False)
        # The kernel takes eight outputs of a word in this order, from the lowest bits on.
        order = torch.arange(weight.shape[0]).view(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].flatten()
        tensors = {
            "qweight": _words(values.T[:, order], 4),
            "qzeros": _words(zeros.T[:, order], 4),
            "scales": scales.T.contiguous(),
        }
        return tensors, _meant(values, zeros, scales, torch.arange(weight.shape[1]) // group)

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return Format(config, pack)


def marlin(group: int | None, *, by_awq: bool = False) -> Format:
    """`group`: None: a scale per output."""

    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        outs, fan_in = weight.shape
        values, zeros, scales = _affine(weight, 4, group or fan_in, True)
        words = torch.zeros(fan_in // 16, 2 * outs, dtype=torch.int64)
        for row in range(16):
            for column in range(64):
                word, nibble = _place_in_marlin(row, column)
                words[:, word::128] |= values.T[row::16, column::64] << 4 * nibble
        output = torch.arange(outs)
        if scales.shape[1] > 1:
            at = output // 64 * 64 + output % 8 * 8 + output % 64 // 8
        else:
            at = output // 32 * 32 + output % 8 // 2 * 8 + output % 32 // 8 * 2 + output % 2
        moved = torch.empty(scales.shape[1], outs, dtype=scales.dtype)
        moved[:, at] = scales.T
        meant = _meant(values, zeros, scales, torch.arange(fan_in) // (group or fan_in))
        named = ("qweight", "scales") if by_awq else ("B", "s")
        return dict(zip(named, ((words - (words >> 31 << 32)).int(), moved), strict=True)), meant

    if by_awq:
        return Format({"quant_method": "awq", "bits": 4, "zero_point": False, "version": "marlin"}, pack)
    return Format({"quant_method": "gptq", "bits": 4, "desc_act": False, "checkpoint_format": "marlin"}, pack)


def _place_in_marlin(row: int, column: int) -> tuple[int, int]:
    """Word, and its four bits, of a weight in 16 inputs of 64 outputs. A thread of the tensor core operation holds, of
    16 x 16 weights, two that follow each other in each half of the rows, of one column in each half of those."""
    tile, column = divmod(column, 16)
    thread = column % 8 * 4 + row % 8 // 2
    held = column // 8 * 4 + row // 8 * 2 + row % 2
    return thread * 4 + tile, held % 2 * 4 + held // 2


def _float8(scales: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = (weight / scales).clamp(-448, 448).to(FLOAT8)
    return values, values.float() * scales


def fp8_blocks(block: int) -> Format:
    """As DeepSeek-V3: a scale per square of weights, which at edges is cut off."""

    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        outs, fan_in = weight.shape
        scales = torch.zeros(-(-outs // block), -(-fan_in // block))
        for i, rows in enumerate(weight.split(block)):
            for j, square in enumerate(rows.split(block, 1)):
                scales[i, j] = square.abs().max() / 448
        at = torch.arange(outs)[:, None] // block, torch.arange(fan_in)[None] // block
        values, meant = _float8(scales[at], weight)
        return {"weight": values, "weight_scale_inv": scales}, meant

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    return Format(config, pack)


def fp8_tensor() -> Format:
    """As Mistral's: one scale, and one for activations, which is not followed."""

    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scale = weight.abs().max() / 448
        values, meant = _float8(scale, weight)
        return {"weight": values, "weight_scale_inv": scale, "activation_scale": torch.tensor(0.125)}, meant

    return Format({"quant_method": "fp8", "activation_scheme": "static"}, pack)


def modelopt_fp8() -> Format:
    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scale = weight.abs().max() / 448
        values, meant = _float8(scale, weight)
        return {"weight": values, "weight_scale": scale, "input_scale": torch.tensor(0.5)}, meant

    described = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]},
    }
    return Format({}, pack, files={"hf_quant_config.json": described})


def bnb_4bit(kind: str, nested: bool) -> Format:
    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=nested)
        meant = bnb.dequantize_4bit(packed, state).float()
        described = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
        return {"weight": packed, **described}, meant

    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return Format(config, pack)


def bnb_int8() -> Format:
    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        most = weight.abs().amax(1)
        values = (weight * (127 / most)[:, None]).round().to(torch.int8)
        tensors = {"weight": values, "SCB": most, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return tensors, values.float() * (most / 127)[:, None]

    return Format({"quant_method": "bitsandbytes", "load_in_8bit": True}, pack)


def compressed(compressor: Any, file_format: str, **arguments: Any) -> Format:
    """By the package's own compressor, and back by it."""
    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)

    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        state: Tensors = {"weight": weight, **_scales(weight, args)}
        tensors = compressor.compress(state, scheme)
        if "weight_global_scale" in tensors:
            meant = _nvfp4_meant(tensors)
        else:
            meant = compressor.decompress(dict(tensors), scheme)["weight"].float()
        return {name: tensor.contiguous() for name, tensor in tensors.items()}, meant

    described = json.loads(scheme.model_dump_json())
    config = {"quant_method": "compressed-tensors", "format": file_format, "config_groups": {"group_0": described}}
    return Format(config, pack)


def compressed_act_order(group: int) -> Format:
    """Inputs in groups that are mixed, as compressed-tensors stores those."""

    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        values, zeros, scales = _affine(weight, 4, group, True)
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(2))
        group_of = torch.arange(weight.shape[1])[order] // group
        tensors = {"weight_packed": _words(values[:, order], 4), "weight_scale": scales, "weight_g_idx": group_of.int()}
        return tensors, _meant(values[:, order], zeros, scales, group_of)

    return Format({"quant_method": "compressed-tensors", "format": "pack-quantized"}, pack)


def _nvfp4_meant(tensors: Tensors) -> torch.Tensor:
    """In float32: the compressor computes in bfloat16."""
    outs, octets = tensors["weight_packed"].shape
    values = unpack_fp4_from_uint8(tensors["weight_packed"], outs, 2 * octets, dtype=torch.float32)
    scales = tensors["weight_scale"].float() / tensors["weight_global_scale"]
    return values * scales.repeat_interleave(16, 1)


def _scales(weight: torch.Tensor, args: QuantizationArgs) -> Tensors:
    outs, fan_in = weight.shape
    group = args.group_size or fan_in
    blocks = weight.unflatten(1, (-1, group))
    strategy = str(args.strategy)
    if args.block_structure:
        size = args.block_structure[0]
        squares = weight.view(outs // size, size, fan_in // size, size)
        return {"weight_scale": squares.abs().amax((1, 3)) / 448}
    if args.type == "float" and args.num_bits == 4:
        if group == 32:
            return {"weight_scale": torch.exp2((blocks.abs().amax(2) / 6).log2().ceil())}
        whole = 448 * 6 / weight.abs().max()
        scales = (blocks.abs().amax(2) / 6 * whole).to(FLOAT8).float()
        return {"weight_scale": scales, "weight_global_scale": whole.reshape(1)}
    most = 448 if args.type == "float" else 2 ** (args.num_bits - 1) - 1
    if not args.symmetric:
        low, high = blocks.amin(2).clamp_max(0), blocks.amax(2).clamp_min(0)
        scales = (high - low) / (2 * most + 1)
        return {"weight_scale": scales, "weight_zero_point": (-low / scales - most - 1).round().to(torch.int8)}
    if "tensor" in strategy.lower():
        return {"weight_scale": (weight.abs().max() / most).reshape(1)}
    return {"weight_scale": blocks.abs().amax(2) / most}


FORMATS: Mapping[str, Format] = {
    "gptq 4 bit": gptq(4, 32, symmetric=True),
    "gptq 4 bit asymmetric": gptq(4, 128, symmetric=False),
    "gptq 4 bit v2": gptq(4, 64, symmetric=False, v2=True),
    "gptq 4 bit act-order": gptq(4, 32, symmetric=False, act_order=True),
    "gptq 8 bit": gptq(8, 64, symmetric=True),
    "gptq 8 bit asymmetric": gptq(8, 32, symmetric=False),
    "awq": awq(64),
    "marlin of gptq": marlin(128),
    "marlin of gptq per channel": marlin(None),
    "marlin of awq": marlin(64, by_awq=True),
    "fp8 blocks": fp8_blocks(128),
    "fp8 uneven blocks": fp8_blocks(48),
    "fp8 per tensor": fp8_tensor(),
    "modelopt fp8": modelopt_fp8(),
    "bitsandbytes nf4": bnb_4bit("nf4", False),
    "bitsandbytes nf4, double": bnb_4bit("nf4", True),
    "bitsandbytes fp4": bnb_4bit("fp4", False),
    "bitsandbytes int8": bnb_int8(),
    "compressed int4": compressed(
        PackedQuantizationCompressor, "pack-quantized", num_bits=4, strategy="group", group_size=32
    ),
    "compressed int4 asymmetric": compressed(
        PackedQuantizationCompressor, "pack-quantized", num_bits=4, strategy="group", group_size=64, symmetric=False
    ),
    "compressed int4 per channel": compressed(
        PackedQuantizationCompressor, "pack-quantized", num_bits=4, strategy="channel"
    ),
    "compressed int4 act-order": compressed_act_order(32),
    "compressed int8 packed": compressed(
        PackedQuantizationCompressor, "pack-quantized", num_bits=8, strategy="channel"
    ),
    "compressed int8": compressed(NaiveQuantizationCompressor, "int-quantized", num_bits=8, strategy="channel"),
    "compressed int8 asymmetric": compressed(
        NaiveQuantizationCompressor, "int-quantized", num_bits=8, strategy="channel", symmetric=False
    ),
    "compressed fp8 per channel": compressed(
        NaiveQuantizationCompressor, "float-quantized", num_bits=8, type="float", strategy="channel"
    ),
    "compressed fp8 per tensor": compressed(
        NaiveQuantizationCompressor, "float-quantized", num_bits=8, type="float", strategy="tensor"
    ),
    "compressed fp8 blocks": compressed(
        NaiveQuantizationCompressor, "float-quantized", num_bits=8, type="float", strategy="block",
        block_structure=[64, 64],
    ),
    "compressed nvfp4": compressed(
        NVFP4PackedCompressor, "nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16
    ),
    "compressed mxfp4": compressed(
        MXFP4PackedCompressor, "mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32
    ),
}  # fmt: skip
