"""What cannot run through `transformers` says so in one sentence, and nothing runs that would be wrong."""

from __future__ import annotations

import json
import re

import pytest
import torch
from family_checkpoints import Checkpoint
from family_runs import close, tokens_of
from paged_rows import PagedModel, Row
from transformers import GPT2Model
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from baton.core.errors import CheckpointError, ConfigError
from baton.engine.inprocess import Engine
from baton.engine.loading import load_runner
from baton.engine.model.through.passes import Passes

torch.set_num_threads(1)


@pytest.fixture
def gpt2(tmp_path) -> Checkpoint:
    return Checkpoint.tiny(tmp_path, "gpt2")


def shifted(self: GPT2MLP, x: torch.Tensor) -> torch.Tensor:
    """Each token gets some of the one before it in the sequence, whoever's that is."""
    return _mlp(self, x + 0.5 * x.roll(1, dims=1))


_mlp = GPT2MLP.forward


def test_tokens_that_mix_outside_of_attention_are_found(gpt2, monkeypatch) -> None:
    """Nothing of such a model can be kept: each position has the logits of the text up to it."""
    monkeypatch.setattr(GPT2MLP, "forward", shifted)
    runner, text = load_runner(gpt2.folder), tokens_of(1, 8)
    assert runner.passes is Passes.RECOMPUTED
    got = PagedModel(runner, pages=20).step([(Row(text), 8)], all_logits=True)
    close(got, torch.stack([gpt2.logits(text[: end + 1])[-1] for end in range(8)]))


def test_positions_of_its_own_are_found(gpt2, monkeypatch) -> None:
    """A model that ignores the positions it is given can still run row by row, where it counts them by its cache."""
    forward = GPT2Model.forward

    def without_positions(self: GPT2Model, *args: object, position_ids: object = None, **options: object) -> object:
        return forward(self, *args, **options)

    monkeypatch.setattr(GPT2Model, "forward", without_positions)
    assert load_runner(gpt2.folder).passes is Passes.APART


def test_a_broken_checkpoint_says_which_tensor(gpt2) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    gpt2.change_tensors(lambda tensors: tensors.update({name: torch.zeros(3, 5)}))
    wanted = re.escape(f"tensor {name} in {gpt2.folder} has shape [3, 5]; its config.json asks for [64, 96]")
    with pytest.raises(CheckpointError, match=wanted):
        load_runner(gpt2.folder)
    gpt2.change_tensors(lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"has no tensor {name}, which its config.json asks for"):
        load_runner(gpt2.folder)
    (gpt2.folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file, or is truncated"):
        load_runner(gpt2.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["FooForCausalLM"], "model_type": "foo"}, "neither Baton nor transformers .* knows it"),
        (
            {"architectures": ["FooForCausalLM"], "model_type": "foo", "auto_map": {"AutoConfig": "foo.FooConfig"}},
            "comes with code of its own, which runs only with trust_remote_code = true",
        ),
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "is no causal language model"),
        ({"n_embd": "wide"}, "n_embd"),
    ],
)
def test_configs_that_cannot_work(gpt2, change: dict[str, object], message: str) -> None:
    gpt2.change_config(change)
    with pytest.raises(CheckpointError, match=r"config\.json: .*" + message):
        load_runner(gpt2.folder)


def test_settings_that_need_a_native_model(gpt2) -> None:
    with pytest.raises(ConfigError, match="deterministic = true is to be had for native models only"):
        load_runner(gpt2.folder, deterministic=True)
    with pytest.raises(ConfigError, match="quantization is 'int3'; it must be none, int8"):
        load_runner(gpt2.folder, quantization="int3")
    with pytest.raises(CheckpointError, match="architecture GPT2LMHeadModel is not supported"):
        load_runner(gpt2.folder, model_backend="native")
    with pytest.raises(ConfigError, match="model_backend is 'onnx'; it must be auto, native, transformers"):
        load_runner(gpt2.folder, model_backend="onnx")
    with pytest.raises(ConfigError, match="max_context_tokens is 4096; the model allows 1 to 512"):
        load_runner(gpt2.folder, max_context_tokens=4096)


def test_code_of_the_checkpoint_runs_when_allowed(gpt2) -> None:
    (gpt2.folder / "modeling_own.py").write_text(
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "class OwnConfig(GPT2Config):\n    model_type = 'own'\n"
        "class OwnForCausalLM(GPT2LMHeadModel):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    gpt2.change_config({"architectures": ["OwnForCausalLM"], "model_type": "own", "auto_map": auto_map})
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        load_runner(gpt2.folder)
    assert (
        load_runner(gpt2.folder, trust_remote_code=True).vocab_size
        == json.loads((gpt2.folder / "config.json").read_text())["vocab_size"]
    )


def test_generates_and_embeds_in_process(gpt2) -> None:
    with Engine(gpt2.folder) as engine:
        prompt = [5, 9, 17, 30]
        result = engine.generate(prompt, {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True})
        assert result["output_ids"] == gpt2.greedy(tuple(prompt), 12)
        assert len(engine.embed(prompt)) == gpt2.config.hidden_size
