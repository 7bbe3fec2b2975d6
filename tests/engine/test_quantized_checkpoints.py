"""Quantized checkpoints: their logits are those of `transformers` with the weights that the format means."""

from __future__ import annotations

import json

import pytest
import torch
from family_checkpoints import Checkpoint
from paged_rows import PagedModel, Row
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from baton.core.errors import CheckpointError
from baton.engine.cpu.library import kernels
from baton.engine.runner import TorchModelRunner
from baton.testing.checkpoints import make_checkpoint
from baton.testing.quantized_formats import FORMATS, Format, requantize

torch.set_num_threads(1)
TOKENS = torch.randint(6, 512, (48,), generator=torch.Generator().manual_seed(0)).tolist()
PROJECTION = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_checkpoint(
        tmp_path_factory.mktemp("plain"), hidden=128, heads=4, kv_heads=2, intermediate=256, tied=False
    )


def write(folder, plain, form: Format):
    """The plain checkpoint in another format, and `transformers`' model of what that means. The last layer's
    `down_proj` was not converted."""
    meant = requantize(plain, folder, form, skipped=["layers.1.mlp.down_proj.weight"])
    reference = LlamaForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    reference.load_state_dict(meant, strict=False)
    return folder, reference


def logits(folder, **options) -> torch.Tensor:
    return PagedModel(TorchModelRunner.load(folder, **options)).step([(Row(TOKENS), len(TOKENS))], all_logits=True)


@pytest.mark.parametrize("name", FORMATS)
@torch.inference_mode()
def test_logits(tmp_path, plain, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = FORMATS[name]
    folder, reference = write(tmp_path / "quantized", plain, form)
    exact = reference(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(logits(folder, dtype="float32", backend="torch"), exact, atol=2e-3, rtol=1e-4)
    said: list[dict[str, object]] = []
    monkeypatch.setattr("baton.engine.model.weights.log.info", lambda event, **fields: said.append(fields))
    ours = logits(folder, dtype="float32")
    assert ((ours - exact).square().mean().sqrt() / exact.std()) < 0.03  # products of bfloat16
    if kernels() is not None:
        quantized = 7  # queries with keys and values, output, gate with up, of both layers; down of one
        assert said[-1]["kept"] == (quantized if form.kept else 0)


def test_dtype_is_what_the_config_names(tmp_path, plain) -> None:
    folder, _ = write(tmp_path / "quantized", plain, FORMATS["gptq 4 bit"])
    config = json.loads((folder / "config.json").read_text())
    for told, computed in (("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "float32")):
        (folder / "config.json").write_text(json.dumps({**config, "dtype": told}))
        assert TorchModelRunner.load(folder).layout.dtype == computed


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "hqq"}, "quant_method hqq, which is not supported; supported are fp8"),
        ({"bits": 4}, "quant_method None"),
        ({"quant_method": "gptq", "bits": 3}, "bits is 3; 4 and 8 are supported for gptq"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "bitblas"}, "checkpoint_format is 'bitblas'"),
        ({"quant_method": "gptq", "bits": 8, "is_marlin_format": True}, "bits is 8; 4 is supported in the marlin"),
        ({"quant_method": "marlin", "bits": 4, "desc_act": True}, "desc_act is true; marlin layouts are read without"),
        ({"quant_method": "awq", "bits": 4, "version": "marlin", "zero_point": True}, "zero_point is true"),
        ({"quant_method": "awq", "bits": 8}, "bits is 8; 4 is supported for awq"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version is 'gemv'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size is \[128\]; it must be two sizes"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "format is 'marlin-24'; supported are dense"),
        (
            {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity_config has format 'sparse-24-bitmask'",
        ),
        ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"a": {}}}}, "transform_config"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo is 'W4A8_AWQ'; supported are FP8, NVFP4"),
    ],
)
def test_what_is_not_supported(tmp_path, plain, config: dict[str, object], message: str) -> None:
    folder, _ = write(tmp_path / "quantized", plain, Format(config, lambda weight: ({"weight": weight}, weight)))
    with pytest.raises(CheckpointError, match=message) as caught:
        TorchModelRunner.load(folder)
    assert "config.json" in caught.value.message


