"""Sampling: what each parameter does, that draws follow the distribution, and that nothing but the row matters."""

from __future__ import annotations

import math
import random

import pytest
import torch

from baton.core.errors import InternalError, InvalidRequest
from baton.core.sampling import SamplingParams
from baton.engine.philox import gumbel, philox
from baton.engine.sampler import NonFiniteLogits, SampleRow, check_params, launch_prompt_logprobs, sample
from baton.engine.token_counts import TokenCounts

torch.set_num_threads(1)


def row(position: int = 0, vocab: int = 600, **fields) -> SampleRow:
    outer = {key: fields.pop(key) for key in ("output_len", "eos_token_ids") if key in fields}
    counts = TokenCounts(fields.pop("prompt_ids", ()), fields.pop("output_ids", ()), vocab)
    return SampleRow(SamplingParams(**fields), position, counts, **outer)


def one(logits: list[float], **fields) -> int:
    return sample(torch.tensor([logits]), [row(vocab=len(logits), **fields)]).token_ids[0]


def draws(logits: torch.Tensor, count: int, **fields) -> torch.Tensor:
    """How often each token comes out at `count` positions."""
    rows = [row(position, len(logits), **fields) for position in range(count)]
    return torch.tensor(sample(logits.expand(count, -1), rows).token_ids).bincount(minlength=len(logits))


def chi_square_fits(counts: torch.Tensor, probabilities: torch.Tensor) -> bool:
    """Whether counts are plausible (about 4 sigma) under the probabilities; rare tokens are taken together."""
    expected = probabilities.double() * counts.sum()
    assert counts[probabilities == 0].sum() == 0
    common = expected >= 8
    observed = torch.cat((counts[common], counts[~common].sum()[None])).double()
    expected = torch.cat((expected[common], expected[~common].sum()[None]))
    if expected[-1] < 8:
        observed, expected = observed[:-1], expected[:-1]
    freedom = len(expected) - 1
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return statistic < freedom + 4 * math.sqrt(2 * freedom) + 8


ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected) -> None:
    """The vectors published with Random123."""
    words = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(map(int, words)) == expected


def test_gumbel_noise() -> None:
    seeds, positions = torch.tensor([7, 7, -8, 7]), torch.tensor([3, 4, 3, 3 + (1 << 40)])
    noise = gumbel(seeds, positions, 0, 40_001)
    assert noise.shape == (4, 40_001)
    assert noise.isfinite().all()
    assert abs(float(noise.mean()) - 0.5772) < 0.02
    assert abs(float(noise.var()) - math.pi**2 / 6) < 0.04
    torch.testing.assert_close(gumbel(seeds[1:2], positions[1:2], 0, 10), noise[1:2, :10], atol=0, rtol=0)
    others = torch.cat((noise, gumbel(seeds, positions, 1, 40_001)))
    correlation = torch.corrcoef(others) - torch.eye(8)
    assert correlation.abs().max() < 0.03
    assert (noise[:, 1:] - noise[:, :-1]).abs().min() > 0


@pytest.mark.parametrize(
    ("size", "scale", "fields"),
    [
        (5, 1.0, {}),
        (256, 2.0, {}),
        (1000, 1.0, {}),
        (1000, 3.0, {"temperature": 0.5}),
        (1000, 3.0, {"temperature": 3.0}),
        (700, 2.0, {"top_k": 20}),
        (700, 2.0, {"top_p": 0.7}),
        (700, 2.0, {"min_p": 0.1}),
        (700, 2.0, {"temperature": 1.5, "top_k": 200, "top_p": 0.8, "min_p": 0.02}),
        (700, 2.0, {"logit_bias": {5: 8.0, 6: -100.0}}),
    ],
)
def test_draws_follow_the_distribution(size: int, scale: float, fields) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * scale
    expected = logits.double()
    for token, bias in fields.get("logit_bias", {}).items():
        expected[token] += bias
    probabilities = (expected / fields.get("temperature", 1.0)).softmax(-1)
    order = probabilities.argsort(descending=True)
    kept = torch.ones(size, dtype=torch.bool)
    if "top_k" in fields:
        kept[order[fields["top_k"] :]] = False
    probabilities = probabilities * kept / (probabilities * kept).sum()
    if "top_p" in fields:
        before = probabilities[order].cumsum(-1) - probabilities[order]
        kept[order[before >= fields["top_p"]]] = False
    if "min_p" in fields:
        kept &= probabilities >= fields["min_p"] * probabilities.max()
    probabilities = probabilities * kept / (probabilities * kept).sum()
    assert chi_square_fits(draws(logits, 20_000, seed=11, **fields), probabilities)


