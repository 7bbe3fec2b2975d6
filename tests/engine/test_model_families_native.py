"""Every native family against `transformers`: same checkpoint, same logits, same greedy tokens however work is cut."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from engine_harness import Harness
from family_checkpoints import FAMILIES, Checkpoint
from family_runs import (
    CONFIG,
    assert_engine_decodes_the_same,
    assert_handed_over_decodes_the_same,
    assert_logits_are_the_same,
    close,
    greedy,
    tokens_of,
)
from paged_rows import PagedModel, Row

from baton.core.errors import CheckpointError, ConfigError
from baton.engine.model import expert_weights
from baton.engine.runner import TorchModelRunner

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("family"), request.param)


@pytest.fixture(scope="module")
def runner(checkpoint) -> TorchModelRunner:
    return TorchModelRunner.load(checkpoint.folder)


def assert_same_logits(made: Checkpoint, folder: Path) -> None:
    """The checkpoint as it lies in `folder` by now computes what the model that it was made of does."""
    tokens = tokens_of(1, 50)
    got = PagedModel(TorchModelRunner.load(folder), pages=20).step([(Row(tokens), 50)], all_logits=True)
    close(got, made.logits(tokens))


def test_logits_whole_in_chunks_and_after_a_shared_prefix(checkpoint, runner) -> None:
    assert_logits_are_the_same(checkpoint, runner)


def test_torch_operations_alone(checkpoint) -> None:
    """What runs where Baton's kernels do not."""
    tokens = tokens_of(4, 60)
    row, model = Row(tokens), PagedModel(TorchModelRunner.load(checkpoint.folder, backend="torch"), pages=20)
    got = torch.cat([model.step([(row, n)], all_logits=True) for n in (40, 1, 19)])
    close(got, checkpoint.logits(tokens))


def test_bfloat16(checkpoint) -> None:
    """Ours is no further from float32 than transformers' bfloat16 is."""
    tokens = tokens_of(5, 80)
    model = PagedModel(TorchModelRunner.load(checkpoint.folder, dtype="bfloat16"), pages=20)
    row = Row(tokens)
    ours = torch.cat([model.step([(row, n)], all_logits=True) for n in (78, 1, 1)])
    exact = checkpoint.logits(tokens)
    with torch.inference_mode():
        theirs = checkpoint.half(torch.tensor([tokens])).logits[0].float()
    # Which experts are chosen is a matter of rounding for some tokens, which then differ a lot.
    typical = torch.median if hasattr(checkpoint.config, "num_experts_per_tok") else torch.mean
    assert typical((ours - exact).abs()) < 1.15 * typical((theirs - exact).abs())
    assert typical((ours - exact).abs()) < 0.05 * exact.std()


def test_engine_in_chunks_with_prefix_hits_and_preemption(checkpoint, runner) -> None:
    assert_engine_decodes_the_same(checkpoint, runner)


def test_prefill_here_and_decode_there(checkpoint, runner) -> None:
    assert_handed_over_decodes_the_same(checkpoint, runner, TorchModelRunner.load(checkpoint.folder))


@pytest.mark.parametrize("family", ["mistral", "gemma 2", "gemma 3", "gpt-oss", "cohere 2", "llama 4"])
def test_prompts_of_many_windows_and_a_prefix_whose_window_is_gone(tmp_path, family: str) -> None:
    chunks = {"attention_chunk_size": 32} if family == "llama 4" else {}  # of whole pages
    made = Checkpoint(tmp_path, family, **chunks)
    runner = TorchModelRunner.load(made.folder)
    windows = sum(group.kind != "full" for group in runner.layout.groups)
    assert windows
    kept = 24 if windows < len(runner.layout.groups) else 12  # for the layer that sees everything, if there is one
    harness = Harness(pages=kept + 8 * windows, config=CONFIG, runner=runner)
    trunk = tuple(tokens_of(1, 230))
    prompts = {"trunk": trunk, "other": tuple(tokens_of(2, 150)), "branch": (*trunk[:120], 5, 6), "on": (*trunk, 5, 6)}
    for name, prompt in prompts.items():
        attempt = harness.submit(name, prompt, sampling=greedy(20))
        harness.run()
        assert len(harness.outputs[attempt]) == 20
        assert harness.outputs[attempt] == made.greedy_along(prompt, harness.outputs[attempt])
        assert name != "branch" or harness.cached[attempt] < 112
    harness.assert_quiet()


