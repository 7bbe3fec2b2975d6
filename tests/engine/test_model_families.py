"""The decoder against transformers' own code: same checkpoints, same logits, same greedy tokens."""

from __future__ import annotations

import pytest
import torch
from paged_rows import PagedModel, Row

from baton.engine.runner import TorchModelRunner
from baton.testing.checkpoints import make_checkpoint

torch.set_num_threads(1)
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
VARIANTS = {
    **{family: {"family": family} for family in FAMILIES},
    "tied": {"tied": True},
    "wide heads, biases, shards": {"head_dim": 32, "attention_bias": True, "mlp_bias": True, "shards": 3},
    "one head per kv head": {"family": "qwen3", "kv_heads": 4, "attention_bias": True, "tied": True},
    "mistral window": {"family": "mistral", "config": {"sliding_window": 20}},
    "qwen2 window in some layers": {
        "family": "qwen2",
        "config": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    },
    "qwen3 window by layer type": {
        "family": "qwen3",
        "config": {
            "use_sliding_window": True,
            "sliding_window": 33,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    },
}


class Pair:
    """One checkpoint, loaded by both."""

    def __init__(self, folder, **options) -> None:
        from transformers import AutoModelForCausalLM

        make_checkpoint(folder, **options)
        self.folder = folder
        self.theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self.ours = TorchModelRunner.load(folder)

    @torch.inference_mode()
    def their_logits(self, tokens: list[int]) -> torch.Tensor:
        return self.theirs(torch.tensor([tokens])).logits[0].float()


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory) -> Pair:
    return Pair(tmp_path_factory.mktemp("checkpoint"), **VARIANTS[request.param])


def tokens_of(seed: int, count: int, vocab: int = 512) -> list[int]:
    return torch.randint(6, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_whole_prompt(pair: Pair) -> None:
    tokens = tokens_of(1, 300)
    close(PagedModel(pair.ours).step([(Row(tokens), 300)], all_logits=True), pair.their_logits(tokens))


def test_chunks_and_mixed_batches(pair: Pair) -> None:
    """Three rows at different stages share steps: extend rows with and without cached tokens, and decode rows."""
    model = PagedModel(pair.ours, seed=3)
    a, b, c = (Row(tokens_of(seed, 90)) for seed in (1, 2, 3))
    got: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    for step in (
        [(a, 17)],
        [(a, 1), (b, 40)],
        [(b, 1), (a, 15), (c, 3)],
        [(c, 1), (b, 1), (a, 1)],
        [(a, 56), (c, 86)],
        [(b, 48)],
    ):
        logits = model.step(step, all_logits=True)
        for (row, _), part in zip(step, logits.split([n for _, n in step]), strict=True):
            got[(a, b, c).index(row)].append(part)
    for index, row in enumerate((a, b, c)):
        close(torch.cat(got[index]), pair.their_logits(row.tokens))


def test_prefix_already_in_pool(pair: Pair) -> None:
    model = PagedModel(pair.ours)
    first = Row(tokens_of(1, 70))
    model.step([(first, 70)])
    shared = 64
    second = Row([*first.tokens[:shared], *tokens_of(2, 30)], cached=shared, pages=first.pages[: shared // 16])
    third = Row([*first.tokens[:shared], 9], cached=shared, pages=first.pages[: shared // 16])
    logits = model.step([(second, 30), (third, 1)], all_logits=True)
    close(logits[:30], pair.their_logits(second.tokens)[shared:])
    close(logits[30:], pair.their_logits(third.tokens)[shared:])


@pytest.mark.parametrize("prompt_tokens", [1, 37])
def test_greedy_tokens(pair: Pair, prompt_tokens: int) -> None:
    prompt = tokens_of(5, prompt_tokens)
    theirs = pair.theirs.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, prompt_tokens), max_new_tokens=100, do_sample=False
    )
    assert PagedModel(pair.ours).greedy(Row(list(prompt)), 100) == theirs[0, prompt_tokens:].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family: str, tmp_path) -> None:
    """Ours is no further from float32 than transformers' bfloat16 is, and close to it."""
    pair = Pair(tmp_path, family=family, dtype="bfloat16")
    assert pair.ours.layout.dtype == "bfloat16"
    tokens = tokens_of(1, 200)
    ours = PagedModel(pair.ours).step([(Row(tokens), 200)], all_logits=True)
    theirs = pair.their_logits(tokens)
    exact = PagedModel(TorchModelRunner.load(tmp_path, dtype="float32")).step([(Row(tokens), 200)], all_logits=True)
    assert (ours - theirs).abs().max() < 0.25
    assert (ours - exact).abs().mean() < 1.1 * (theirs - exact).abs().mean()


def test_windows_matter(tmp_path) -> None:
    """The window of the window tests is not just ignored by both."""
    tokens = tokens_of(1, 100)
    make_checkpoint(tmp_path / "full", "mistral")
    make_checkpoint(tmp_path / "window", "mistral", config={"sliding_window": 20})
    full, window = (
        PagedModel(TorchModelRunner.load(tmp_path / name)).step([(Row(tokens), 100)], all_logits=True)
        for name in ("full", "window")
    )
    close(full[:20], window[:20])
    assert (full[20:] - window[20:]).abs().max() > 0.1


def test_long_prompt_in_chunks(tmp_path) -> None:
    pair = Pair(tmp_path)
    tokens = tokens_of(1, 3000)
    model = PagedModel(pair.ours)
    row = Row(tokens)
    logits = torch.cat([model.step([(row, 500)], all_logits=True) for _ in range(6)])
    close(logits, pair.their_logits(tokens))
