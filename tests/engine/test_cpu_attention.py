"""The CPU kernels' attention against a dense float64 softmax and against the torch reference, one row at a time."""

from __future__ import annotations

import random

import pytest
import torch
from paged_rows import make_batch
from test_attention import scorings, softmax, unseen

from baton.core.layout import KvLayout
from baton.engine.attention import PLAIN, Chunks, TorchAttention
from baton.engine.cpu.attention import CpuAttention
from baton.engine.cpu.build import COMPILERS, runnable_variants
from baton.engine.cpu.library import open_kernels, torch_team
from baton.runtime import environ

torch.set_num_threads(1)
TOLERANCE = {"float32": {"atol": 3e-6, "rtol": 1e-5}, "bfloat16": {"atol": 2e-2, "rtol": 2e-2}}
# (cached, new): decode rows of very different lengths, on and off page and block borders, among extend rows.
LENGTHS = [
    (0, 1), (3, 1), (0, 7), (4, 1), (15, 1), (127, 1), (128, 1), (8, 5), (301, 1), (40, 33), (99, 1), (0, 150),
    (7, 2), (120, 20), (256, 3), (5, 300),
]  # fmt: skip


@pytest.fixture(scope="module", params=runnable_variants())
def kernels(request):
    import shutil

    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler")
    return open_kernels(environ.cache_dir() / "kernels", request.param)


class Case:
    """Random ragged rows over a pool of one layer, which holds K and V of their cached tokens and NaN elsewhere."""

    def __init__(
        self, lengths, *, page_size=16, heads=6, kv_heads=2, head_dim=16, window=None, dtype="float32", seed=0,
        scoring=PLAIN,
    ):  # fmt: skip
        self.layout = KvLayout("r", dtype, 1, page_size, kv_heads, head_dim)
        self.window, self.scoring = window, scoring
        generator = torch.Generator().manual_seed(seed)
        counts = [self.layout.pages_for(sum(length)) for length in lengths]
        free = random.Random(seed).sample(range(2, sum(counts) + 9), sum(counts))
        shape = (1, sum(counts) + 9, 2, page_size, kv_heads, head_dim)
        self.pool = torch.full(shape, float("nan"), dtype=getattr(torch, dtype))
        self.rows, self.q, self.k, self.v = [], [], [], []
        for (cached, new), count in zip(lengths, counts, strict=True):
            pages = [free.pop() for _ in range(count)]
            self.q.append(torch.randn(new, heads, head_dim, generator=generator).to(self.pool.dtype))
            k, v = torch.randn(2, cached + new, kv_heads, head_dim, generator=generator).to(self.pool.dtype)
            for position in range(cached):
                page, offset = pages[position // page_size], position % page_size
                self.pool[0, page, :, offset] = torch.stack((k[position], v[position]))
            self.rows.append(([0] * new, cached, pages))
            self.k.append(k)
            self.v.append(v)

    def run(self, backend, picked: list[int] | None = None) -> list[torch.Tensor]:
        """The backend's result for each of the picked rows, which are one batch in that order."""
        picked = list(range(len(self.rows))) if picked is None else picked
        backend.bind_pool(self.pool.clone())
        backend.plan(make_batch([self.rows[i] for i in picked], self.layout.page_size, False))
        q = torch.cat([self.q[i] for i in picked])
        k = torch.cat([self.k[i][self.rows[i][1] :] for i in picked])
        v = torch.cat([self.v[i][self.rows[i][1] :] for i in picked])
        # As the decoder hands them over: parts of one matrix.
        q, k, v = torch.cat((q, k, v), 1).split((q.shape[1], k.shape[1], v.shape[1]), 1)
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

    def check(self, kernels, **options) -> None:
        dtype = self.layout.dtype
        got = self.run(CpuAttention(kernels, self.layout, [self.window], scoring=self.scoring, **options))
        for i, row in enumerate(got):
            torch.testing.assert_close(row.double(), self.exact(i), **TOLERANCE[dtype], msg=lambda m, i=i: f"{i}: {m}")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [None, 1, 3, 16, 150, 1000, Chunks(10), Chunks(130)])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (7, 1), (8, 1), (20, 2)])
def test_ragged_rows(kernels, window, heads, dtype: str) -> None:
    Case(LENGTHS, window=window, heads=heads[0], kv_heads=heads[1], dtype=dtype).check(kernels)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("one_way", [False, True])
@pytest.mark.parametrize("kind", scorings(1))
def test_scoring(kernels, kind, one_way: bool, window, dtype: str) -> None:
    case = Case(LENGTHS, heads=10, kv_heads=2, window=window, dtype=dtype, scoring=scorings(10)[kind])
    case.check(kernels, one_way=one_way)


