"""The torch attention backend against a dense float64 softmax, one row at a time."""

from __future__ import annotations

import random

import pytest
import torch
from paged_rows import make_batch

from baton.core.layout import KvLayout
from baton.engine import attention
from baton.engine.attention import PLAIN, Chunks, Scoring, TorchAttention, Window

torch.set_num_threads(1)
PAGES = 300


class Case:
    """Random ragged rows over a pool of one layer, which holds K and V of their cached tokens and NaN elsewhere."""

    def __init__(
        self, lengths, *, page_size=4, heads=4, kv_heads=2, head_dim=8, window=None, dtype="float32", seed=0,
        scoring=PLAIN,
    ):  # fmt: skip
        self.layout = KvLayout("r", dtype, 1, page_size, kv_heads, head_dim)
        self.window, self.scoring = window, scoring
        generator = torch.Generator().manual_seed(seed)
        free = random.Random(seed).sample(range(2, PAGES), PAGES - 2)
        self.pool = torch.full((1, PAGES, 2, page_size, kv_heads, head_dim), float("nan"), dtype=getattr(torch, dtype))
        self.rows, self.q, self.k, self.v = [], [], [], []
        for cached, new in lengths:
            pages = [free.pop() for _ in range(self.layout.pages_for(cached + new))]
            q = torch.randn(new, heads, head_dim, generator=generator).to(self.pool.dtype)
            k, v = torch.randn(2, cached + new, kv_heads, head_dim, generator=generator).to(self.pool.dtype)
            for position in range(cached):
                page, offset = pages[position // page_size], position % page_size
                self.pool[0, page, :, offset] = torch.stack((k[position], v[position]))
            self.rows.append(([0] * new, cached, pages))
            self.q.append(q)
            self.k.append(k)
            self.v.append(v)

    def run(self, picked: list[int] | None = None) -> list[torch.Tensor]:
        """The backend's result for each of the picked rows, which are one batch in that order."""
        picked = list(range(len(self.rows))) if picked is None else picked
        backend = TorchAttention(self.layout, [self.window], self.scoring)
        backend.bind_pool(self.pool.clone())
        backend.plan(make_batch([self.rows[i] for i in picked], self.layout.page_size, False))
        q = torch.cat([self.q[i] for i in picked])
        k = torch.cat([self.k[i][self.rows[i][1] :] for i in picked])
        v = torch.cat([self.v[i][self.rows[i][1] :] for i in picked])
        backend.write(0, k, v)
        return list(backend.run(0, q, k, v).split([len(self.q[i]) for i in picked]))

    def exact(self, i: int) -> torch.Tensor:
        q, k, v = self.q[i].double(), self.k[i].double(), self.v[i].double()
        groups = q.shape[1] // k.shape[1]
        scores = torch.einsum("qhd,shd->hqs", q, k.repeat_interleave(groups, 1)) * self.scoring.scale_of(q.shape[2])
        if self.scoring.soft_cap is not None:
            scores = self.scoring.soft_cap * (scores / self.scoring.soft_cap).tanh()
        at, positions = torch.arange(len(k) - len(q), len(k))[:, None], torch.arange(len(k))
        hidden = positions > at
        hidden |= unseen(at, positions, self.window)
        weights = softmax(scores.masked_fill(hidden, -torch.inf), self.scoring)
        return torch.einsum("hqs,shd->qhd", weights, v.repeat_interleave(groups, 1))


def unseen(at: torch.Tensor, positions: torch.Tensor, window: Window) -> torch.Tensor:
    """Whether a position lies before what a token `at` its own may attend to."""
    if window is None:
        return torch.zeros((), dtype=torch.bool)
    return positions // window.size != at // window.size if isinstance(window, Chunks) else positions <= at - window


def softmax(scores_HQS: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """With the sinks of the only layer, if there are any: they take their share and bring nothing."""
    if scoring.sinks is None:
        return scores_HQS.softmax(-1)
    sinks_HQ1 = scoring.sinks[0].double()[:, None, None].expand(*scores_HQS.shape[:2], 1)
    return torch.cat((scores_HQS, sinks_HQ1), -1).softmax(-1)[..., :-1]


def scorings(heads: int) -> dict[str, Scoring]:
    """Every way of scoring, of a layer with so many heads."""
    sinks = (torch.linspace(-3, 4, heads),)
    return {
        "scale": Scoring(scale=0.21),
        "cap": Scoring(soft_cap=1.5),
        "sinks": Scoring(sinks=sinks),
        "all": Scoring(scale=3.0, soft_cap=5.0, sinks=sinks),
    }


# (cached, new): decode rows of very different lengths, on and off page borders, among extend rows.
LENGTHS = [(0, 1), (3, 1), (0, 7), (4, 1), (15, 1), (16, 1), (8, 5), (101, 1), (40, 33), (99, 1), (0, 150), (7, 2)]


@pytest.mark.parametrize("window", [None, 1, 3, 16, 1000, Chunks(1), Chunks(10), Chunks(64)])
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (7, 1)])
def test_ragged_rows(window, heads) -> None:
    case = Case(LENGTHS, window=window, heads=heads[0], kv_heads=heads[1])
    for i, got in enumerate(case.run()):
        torch.testing.assert_close(got.double(), case.exact(i), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("heads", [(4, 2), (4, 4)])
@pytest.mark.parametrize("kind", scorings(1))
def test_scoring(kind, heads, window) -> None:
    case = Case(LENGTHS, window=window, heads=heads[0], kv_heads=heads[1], scoring=scorings(heads[0])[kind])
    for i, got in enumerate(case.run()):
        torch.testing.assert_close(got.double(), case.exact(i), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_page_sizes(page_size: int) -> None:
    case = Case([(0, 1), (5, 1), (30, 1), (20, 9), (0, 20)], page_size=page_size, window=11)
    for i, got in enumerate(case.run()):
        torch.testing.assert_close(got.double(), case.exact(i), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("heads", [(4, 2), (4, 4)])
def test_half_precision(dtype: str, heads) -> None:
    case = Case(LENGTHS, heads=heads[0], kv_heads=heads[1], dtype=dtype)
    for i, got in enumerate(case.run()):
        torch.testing.assert_close(got.double(), case.exact(i), atol=2e-2, rtol=2e-2)


def test_companions_change_nothing_but_rounding() -> None:
    case = Case(LENGTHS)
    together = case.run()
    order = random.Random(1).sample(range(len(LENGTHS)), len(LENGTHS))
    for i, shuffled in zip(order, case.run(order), strict=True):
        torch.testing.assert_close(shuffled, together[i], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(case.run([i])[0], together[i], atol=1e-6, rtol=1e-5)


def test_nan_of_another_row_stays_there() -> None:
    case = Case(LENGTHS)
    clean = case.run()
    sick = 9
    case.q[sick].fill_(float("nan"))
    case.k[sick].fill_(float("nan"))
    for i, got in enumerate(case.run()):
        assert got.isnan().all() if i == sick else torch.equal(got, clean[i])


@pytest.mark.parametrize("limit_bytes", [1, 5000, 1 << 30])
def test_groups_are_bounded_in_padding_and_bytes(monkeypatch, limit_bytes: int) -> None:
    monkeypatch.setattr(attention, "_GATHER_BYTES", limit_bytes)
    case = Case([(n, 1) for n in (200, 1, 7, 120, 3, 90, 100, 2, 0, 130)])
    backend = TorchAttention(case.layout, [None])
    rows = [(i, i, 0, case.layout.pages_for(cached + 1)) for i, (_, cached, _) in enumerate(case.rows)]
    groups = list(backend._groups(rows))
    assert sorted(row for group in groups for row in group) == rows
    for group in groups:
        counts = [row[3] for row in group]
        assert max(counts) < 2 * min(counts) or len(group) == 1
        assert len(group) == 1 or len(group) * max(counts) * case.layout.page_bytes <= limit_bytes
    for i, got in enumerate(case.run()):
        torch.testing.assert_close(got.double(), case.exact(i), atol=2e-6, rtol=1e-5)