def test_seeds_are_independent() -> None:
    """Across seeds at one position, too, draws follow the distribution."""
    logits = torch.randn(300, generator=torch.Generator().manual_seed(1))
    rows = [row(5, seed=seed) for seed in [*range(10_000), *((seed << 32) + 1 for seed in range(1, 10_001))]]
    counts = torch.tensor(sample(logits.expand(len(rows), -1), rows).token_ids).bincount(minlength=300)
    assert chi_square_fits(counts, logits.softmax(-1))


def mixed_rows() -> tuple[torch.Tensor, list[SampleRow]]:
    """Forty rows of all kinds."""
    kinds = [
        {"temperature": 0.0},
        {},
        {"temperature": 0.3},
        {"top_k": 5},
        {"top_p": 0.9},
        {"min_p": 0.2},
        {"top_k": 100, "top_p": 0.5, "min_p": 0.01},
        {"repetition_penalty": 1.3, "prompt_ids": [1, 2, 3], "output_ids": [3, 4]},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "output_ids": [9, 9, 8]},
        {"logit_bias": {7: 3.0}, "min_tokens": 3, "output_len": 1, "eos_token_ids": frozenset({2}), "temperature": 0.0},
    ]
    rows = [row(100 + i, seed=i * 7919, top_logprobs=i % 3 or None, **kinds[i % len(kinds)]) for i in range(40)]
    return torch.randn(40, 600, generator=torch.Generator().manual_seed(3)) * 2, rows


def test_companions_and_order_change_nothing() -> None:
    logits, rows = mixed_rows()
    kept = logits.clone()
    together = sample(logits, rows)
    assert torch.equal(logits, kept)
    assert sample(logits, rows) == together
    order = random.Random(0).sample(range(40), 40)
    shuffled = sample(logits[order], [rows[i] for i in order])
    assert [shuffled.token_ids[order.index(i)] for i in range(40)] == together.token_ids
    for i in range(40):
        alone = sample(logits[i : i + 1], [rows[i]])
        assert alone.token_ids == together.token_ids[i : i + 1]
        assert (alone.logprobs[0] is None) == (together.logprobs[i] is None)


def test_rounding_hardly_ever_changes_a_draw() -> None:
    """A request resumed elsewhere sees logits that differ by rounding; over a flat vocabulary it draws the same."""
    logits = torch.randn(2000, generator=torch.Generator().manual_seed(1))
    noisy = logits + 1e-5 * torch.randn(2000, generator=torch.Generator().manual_seed(2))
    rows = [row(position, seed=1) for position in range(5000)]
    first = sample(logits.expand(5000, -1), rows).token_ids
    second = sample(noisy.expand(5000, -1), rows).token_ids
    assert sum(a != b for a, b in zip(first, second, strict=True)) <= 2


def test_greedy_takes_the_greatest() -> None:
    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(0))
    assert sample(logits, [row(temperature=0.0)] * 8).token_ids == logits.argmax(-1).tolist()
    assert sample(logits, [row(temperature=1e-38, seed=i) for i in range(8)]).token_ids == logits.argmax(-1).tolist()
    assert sample(logits * 1e30, [row(seed=i) for i in range(8)]).token_ids == logits.argmax(-1).tolist()
    assert sample(logits, [row(top_k=1)] * 8).token_ids == logits.argmax(-1).tolist()
    assert sample(logits, [row(top_p=1e-9)] * 8).token_ids == logits.argmax(-1).tolist()
    assert sample(logits, [row(min_p=1.0)] * 8).token_ids == logits.argmax(-1).tolist()


def test_nothing_to_sample() -> None:
    assert sample(torch.empty(0, 10), []).token_ids == []
    with pytest.raises(InternalError, match="1 rows to sample from 2 rows"):
        sample(torch.zeros(2, 10), [row()])


def test_top_p_on_a_flat_vocabulary_looks_far_enough() -> None:
    """The nucleus is larger than what is sorted at first in one kind of row, and tiny in the other."""
    flat, steep = torch.linspace(0.1, 0.0, 9000), torch.linspace(9000.0, 0.0, 9000)
    rows = [row(position, top_p=0.95, seed=2) for position in range(400)]
    tokens = sample(torch.stack((flat, steep) * 200), rows).token_ids
    probabilities = flat.softmax(-1)
    least = int((probabilities.cumsum(-1) < 0.95).sum())
    assert 8000 < max(tokens[::2]) <= least
    assert set(tokens[1::2]) == {0, 1, 2}  # 1 - exp(-2) < 0.95 <= 1 - exp(-3)


def test_ties_at_a_cut_stay_together() -> None:
    counts = draws(torch.tensor([1.0, 0.0, 0.0, -1.0]), 500, top_k=2)
    assert (counts[:3] > 50).all()
    assert counts[3] == 0


def test_logit_bias() -> None:
    assert one([3.0, 0.0, 0.0], temperature=0.0, logit_bias={2: 4.0}) == 2
    assert one([3.0, 0.0, 1.0], temperature=0.0, logit_bias={0: -100.0}) == 2