def test_a_cap_bends_scores_of_any_size(kernels) -> None:
    case = Case(LENGTHS, scoring=scorings(6)["cap"])
    for q in case.q:
        q *= 1e4
    case.q[8][:] = float("nan")
    for i, got in enumerate(case.run(CpuAttention(kernels, case.layout, [None], scoring=case.scoring))):
        if i == 8:
            assert got.isnan().all()
        else:
            torch.testing.assert_close(got.double(), case.exact(i), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head_dim", [16, 48, 64, 80, 128, 256])
def test_head_dims(kernels, head_dim: int, dtype: str) -> None:
    Case([(0, 1), (140, 1), (30, 1), (20, 9), (0, 140)], head_dim=head_dim, dtype=dtype).check(kernels)


@pytest.mark.parametrize("page_size", [1, 3, 16, 64, 200])
def test_page_sizes(kernels, page_size: int) -> None:
    Case([(0, 1), (5, 1), (230, 1), (20, 9), (0, 20), (190, 30)], page_size=page_size, window=111).check(kernels)


@pytest.mark.parametrize("seed", range(6))
def test_random_batches_match_the_reference(kernels, seed: int) -> None:
    """Both backends see the same bytes, and differ by rounding only."""
    draw = random.Random(seed)
    kv_heads = draw.choice((1, 2, 3))
    case = Case(
        [(draw.choice((0, draw.randrange(500))), draw.choice((1, 1, draw.randrange(1, 200)))) for _ in range(8)],
        page_size=draw.choice((1, 4, 16, 32)), kv_heads=kv_heads, heads=kv_heads * draw.randrange(1, 9),
        head_dim=draw.choice((16, 32, 64)), window=draw.choice((None, draw.randrange(1, 300))),
        dtype=draw.choice(list(TOLERANCE)), seed=seed,
    )  # fmt: skip
    reference = case.run(TorchAttention(case.layout, [case.window]))
    for ours, theirs in zip(case.run(CpuAttention(kernels, case.layout, [case.window])), reference, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE[case.layout.dtype])


@pytest.mark.parametrize("team", ["torch", "own"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_companions_and_threads_change_no_bit(kernels, dtype: str, team: str) -> None:
    case = Case(LENGTHS, dtype=dtype, kv_heads=3)
    backend = CpuAttention(kernels, case.layout, [None])
    together = case.run(backend)
    order = random.Random(1).sample(range(len(LENGTHS)), len(LENGTHS))
    torch.set_num_threads(3)
    kernels.use_team(torch_team() if team == "torch" else None)
    try:
        shuffled = case.run(backend, order)
    finally:
        torch.set_num_threads(1)
        kernels.use_team(torch_team())
    for i, other in zip(order, shuffled, strict=True):
        assert torch.equal(other, together[i])
        assert torch.equal(case.run(backend, [i])[0], together[i])


def test_torch_lends_its_threads() -> None:
    """On Linux torch's OpenMP runtime is GNU's or one that speaks as it does."""
    assert torch_team()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [None, 100, Chunks(50)])
def test_one_way_does_not_see_how_a_prompt_was_cut(kernels, dtype: str, window) -> None:
    whole = Case([(0, 301)], dtype=dtype, window=window)
    backend = CpuAttention(kernels, whole.layout, [window], one_way=True)
    whole.check(kernels, one_way=True)
    expected = whole.run(backend)[0]
    for cached, new in ((0, 1), (0, 130), (130, 150), (280, 1), (281, 20), (300, 1)):
        part = Case([(cached, new)], dtype=dtype, window=window)
        part.pool = torch.full_like(whole.pool, float("nan"))
        part.rows = [([0] * new, cached, whole.rows[0][2])]
        for position in range(cached):
            page, offset = whole.rows[0][2][position // 16], position % 16
            part.pool[0, page, :, offset] = torch.stack((whole.k[0][position], whole.v[0][position]))
        part.q, part.k, part.v = ([x[0][: cached + new]] for x in (whole.q, whole.k, whole.v))
        part.q[0] = part.q[0][cached:]
        assert torch.equal(part.run(backend)[0], expected[cached : cached + new])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_nan_of_another_row_stays_there(kernels, dtype: str) -> None:
    case = Case(LENGTHS, dtype=dtype)
    backend = CpuAttention(kernels, case.layout, [None])
    clean = case.run(backend)
    for sick in (8, 9):
        case.q[sick].fill_(float("nan"))
        case.k[sick].fill_(float("nan"))
    for i, got in enumerate(case.run(backend)):
        assert got.isnan().all() if i in (8, 9) else torch.equal(got, clean[i])


def test_huge_scores_do_not_overflow(kernels) -> None:
    case = Case(LENGTHS)
    for q in case.q:
        q *= 300.0
    for i, got in enumerate(case.run(CpuAttention(kernels, case.layout, [None]))):
        torch.testing.assert_close(got.double(), case.exact(i), atol=1e-3, rtol=1e-3)