@pytest.mark.parametrize(
    ("name", "tensor", "change", "message"),
    [
        ("fp8 blocks", "weight_scale_inv", None, "no tensor {}.weight_scale_inv, nor {}.weight_scale: the scale of"),
        ("fp8 blocks", "weight_scale_inv", torch.ones(3, 1), r"{}.weight_scale_inv .* has shape \[3, 1\]"),
        ("fp8 blocks", "weight", torch.ones(3, 1, dtype=torch.float8_e4m3fn), r"{}.weight .* has shape \[3, 1\]"),
        ("fp8 blocks", "weight", torch.ones(256, 128).to(torch.float8_e5m2), "{}.weight .* stored as F8_E5M2; F8_E4M3"),
        ("gptq 4 bit", "qweight", None, "no tensor {}.qweight"),
        ("gptq 4 bit", "qweight", torch.ones(16, 8, dtype=torch.int32), r"{}.qweight .* asks for \[16, 256\]"),
        ("gptq 4 bit", "scales", None, "no tensor {}.scales"),
        ("gptq 4 bit", "scales", torch.ones(3, 256), r"{}.scales .* has shape \[3, 256\]: 128 inputs are not 3 equal"),
        ("gptq 4 bit", "qzeros", None, "no tensor {}.qzeros"),
        ("gptq 4 bit", "g_idx", torch.full((128,), 4, dtype=torch.int32), "{}.g_idx names a group that is not among"),
        ("awq", "qzeros", torch.ones(2, 3, dtype=torch.int32), r"{}.qzeros .* has shape \[2, 3\]"),
        ("awq", "scales", None, "no tensor {}.scales"),
        ("marlin of gptq", "B", None, "no tensor {}.B"),
        ("marlin of gptq", "s", torch.ones(1, 64), r"{}.s .* has shape \[1, 64\]"),
        ("bitsandbytes nf4", "weight.quant_state.bitsandbytes__nf4", None, "no tensor {}.weight.quant_state"),
        (
            "bitsandbytes nf4", "weight.quant_state.bitsandbytes__nf4", torch.tensor(list(b"{}"), dtype=torch.uint8),
            "quant_state.* is not what bitsandbytes writes",
        ),
        ("bitsandbytes nf4, double", "weight.nested_absmax", None, "no tensor {}.weight.nested_absmax"),
        ("bitsandbytes int8", "SCB", None, "no tensor {}.SCB"),
        ("bitsandbytes int8", "weight_format", torch.tensor(2, dtype=torch.uint8), "{}.weight_format names a layout"),
        ("compressed int4", "weight_packed", None, "no tensor {}.weight_packed"),
        ("compressed int4", "weight_scale", None, "no tensor {}.weight_scale"),
        ("compressed int4", "weight_packed", torch.ones(256, 12, dtype=torch.int32), "{}.weight_packed has 3 bits"),
        ("compressed int8", "weight_scale", torch.ones(3, 1), r"{}.weight_scale .* has shape \[3, 1\]"),
        ("compressed nvfp4", "weight_global_scale", None, "no tensor {}.weight_global_scale"),
        ("compressed nvfp4", "weight_zero_point", torch.zeros(1), "{}.weight_zero_point"),
        ("compressed mxfp4", "weight_scale", torch.ones(3, 1, dtype=torch.uint8), r"{}.weight_scale .*\[3, 1\]"),
        ("modelopt fp8", "pre_quant_scale", torch.ones(128), "{}.pre_quant_scale scales activations by input"),
    ],
)  # fmt: skip
def test_broken_tensors_are_named(tmp_path, plain, name: str, tensor: str, change, message: str) -> None:
    folder, _ = write(tmp_path / "quantized", plain, FORMATS[name])
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(f"{PROJECTION}.{tensor}", None)
    if change is not None:
        tensors[f"{PROJECTION}.{tensor}"] = change
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message.replace("{}", PROJECTION)):
        TorchModelRunner.load(folder)