def test_mimo(tmp_path) -> None:
    """Qwen2 by another name, with layers that draft tokens beside it."""
    made = Checkpoint(tmp_path, "qwen2", tie_word_embeddings=False)
    made.change_config({"architectures": ["MiMoForCausalLM"], "model_type": "mimo", "num_nextn_predict_layers": 1})
    made.change_tensors(lambda tensors: tensors.update({"model.mtp_layers.0.input_layernorm.weight": torch.ones(64)}))
    assert_same_logits(made, tmp_path)


VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "gates after norms": ("falcon h1", {"mamba_rms_norm": True}),
    "gates before norms": ("falcon h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": False}),
    "expanded": ("falcon h1", {"mamba_d_ssm": None, "mamba_n_heads": 4, "attention_bias": True, "mlp_bias": True}),
    "biases": ("falcon h1", {"mamba_proj_bias": True, "projectors_bias": True, "mamba_conv_bias": False}),
    "no experts": ("jamba", {"num_experts": 1}),
    "narrow sums": ("mamba", {"residual_in_fp32": False, "time_step_rank": 7}),
    "biases of Mamba2": ("mamba 2", {"use_bias": True, "use_conv_bias": False}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_config_json_may_say_of_mixers(tmp_path, variant: str) -> None:
    family, told = VARIANTS[variant]
    made = Checkpoint(tmp_path, family, **told)
    tokens = tokens_of(1, 40)
    got = PagedModel(TorchModelRunner.load(tmp_path), pages=40).step([(Row(tokens), 40)], all_logits=True)
    close(got, made.logits(tokens))


def test_mamba_as_first_published(tmp_path) -> None:
    made = Checkpoint(tmp_path, "mamba")
    embedding = "backbone.embedding"
    made.change_tensors(lambda tensors: tensors.update({f"{embedding}.weight": tensors.pop(f"{embedding}s.weight")}))
    tokens = tokens_of(1, 40)
    got = PagedModel(TorchModelRunner.load(tmp_path), pages=40).step([(Row(tokens), 40)], all_logits=True)
    close(got, made.logits(tokens))


def test_what_layers_make_is_added_up_in_float32(tmp_path) -> None:
    """Where config.json says so: many small results are lost in bfloat16."""
    made = Checkpoint(tmp_path, "mamba 2", num_hidden_layers=16, use_bias=True)

    def little(tensors: dict[str, torch.Tensor]) -> None:
        for name, weight in made.model.named_parameters():
            if ".out_proj." in name:
                weight.copy_(weight * 0.003 if weight.ndim > 1 else torch.linspace(-1, 1, 64) * 0.003)
                tensors[name] = weight

    with torch.inference_mode():
        made.change_tensors(little)
    tokens, errors = tokens_of(5, 12), {}
    for wide in (True, False):
        made.change_config({"residual_in_fp32": wide})
        model = PagedModel(TorchModelRunner.load(tmp_path, dtype="bfloat16"), pages=20)
        got = model.step([(Row(tokens), 12)], all_logits=True)
        errors[wide] = float((got - made.logits(tokens)).abs().mean())
    assert errors[True] < 0.75 * errors[False]


@pytest.mark.parametrize("limit", [32, None])
def test_longrope_goes_by_how_long_requests_may_get(tmp_path, limit: int | None) -> None:
    made = Checkpoint(tmp_path, "phi 4 mini")
    runner = TorchModelRunner.load(tmp_path, max_context_tokens=limit)
    tokens = tokens_of(1, limit or 40)
    got = PagedModel(runner, pages=20).step([(Row(tokens), len(tokens))], all_logits=True)
    close(got, made.logits(tokens))
    other = TorchModelRunner.load(tmp_path, max_context_tokens=None if limit else 32)
    assert runner.layout.fingerprint != other.layout.fingerprint


def test_mxfp4_experts(tmp_path) -> None:
    """Packed here by the format's own rules; values that it has are kept exactly."""
    made = Checkpoint(tmp_path, "gpt-oss")
    levels = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    draw = torch.Generator().manual_seed(0)

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        for name, weight in made.model.named_parameters():
            if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                continue
            experts, fan_in, outs = weight.shape
            codes = torch.randint(16, (experts, outs, fan_in), generator=draw)
            scales = torch.randint(122, 126, (experts, outs, fan_in // 32), generator=draw)
            values = levels[codes % 8] * torch.where(codes < 8, 1.0, -1.0)
            values = (values.unflatten(2, (-1, 32)) * 2.0 ** (scales[..., None] - 127)).flatten(2)
            weight.copy_(values.transpose(1, 2))
            pairs = codes.unflatten(2, (-1, 16, 2))
            del tensors[name]
            tensors[f"{name}_blocks"] = (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8)
            tensors[f"{name}_scales"] = scales.to(torch.uint8)

    with torch.inference_mode():
        made.change_tensors(pack)
    made.change_config({"quantization_config": {"quant_method": "mxfp4"}})
    tokens = tokens_of(1, 60)
    exact = made.logits(tokens)
    for options in ({"backend": "torch"}, {}):
        runner = TorchModelRunner.load(tmp_path, **options)
        got = PagedModel(runner, pages=20).step([(Row(tokens), 60)], all_logits=True)
        if options:
            close(got, exact)
        else:  # experts stay in 8 bits, and are multiplied by in bfloat16
            assert (got - exact).abs().median() < 0.02 * exact.std()


BROKEN = {
    "phi 3": ("model.layers.1.self_attn.qkv_proj.weight", [192, 64]),
    "nemotron": ("model.layers.0.input_layernorm.bias", [64]),
    "mixtral": ("model.layers.1.block_sparse_moe.experts.3.w2.weight", [64, 96]),
    "gpt-oss": ("model.layers.0.mlp.experts.gate_up_proj_bias", [4, 192]),
    "deepseek v3": ("model.layers.1.mlp.gate.e_score_correction_bias", [8]),
    "lfm 2": ("model.layers.1.conv.conv.weight", [64, 1, 4]),
    "bamba": ("model.layers.2.mamba.A_log", [4]),
    "falcon h1": ("model.layers.1.mamba.in_proj.weight", [262, 64]),
    "jamba": ("model.layers.2.mamba.dt_layernorm.weight", [4]),
    "mamba": ("backbone.layers.1.mixer.x_proj.weight", [20, 96]),
    "granite 4": ("model.layers.1.block_sparse_moe.input_linear.weight", [6, 192, 64]),
    "qwen3 next": ("model.layers.0.linear_attn.in_proj_qkvz.weight", [256, 64]),
    "qwen 3.5 moe": ("model.layers.1.self_attn.q_proj.weight", [128, 64]),
    "kimi linear": ("model.layers.2.self_attn.dt_bias", [32]),
    "nemotron h": ("backbone.layers.4.mixer.up_proj.weight", [96, 64]),
}


@pytest.mark.parametrize("family", BROKEN)
def test_a_broken_checkpoint_says_which_tensor(tmp_path, family: str) -> None:
    name, shape = BROKEN[family]
    made = Checkpoint(tmp_path, family)
    made.change_tensors(lambda tensors: tensors.update({name: torch.zeros(3, 5)}))
    with pytest.raises(CheckpointError, match=re.escape(f"{name} in") + r".*\[3, 5\].*" + re.escape(str(shape))):
        TorchModelRunner.load(tmp_path)
    made.change_tensors(lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=re.escape(f"has no tensor {name}, which its config.json asks for")):
        TorchModelRunner.load(tmp_path)


@pytest.mark.parametrize(
    ("body", "head"), [("language_model.model.", "language_model.lm_head"), ("model.language_model.", "lm_head")]
)
def test_text_part_of_a_model_that_sees(tmp_path, body: str, head: str) -> None:
    made = Checkpoint(tmp_path, "ministral 3")
    text = json.loads((tmp_path / "config.json").read_text())

    def wrap(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            inner = tensors.pop(name)
            tensors[name.replace("lm_head", head) if "lm_head" in name else body + name.removeprefix("model.")] = inner
        tensors["vision_tower.patch_conv.weight"] = torch.zeros(4, 4)

    made.change_tensors(wrap)
    outer = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    assert_same_logits(made, tmp_path)


def _olmo_hybrid_as_released(tensors: dict[str, torch.Tensor]) -> None:
    """transformers saves the convolutions cut into equal parts, and a norm of attention layers by another name."""
    for name in [name for name in tensors if name.endswith("q_conv1d.weight")]:
        mixer = name.removesuffix("q_conv1d.weight")
        weight = torch.cat([tensors[f"{mixer}{part}_conv1d.weight"] for part in "qkv"])
        for part, rows in zip(
            "qkv", weight.split([len(tensors[f"{mixer}{part}_proj.weight"]) for part in "qkv"]), strict=True
        ):
            tensors[f"{mixer}{part}_conv1d.weight"] = rows.contiguous()
    for name in [name for name in tensors if name.endswith("post_feedforward_layernorm.weight")]:
        layer = name.removesuffix("post_feedforward_layernorm.weight")
        tensors[f"{layer}post_attention_layernorm.weight"] = tensors.pop(f"{layer}feedforward_layer_norm.weight")


def _kimi_linear_as_released(tensors: dict[str, torch.Tensor]) -> None:
    """transformers saves dense MLPs as if they were mixtures."""
    for name in [name for name in tensors if re.search(r"block_sparse_moe\.(gate|up|down)_proj", name)]:
        tensors[name.replace("block_sparse_moe", "mlp")] = tensors.pop(name)


AS_RELEASED = {"olmo hybrid": _olmo_hybrid_as_released, "kimi linear": _kimi_linear_as_released}


@pytest.mark.parametrize("family", AS_RELEASED)
def test_tensors_as_released(tmp_path, family: str) -> None:
    made = Checkpoint(tmp_path, family)
    made.change_tensors(AS_RELEASED[family])
    assert_same_logits(made, tmp_path)


@pytest.mark.parametrize("device", ["looped", "grouped"])
def test_experts_in_one_tensor_of_a_model_that_sees(tmp_path, monkeypatch, device: str) -> None:
    """As Qwen3.5 is published."""
    made = Checkpoint(tmp_path, "qwen 3.5 moe")
    text = json.loads((tmp_path / "config.json").read_text())
    if device == "grouped":
        monkeypatch.setattr(expert_weights, "GROUPED_DEVICES", ("cpu",))

    def publish(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".mlp.experts." in name]:
            del tensors[name]
        for name, weight in made.model.named_parameters():
            if ".mlp.experts." in name:
                tensors[name] = weight
        for name in [name for name in tensors if name.startswith("model.layers")]:
            tensors[name.replace("model.", "model.language_model.", 1)] = tensors.pop(name)

    made.change_tensors(publish)
    outer = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    assert_same_logits(made, tmp_path)


@pytest.mark.parametrize("family", ["olmo 2", "nemotron", "mixtral", "deepseek v3", "qwen3 next", "mamba"])
def test_what_cannot_be_deterministic_says_so(tmp_path, family: str) -> None:
    made = Checkpoint(tmp_path, family)
    with pytest.raises(ConfigError, match=r"deterministic = true (is not to be had for|needs Baton's kernels)"):
        TorchModelRunner.load(made.folder, deterministic=True)


@pytest.mark.parametrize(
    "family",
    [
        "phi 4 mini",
        "gemma 2",
        "qwen2 moe",
        "gpt-oss",
        "deepseek v3",
        "lfm 2",
        "bamba",
        "granite 4",
        "qwen3 next",
        "kimi linear",
        "nemotron h",
        "falcon h1",
        "jamba",
    ],
)
def test_quantized_at_load(tmp_path, family: str) -> None:
    """Weights of 8 bits, experts too: nearly the logits of the whole ones."""
    made = Checkpoint(tmp_path, family)
    tokens = tokens_of(1, 40)
    runner = TorchModelRunner.load(made.folder, quantization="int8", dtype="bfloat16")
    got = PagedModel(runner, pages=20).step([(Row(tokens), 40)], all_logits=True)
    exact = made.logits(tokens)
    assert (got - exact).abs().median() < 0.1 * exact.std()


@pytest.mark.parametrize(
    "family", ["mixtral", "qwen2 moe", "gpt-oss", "llama 4", "deepseek v3", "granite 4", "nemotron h"]
)
def test_experts_all_at_once(tmp_path, monkeypatch, family: str) -> None:
    """As on a GPU: by grouped products."""
    made = Checkpoint(tmp_path, family)
    monkeypatch.setattr(expert_weights, "GROUPED_DEVICES", ("cpu",))
    row, tokens = Row(tokens_of(1, 50)), tokens_of(1, 50)
    model = PagedModel(TorchModelRunner.load(made.folder, backend="torch"), pages=20)
    got = torch.cat([model.step([(row, n)], all_logits=True) for n in (30, 1, 19)])
    close(got, made.logits(tokens))


@pytest.mark.parametrize("family", ["glm 4", "gemma 2", "granite", "exaone 4", "lfm 2", "bamba", "qwen 3.5"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_to_the_last_bit(tmp_path, family: str, dtype: str) -> None:
    made = Checkpoint(tmp_path, family)
    model = PagedModel(TorchModelRunner.load(made.folder, dtype=dtype, deterministic=True), pages=80)
    tokens, other = tokens_of(1, 60), Row(tokens_of(2, 60))
    whole = model.step([(Row(list(tokens)), 60)], all_logits=True)
    row = Row(list(tokens))
    parts = [model.step([(row, n), (other, m)], all_logits=True)[:n] for n, m in ((1, 17), (37, 1), (1, 1), (21, 30))]
    assert torch.equal(torch.cat(parts), whole)