def test_repetition_penalty_covers_prompt_and_output() -> None:
    fields = {"temperature": 0.0, "repetition_penalty": 2.0}
    assert one([4.0, 3.0, 1.0], prompt_ids=[0], **fields) == 1
    assert one([4.0, 3.0, 2.5], prompt_ids=[0, 0], output_ids=[1, 0], **fields) == 2
    assert one([-1.0, -1.5, -3.0], prompt_ids=[0], **fields) == 1  # negative logits are multiplied


def test_presence_and_frequency_cover_the_output_only() -> None:
    assert one([4.0, 3.5], temperature=0.0, presence_penalty=1.0, prompt_ids=[0]) == 0
    assert one([4.0, 3.5], temperature=0.0, presence_penalty=1.0, output_ids=[0]) == 1
    assert one([4.0, 3.5], temperature=0.0, frequency_penalty=0.2, output_ids=[0, 0]) == 0
    assert one([4.0, 3.5], temperature=0.0, frequency_penalty=0.2, output_ids=[0, 0, 0]) == 1
    assert one([3.0, 3.5], temperature=0.0, frequency_penalty=-0.5, output_ids=[0, 0]) == 0


def test_penalties_equal_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(4)) * 3
    ids = [3, 3, 4, 17, int(logits.argmax())]
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([ids]), logits.clone())[0].softmax(-1)
    counts = draws(logits[0], 10_000, repetition_penalty=1.7, prompt_ids=ids[:2], output_ids=ids[2:])
    assert chi_square_fits(counts, theirs)


def test_min_tokens() -> None:
    fields = {"temperature": 0.0, "eos_token_ids": frozenset({0}), "stop_token_ids": (1, 99), "min_tokens": 2}
    assert one([9.0, 8.0, 1.0], output_len=1, **fields) == 2
    assert one([9.0, 8.0, 1.0], output_len=2, **fields) == 0
    assert one([9.0, 8.0, 1.0], output_len=0, ignore_eos=True, **fields) == 0
    with pytest.raises(NonFiniteLogits):
        one([9.0, 8.0], output_len=1, **fields)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"seed": 1}, {"top_p": 0.9}, {"logit_bias": {3: 1.0}}])
def test_logits_that_are_not_finite_are_named(bad: float, fields) -> None:
    logits = torch.zeros(4, 10)
    logits[1, 7] = bad
    logits[3] = -math.inf
    with pytest.raises(InternalError, match=r"rows \[1, 3\]") as caught:
        sample(logits, [row(**fields) for _ in range(4)])
    assert caught.value.rows == [1, 3]
    assert caught.value.code == "internal"
    logits[:, 7] = -math.inf  # some barred tokens are nothing unusual
    assert 7 not in sample(logits[:3], [row(**fields)] * 3).token_ids


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * 3
    rows = [
        row(temperature=0.2, logit_bias={4: 50.0}, top_logprobs=3),
        row(temperature=0.0),
        row(temperature=0.0, top_logprobs=0),
    ]
    result = sample(logits, rows)
    exact = logits.double().log_softmax(-1)
    first = result.logprobs[0]
    assert first is not None
    assert first.token_id == result.token_ids[0] == 4
    assert first.logprob == pytest.approx(float(exact[0, 4]), abs=1e-5)
    assert [token for token, _ in first.top] == exact[0].topk(3).indices.tolist()
    assert [logprob for _, logprob in first.top] == pytest.approx(exact[0].topk(3).values.tolist(), abs=1e-5)
    assert result.logprobs[1] is None
    last = result.logprobs[2]
    assert last is not None
    assert last.top == ()
    assert last.logprob == pytest.approx(float(exact[2].max()), abs=1e-5)


def test_prompt_logprobs() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    found = launch_prompt_logprobs(logits, [3, 1, 4, 1, 5], 2).read()
    exact = logits.double().log_softmax(-1)
    for i, token in enumerate([3, 1, 4, 1, 5]):
        assert found[i].token_id == token
        assert found[i].logprob == pytest.approx(float(exact[i, token]), abs=1e-5)
        assert [top for top, _ in found[i].top] == exact[i].topk(2).indices.tolist()
    assert launch_prompt_logprobs(logits[:0], [], 2).read() == []
    assert launch_prompt_logprobs(logits, [0] * 5, 0).read()[0].top == ()


def test_params_that_name_tokens_the_model_lacks() -> None:
    check_params(SamplingParams(logit_bias={9: 1.0}, stop_token_ids=(0,)), 10)
    with pytest.raises(InvalidRequest, match="logit_bias names token 10; ids are 0 to 9") as caught:
        check_params(SamplingParams(logit_bias={10: 1.0}), 10)
    assert caught.value.param == "logit_bias"
    with pytest.raises(InvalidRequest, match="stop_token_ids names token -1"):
        check_params(SamplingParams(stop_token_ids=(-1,)), 10)
