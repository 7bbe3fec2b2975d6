"""Models through `transformers` that keep more than keys and values: the same logits and greedy tokens as by
themselves, however work is cut."""

from __future__ import annotations

import pytest
import torch
from family_checkpoints import Checkpoint
from family_runs import (
    assert_engine_decodes_the_same,
    assert_handed_over_decodes_the_same,
    assert_logits_are_the_same,
    tokens_of,
)
from paged_rows import PagedModel, Row

from baton.core.layout import FLOAT8, FULL, STATE
from baton.engine.model.through.passes import Passes
from baton.engine.model.through.runner import ThroughRunner

torch.set_num_threads(1)

_TWO = {"num_hidden_layers": 2}
_KINDS = ["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"]
_COMPRESSED = {"num_hidden_layers": 3, "layer_types": _KINDS, "compress_rates": {_KINDS[1]: 16, _KINDS[2]: 4}}
# What each has beside the sizes of any tiny model, the kinds of groups that its layers are in, and what is special.
FAMILIES = {
    "jamba": (_TWO, {FULL, STATE}),  # tokens after the first ones come one by one
    "falcon_h1": (_TWO, {FULL, STATE}),  # keys, values and states in each layer
    "inkling_text": ({**_TWO, "layer_types": ["hybrid_sliding", "hybrid"]}, {FULL, STATE}),  # several states, windows
    "qwen4_exp_text": ({}, {FULL, STATE}),  # states of several sizes, an index, ids of tokens as a state
    "minimax": ({**_TWO, "block_size": 16}, {FULL, STATE}),  # a cache of its own class
    "mamba2": (_TWO, {STATE}),  # no attention
    "falcon_mamba": (_TWO, {STATE}),  # nor does it take masks that are longer than what is new
    "deepseek_v32": (_TWO, set()),  # an index of tokens
    "minimax_m3_vl_text": ({}, set()),  # an index of blocks
    "deepseek_v4": (_COMPRESSED, set()),  # entries made of several tokens
}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory) -> Checkpoint:
    changes, _ = FAMILIES[request.param]
    return Checkpoint.tiny(tmp_path_factory.mktemp("through"), request.param, **changes)


@pytest.fixture(scope="module")
def runner(checkpoint) -> ThroughRunner:
    return ThroughRunner.load(checkpoint.folder)


def test_logits_whole_in_chunks_and_after_a_shared_prefix(checkpoint, runner) -> None:
    assert runner.passes is Passes.APART
    assert {group.kind for group in runner.layout.groups} == FAMILIES[checkpoint.config.model_type][1]
    assert_logits_are_the_same(checkpoint, runner)


@pytest.mark.parametrize("checkpoint", ["minimax", "mamba2", "deepseek_v32"], indirect=True)
def test_engine_in_chunks_with_prefix_hits_and_preemption(checkpoint, runner) -> None:
    assert_engine_decodes_the_same(checkpoint, runner)


@pytest.mark.parametrize("checkpoint", ["jamba", "mamba2", "deepseek_v4"], indirect=True)
def test_prefill_here_and_decode_there(checkpoint, runner) -> None:
    assert_handed_over_decodes_the_same(checkpoint, runner, ThroughRunner.load(checkpoint.folder))


@pytest.mark.parametrize("checkpoint", ["jamba"], indirect=True)
def test_bfloat16_and_float8_pages(checkpoint) -> None:
    """What it takes to compute the same is found out in half precision, too; states are as they are in any pages."""
    tokens = tokens_of(5, 60)
    exact = checkpoint.logits(tokens)

    def error(logits: torch.Tensor) -> float:
        """Of the last 29 tokens: the typical one's, for rounding sends some to other experts."""
        return float((logits - exact)[-29:].abs().mean(-1).median() / exact.std())

    def in_steps(**options: str) -> torch.Tensor:
        model, row = PagedModel(ThroughRunner.load(checkpoint.folder, **options), pages=60), Row(list(tokens))
        return torch.cat([model.step([(row, n)], all_logits=True) for n in (30, 1, 29)])

    with torch.inference_mode():
        theirs = checkpoint.half(torch.tensor([tokens])).logits[0].float()
    assert error(in_steps(dtype="bfloat16")) < 1.3 * error(theirs)
    assert 1e-4 < error(in_steps(kv_dtype=FLOAT8)) < 0.3


@pytest.mark.parametrize("checkpoint", ["qwen4_exp_text", "deepseek_v32"], indirect=True)
def test_layers_are_told_once_when_all_that_they_keep_is_there(checkpoint, runner) -> None:
    model, told = PagedModel(runner, pages=20), []
    row = Row(tokens_of(1, 16))
    model.step([(row, 16)], on_layer=told.append)
    tracked = next((len(group.layers) for group in runner.layout.groups if group.kind == FULL), runner.layout.layers)
    stateful = sum(len(group.layers) for group in runner.layout.groups if group.kind == STATE)
    assert sorted(told) == list(range(tracked + stateful))
