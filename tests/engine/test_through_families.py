"""Models through `transformers`: the same logits and greedy tokens as by themselves, however work is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from family_checkpoints import Checkpoint
from family_runs import (
    assert_engine_decodes_the_same,
    assert_handed_over_decodes_the_same,
    assert_logits_are_the_same,
    close,
    tokens_of,
)
from paged_rows import PagedModel, Row

from baton.core.layout import FLOAT8
from baton.engine.loading import load_runner
from baton.engine.model.projection import Linear
from baton.engine.model.through.linears import replace_linears, watched
from baton.engine.model.through.passes import Passes
from baton.engine.model.through.runner import ThroughRunner
from baton.engine.runner import TorchModelRunner
from baton.kv.reshard import Plan

torch.set_num_threads(1)

# What is special about each, beside what its rows in the table say.
FLAT = {
    "gpt2": "learned positions, Conv1D",
    "opt": "learned positions with an offset",
    "gpt_neox": "parallel blocks, a part of a head rotates",
    "gpt_bigcode": "one key/value head",
    "phimoe": "experts",
    "gemma4_text": "heads of two sizes, windows, shared keys and values",
    "minicpm3": "latent attention with keys wider than values",
    "granite_swa": "attention sinks, in windows",
    "laguna": "layers with different numbers of heads",
}
APART = {
    "bloom": "ALiBi",
    "falcon": "its own attention",
    "gptj": "its own attention",
    "xglm": "positions from a table of its own",
}


@pytest.fixture(scope="module", params=[*FLAT, *APART])
def checkpoint(request, tmp_path_factory) -> Checkpoint:
    return Checkpoint.tiny(tmp_path_factory.mktemp("through"), request.param)


@pytest.fixture(scope="module")
def runner(checkpoint) -> ThroughRunner:
    loaded = load_runner(checkpoint.folder)
    assert isinstance(loaded, ThroughRunner)
    return loaded


def test_logits_whole_in_chunks_and_after_a_shared_prefix(checkpoint, runner) -> None:
    assert runner.passes is (Passes.APART if checkpoint.config.model_type in APART else Passes.TOGETHER)
    assert_logits_are_the_same(checkpoint, runner)


def test_engine_in_chunks_with_prefix_hits_and_preemption(checkpoint, runner) -> None:
    assert_engine_decodes_the_same(checkpoint, runner)


def test_prefill_here_and_decode_there(checkpoint, runner) -> None:
    assert_handed_over_decodes_the_same(checkpoint, runner, ThroughRunner.load(checkpoint.folder))


@pytest.mark.parametrize("model_type", ["gpt_neox", "granite_swa", "falcon"])
def test_bfloat16_torch_operations_and_float8_pages(tmp_path, model_type: str) -> None:
    """Other ways of keeping numbers, each as near to float32 as it can be."""
    made, tokens = Checkpoint.tiny(tmp_path, model_type), tokens_of(5, 60)
    exact = made.logits(tokens)

    def error(runner: ThroughRunner) -> float:
        model, row = PagedModel(runner, pages=20), Row(list(tokens))
        got = torch.cat([model.step([(row, n)], all_logits=True) for n in (30, 1, 29)])
        return float((got - exact).abs().mean() / exact.std())

    assert error(ThroughRunner.load(tmp_path, own_kernels=False)) < 1e-4
    with torch.inference_mode():
        theirs = made.half(torch.tensor([tokens])).logits[0].float()
    limit = 1.3 * float((theirs - exact).abs().mean() / exact.std())
    assert error(ThroughRunner.load(tmp_path, dtype="bfloat16")) < limit
    assert 1e-4 < error(ThroughRunner.load(tmp_path, kv_dtype=FLOAT8)) < 0.6


@pytest.mark.parametrize("model_type", ["gpt2", "phimoe", "falcon"])
def test_quantized_at_load(tmp_path, model_type: str) -> None:
    """Matrices of 8 bits: nearly the logits of the whole ones, and not the same."""
    made, tokens = Checkpoint.tiny(tmp_path, model_type), tokens_of(1, 40)
    runner = load_runner(tmp_path, quantization="int8")
    got = PagedModel(runner, pages=20).step([(Row(list(tokens)), 40)], all_logits=True)
    exact = made.logits(tokens)
    assert 1e-3 * exact.std() < (got - exact).abs().median() < 0.1 * exact.std()


def test_matrices_that_a_model_looks_at_stay_as_they_are() -> None:
    class Looking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.called, self.looked_at = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.called(x) + x @ self.looked_at.weight.T + self.looked_at(x)

    model, x = Looking().requires_grad_(False), torch.randn(5, 2, 4)
    with watched(model) as untouched:
        before = model(x)
    assert untouched == {model.called}
    replace_linears(model, untouched, Linear)
    torch.testing.assert_close(model(x), before)
    assert {name for name, _ in model.named_parameters()} == {"looked_at.weight"}


def test_native_models_run_through_transformers_if_asked(tmp_path) -> None:
    made, tokens = Checkpoint(tmp_path, "gemma 2"), tokens_of(1, 60)
    assert isinstance(load_runner(tmp_path), TorchModelRunner)
    for backend, kind in (("native", TorchModelRunner), ("transformers", ThroughRunner)):
        runner = load_runner(tmp_path, model_backend=backend)
        assert isinstance(runner, kind)
        close(PagedModel(runner, pages=20).step([(Row(list(tokens)), 60)], all_logits=True), made.logits(tokens))
    by_name = {load_runner(tmp_path, model_backend=name).layout.model for name in ("native", "transformers")}
    assert len(by_name) == 2  # keys have their dimensions in another order: nothing may be shared


def test_a_variant_that_is_not_native_runs_through_transformers(tmp_path) -> None:
    made, tokens = Checkpoint(tmp_path, "olmoe", clip_qkv=0.4), tokens_of(1, 40)
    runner = load_runner(tmp_path)
    assert isinstance(runner, ThroughRunner)
    close(PagedModel(runner, pages=20).step([(Row(list(tokens)), 40)], all_logits=True), made.logits(tokens))


@pytest.mark.parametrize("model_type", ["gpt2", "gptj"])
def test_wanted_logits_only_and_layers_in_order(tmp_path, model_type: str) -> None:
    Checkpoint.tiny(tmp_path, model_type)
    runner = ThroughRunner.load(tmp_path)
    model, told = PagedModel(runner, pages=20), []
    rows = [Row(tokens_of(seed, 16)) for seed in (1, 2)]

    def on_layer(layer: int) -> None:
        pages = model.pool[layer, [page for row in rows for page in row.pages]]
        assert not pages.isnan().any()
        told.append(layer)

    assert model.step([(row, 16) for row in rows], on_layer=on_layer).shape == (2, runner.vocab_size)
    assert told == list(range(runner.layout.layers))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [("gpt2", {"scale_attn_by_inverse_layer_idx": True}), ("mimo_v2_flash", {})],
    ids=["layers of different scales", "sinks in some layers"],
)
def test_layers_that_differ_run_together(tmp_path, model_type: str, changes: dict[str, object]) -> None:
    made, tokens = Checkpoint.tiny(tmp_path, model_type, **changes), tokens_of(1, 60)
    runner = load_runner(tmp_path)
    assert runner.passes is Passes.TOGETHER
    close(PagedModel(runner, pages=20).step([(Row(list(tokens)), 60)], all_logits=True), made.logits(tokens))


def test_longrope_contexts_end_where_its_frequencies_change(tmp_path) -> None:
    made, tokens = Checkpoint(tmp_path, "phi 4 mini"), tokens_of(1, 32)
    runner = load_runner(tmp_path, model_backend="transformers")
    assert runner.max_context_tokens == 32
    close(PagedModel(runner, pages=20).step([(Row(list(tokens)), 32)], all_logits=True), made.logits(tokens))


@pytest.mark.parametrize("model_type", ["gpt2", "bloom", "deepseek_v32"])
def test_pages_become_pages_of_another_size(tmp_path, model_type: str) -> None:
    """As a handoff between workers of different page sizes moves them: what each token keeps stays together."""
    made, tokens = Checkpoint.tiny(tmp_path, model_type), tokens_of(1, 50)
    here, there = (PagedModel(ThroughRunner.load(tmp_path, page_size=size), pages=20) for size in (16, 8))
    row = Row(list(tokens))
    here.step([(row, 45)])
    pages = [*range(3, 10)]
    source, own = here.runner.layout, there.runner.layout
    runs = Plan(source, own, 0, 45).direct_runs(
        range(source.layers), 0, np.array(row.pages), here.pool.shape[1], np.array(pages), there.pool.shape[1]
    )
    sent, landed = (model.pool.view(torch.uint8).view(-1).numpy() for model in (here, there))
    for to, size, at in runs:
        landed[to : to + size] = sent[at : at + size]
    close(there.step([(Row(list(tokens), cached=45, pages=pages), 5)], all_logits=True), made.logits(tokens)[45:])
