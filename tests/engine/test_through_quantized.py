"""Quantized checkpoints of models through `transformers`: the logits of the weights that their formats mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from family_checkpoints import Checkpoint
from family_runs import tokens_of
from paged_rows import PagedModel, Row
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from baton.core.errors import CheckpointError
from baton.engine.cpu.library import kernels
from baton.engine.model.through.runner import ThroughRunner
from baton.testing.quantized_formats import FORMATS, Format, requantize

torch.set_num_threads(1)
TOKENS = tokens_of(1, 40)


def inputs_first(form: Format) -> Format:
    """For matrices that a model has as [in, out]."""

    def pack(weight: torch.Tensor):
        tensors, meant = form.pack(weight.T.contiguous())
        return tensors, meant.T.contiguous()

    return replace(form, pack=pack)


def logits(folder, **options) -> torch.Tensor:
    runner = ThroughRunner.load(folder, dtype="float32", **options)
    return PagedModel(runner, pages=20).step([(Row(list(TOKENS)), len(TOKENS))], all_logits=True)


@pytest.mark.parametrize(
    ("model_type", "form", "kept", "spread_out"),
    [
        ("opt", FORMATS["marlin of gptq per channel"], 8, 0),
        ("gpt2", inputs_first(FORMATS["compressed int4 per channel"]), 4, 0),
        ("minimax_m2", FORMATS["fp8 blocks"], 8, 48),
        ("hunyuan_v1_moe", FORMATS["awq"], 14, 48),
    ],
    ids=["matrices", "inputs first", "experts", "experts in words"],
)
@torch.inference_mode()
def test_logits(tmp_path, monkeypatch, model_type: str, form: Format, kept: int, spread_out: int) -> None:
    """Layers whose matrix is one of the checkpoint's multiply by it as it is; experts are in one tensor here."""
    sizes = {"n_layer": 2} if model_type == "gpt2" else {"num_hidden_layers": 2, "intermediate_size": 128}
    made = Checkpoint.tiny(tmp_path / "plain", model_type, **sizes)
    meant = requantize(made.folder, tmp_path / "quantized", form)
    made.change_tensors(lambda tensors: tensors.update(meant))
    reference = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32, attn_implementation="eager")
    exact = reference.eval()(torch.tensor([TOKENS])).logits[0]
    assert float((logits(tmp_path / "quantized", own_kernels=False) - exact).abs().max() / exact.std()) < 1e-4
    said: list[dict[str, object]] = []
    monkeypatch.setattr("baton.engine.model.through.quantized.log.info", lambda event, **fields: said.append(fields))
    ours = logits(tmp_path / "quantized")
    assert float((ours - exact).abs().median() / exact.std()) < 0.03  # products of bfloat16
    if kernels() is not None:
        assert (said[-1]["kept"], said[-1]["spread_out"]) == (kept, spread_out)


def test_what_is_stored_in_another_way_is_named(tmp_path) -> None:
    made = Checkpoint.tiny(tmp_path / "plain", "opt")
    requantize(made.folder, tmp_path / "quantized", FORMATS["fp8 per tensor"])
    file = tmp_path / "quantized" / "model.safetensors"
    save_file({**load_file(file), "experts.gate_up": torch.ones(2, 3).to(torch.float8_e4m3fn)}, file)
    with pytest.raises(CheckpointError, match=r"tensor experts\.gate_up in .* is stored as F8_E4M3, in no way known"):
        ThroughRunner.load(tmp_path / "quantized")
    made.change_config({"quantization_config": {"quant_method": "hqq"}})
    with pytest.raises(CheckpointError, match="quantized by quant_method hqq, which is not supported"):
        ThroughRunner.load(made.folder)