FAMILIES = [
    ("qwen3 moe", "fp8 uneven blocks"), ("qwen2 moe", "compressed int4"), ("mixtral", "fp8 per tensor"),
    ("deepseek v3", "fp8 blocks"), ("deepseek v3", "compressed int8"), ("phi 3", "compressed fp8 per channel"),
    ("llama 3", "gptq 4 bit v2"), ("qwen2", "bitsandbytes int8"), ("gemma 2", "gptq 8 bit"),
    ("qwen3 next", "fp8 uneven blocks"), ("qwen 3.5", "compressed int4"),
]  # fmt: skip
# Routers, and what decides which expert is asked, stay whole in real checkpoints, too.
SKIPPED = ("mlp.gate.weight", "shared_expert_gate.weight")
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
}


@pytest.mark.parametrize(("family", "name"), FAMILIES)
@torch.inference_mode()
def test_families(tmp_path, family: str, name: str) -> None:
    """Experts one by one, latents, parts that the checkpoint has in one matrix, biases, tied embeddings, gates between
    queries, parts by head."""
    plain = Checkpoint(tmp_path / "plain", family, **SIZES)
    meant = requantize(plain.folder, tmp_path / "quantized", FORMATS[name], skipped=SKIPPED)
    assert len(meant) >= 2 * plain.config.num_hidden_layers
    plain.change_tensors(lambda tensors: tensors.update(meant))
    tokens = [token % 150 for token in TOKENS[:20]]
    model = AutoModelForCausalLM.from_pretrained(plain.folder, attn_implementation="eager", dtype=torch.float32).eval()
    exact = model(torch.tensor([tokens])).logits[0]

    def run(**options) -> torch.Tensor:
        runner = TorchModelRunner.load(tmp_path / "quantized", dtype="float32", **options)
        return PagedModel(runner).step([(Row(tokens), len(tokens))], all_logits=True)

    torch.testing.assert_close(run(backend="torch"), exact, atol=2e-3, rtol=1e-3)
    assert (run() - exact).abs().median() < 0.02 * exact.std()


@pytest.mark.skipif(kernels() is None, reason="needs the CPU kernels")
@pytest.mark.parametrize("name", ["gptq 4 bit act-order", "fp8 blocks", "bitsandbytes nf4"])
def test_deterministic_to_the_last_bit(tmp_path, plain, name: str) -> None:
    """Whatever else is in the step, and however a prompt is cut."""
    folder, _ = write(tmp_path / "quantized", plain, FORMATS[name])
    model = PagedModel(TorchModelRunner.load(folder, deterministic=True))
    whole = model.step([(Row(list(TOKENS)), len(TOKENS))], all_logits=True)
    row, other = Row(list(TOKENS)), Row(list(reversed(TOKENS)))
    parts = [model.step([(row, n), (other, m)], all_logits=True)[:n] for n, m in ((1, 17), (30, 1), (1, 1), (16, 20))]
    assert torch.equal(torch.cat(parts), whole)


def test_quantized_anew(tmp_path, plain, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting counts for checkpoints that are quantized, too: 4 bits of what 8 have kept."""
    folder, reference = write(tmp_path / "quantized", plain, FORMATS["compressed int8"])
    said: list[dict[str, object]] = []
    monkeypatch.setattr("baton.engine.model.weights.log.info", lambda event, **fields: said.append(fields))
    with torch.inference_mode():
        exact = reference(torch.tensor([TOKENS])).logits[0]
    errors = [
        ((logits(folder, dtype="float32", quantization=name) - exact).square().mean().sqrt() / exact.std()).item()
        for name in ("int8", "int4")
    ]
    assert errors[0] < 0.1 < errors[1] < 1
    assert [each["kept"] for each in said] == [0, 0]
