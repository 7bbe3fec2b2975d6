"""Models without a cache that pages can hold: tokens are what is kept, and every answer is the model's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_harness import Harness
from family_checkpoints import Checkpoint
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
from transformers.models.openai.modeling_openai import OpenAIGPTLMHeadModel, OpenAIGPTModel

from baton.core.errors import CheckpointError
from baton.core.layout import FLOAT8, KvLayout
from baton.engine.loading import load_runner
from baton.engine.model.through.passes import Passes
from baton.engine.model.through.runner import ThroughRunner
from baton.engine.model.through.token_pages import SHAPE, TokenPages
from baton.engine.plan import EngineConfig
from baton.engine.sizing import pool_pages
from baton.kv.reshard import Plan

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory) -> Checkpoint:
    return Checkpoint.tiny(tmp_path_factory.mktemp("gpt"), "openai-gpt")


@pytest.fixture(scope="module")
def runner(gpt) -> ThroughRunner:
    return load_runner(gpt.folder)


@torch.inference_mode()
def next_logits(made: Checkpoint, text: list[int]) -> torch.Tensor:
    """What `generate` draws the next token from."""
    out = made.model.generate(
        torch.tensor([text]), max_new_tokens=1, use_cache=False, return_dict_in_generate=True, output_logits=True
    )
    return out.logits[0][0].float()


def test_logits_whole_in_chunks_and_after_a_shared_prefix(gpt, runner) -> None:
    assert runner.passes is Passes.RECOMPUTED
    assert_logits_are_the_same(gpt, runner)


def test_engine_in_chunks_with_prefix_hits_and_preemption(gpt, runner) -> None:
    assert_engine_decodes_the_same(gpt, runner)


def test_prefill_here_and_decode_in_other_precision_there(gpt, runner) -> None:
    """Tokens are tokens, whatever a model computes in and K and V would be kept as."""
    other = ThroughRunner.load(gpt.folder, kv_dtype=FLOAT8)
    assert other.layout == runner.layout == ThroughRunner.load(gpt.folder, dtype="bfloat16").layout
    assert_handed_over_decodes_the_same(gpt, runner, other)


def test_a_pool_of_tokens_is_not_of_more_pages_than_the_host_can_keep(runner) -> None:
    assert pool_pages(runner, EngineConfig(), 1 << 30, 0.85) == 1 << 20


def test_nothing_is_computed_for_chunks_whose_logits_nobody_wants(gpt, runner, monkeypatch) -> None:
    lengths: list[int] = []
    forward = OpenAIGPTModel.forward

    def counted(self, input_ids, **options):
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids, **options)

    monkeypatch.setattr(OpenAIGPTModel, "forward", counted)
    harness = Harness(pages=20, config=CONFIG, runner=runner)
    harness.submit("r", tokens_of(1, 100), sampling=greedy(3))
    harness.run()
    assert lengths == [100, 101, 102]


def test_a_model_that_reads_both_ways_gives_what_generate_gives(tmp_path) -> None:
    """A position amid a prompt has the logits of the text up to there, not those that the rest would lead to."""
    made = Checkpoint.tiny(tmp_path, "xlnet", n_layer=2)
    runner = load_runner(tmp_path)
    assert runner.passes is Passes.RECOMPUTED
    text = tokens_of(1, 8)
    model, row = PagedModel(runner, pages=20), Row(list(text))
    got = torch.cat([model.step([(row, n)], all_logits=True) for n in (3, 1, 4)])
    close(got, torch.stack([next_logits(made, text[: end + 1]) for end in range(8)]))


IDS = torch.tensor([0, 1, 255, 256, 65_535, 65_536, 151_643, 2**31 - 1, 7, 8])


def token_pages(page_size: int) -> tuple[TokenPages, KvLayout, torch.Tensor]:
    layout = KvLayout("ids", SHAPE.stored, SHAPE.layers, page_size, SHAPE.kv_heads, SHAPE.head_dim)
    pages, pool = TokenPages(layout), torch.full((1, 9, 2, page_size, 1, 2), 255, dtype=torch.uint8)
    pages.bind_pool(pool)
    return pages, layout, pool


def test_ids_are_exact_wherever_they_lie() -> None:
    pages, layout, pool = token_pages(4)
    assert layout.page_bytes == 4 * 4
    table, order = torch.tensor([5, 2, 7, 0], dtype=torch.int32), torch.tensor([9, 0, 4, 8, 1, 2, 3, 5, 7, 6])
    slots = table[order // 4].long() * 4 + order % 4
    pages.write(slots, IDS[order])
    assert pages.read(table, 10).tolist() == IDS.tolist()
    assert pages.read(table, 3).tolist() == [0, 1, 255]
    assert (pool[0, [0, 1, 3, 4, 6, 8]] == 255).all()


def test_ids_are_handed_over_between_pages_of_different_sizes() -> None:
    (here, source, pool), (there, own, other) = token_pages(4), token_pages(8)
    here.write(torch.tensor([*range(20, 24), *range(8, 12), *range(28, 30)]), IDS)
    plan = Plan(source, own, 0, len(IDS))
    assert plan.lands_directly
    runs = plan.direct_runs(range(1), 0, np.array([5, 2, 7]), 9, np.array([3, 6]), 9)
    sent, landed = pool.view(-1).numpy(), other.view(-1).numpy()
    for to, size, at in runs:
        landed[to : to + size] = sent[at : at + size]
    assert there.read(torch.tensor([3, 6]), len(IDS)).tolist() == IDS.tolist()


def remembering(self, *args: object, **options: object) -> object:
    """Each text's logits hang on how many came before it."""
    self.texts = getattr(self, "texts", 0) + 1
    out = _forward(self, *args, **options)
    out.logits = out.logits.roll(self.texts, dims=-1)
    return out


_forward = OpenAIGPTLMHeadModel.forward


def test_a_model_that_remembers_other_texts_is_refused(gpt, monkeypatch) -> None:
    monkeypatch.setattr(OpenAIGPTLMHeadModel, "forward", remembering)
    with pytest.raises(CheckpointError, match="its logits of a text are not the same each time"):
        load_runner(gpt.folder)


def test_an_encoder_is_refused(tmp_path) -> None:
    made = Checkpoint.tiny(tmp_path, "bert")
    made.change_config({"is_decoder": False})
    with pytest.raises(CheckpointError, match="has is_decoder = false: tokens see those that follow them"):
        load_runner(tmp_path)
