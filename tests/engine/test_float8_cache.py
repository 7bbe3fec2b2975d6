"""A KV cache of float8_e4m3: its conversions, attention over it by every backend, and what it costs a model."""

from __future__ import annotations

import flashinfer_double
import numpy as np
import pytest
import test_attention
import test_cpu_attention
import torch
from flashinfer_double import Passed
from paged_rows import PagedModel, Row, make_batch
from safetensors.torch import load_file, save_file
from test_attention import scorings
from test_cpu_attention import LENGTHS, TOLERANCE, kernels

from baton.core.attempt import Attempt
from baton.core.errors import CheckpointError, ConfigError
from baton.core.layout import FLOAT8, KV_DTYPES, KvLayout
from baton.core.sampling import SamplingParams
from baton.engine.api import EngineRequest
from baton.engine.attention import AttentionBackend, Chunks, TorchAttention
from baton.engine.clipping import CLIPPING, Clipping
from baton.engine.cpu.attention import CpuAttention
from baton.engine.cuda.attention import FlashInferAttention
from baton.engine.elements import TORCH_DTYPES, Elements
from baton.engine.engine import EngineCore
from baton.engine.plan import EngineConfig
from baton.engine.pool import KvPool
from baton.engine.runner import TorchModelRunner
from baton.kv.reshard import convert
from baton.models import TINY, bundled
from baton.testing.checkpoints import make_checkpoint

__all__ = ["kernels"]
torch.set_num_threads(1)


def narrowed(case, scale: float = 1.0):
    """The case with a pool of float8, and K and V that are what it holds of them."""
    layout = case.layout
    case.dtype, name = TORCH_DTYPES[layout.dtype], layout.dtype
    case.layout = KvLayout("r", FLOAT8, 1, layout.page_size, layout.kv_heads, layout.head_dim, scale=scale)
    elements = Elements(case.layout, case.dtype)
    case.pool = elements.stored(case.pool).view(TORCH_DTYPES[FLOAT8])
    case.k, case.v = ([elements.numbers(elements.stored(each)) for each in some] for some in (case.k, case.v))
    case.cpu = {"dtype": name}
    return case


def both(kernels, layout: KvLayout, dtype: str) -> list[AttentionBackend]:
    return [
        CpuAttention(kernels, layout, [None], dtype=dtype),
        TorchAttention(layout, [None], dtype=TORCH_DTYPES[dtype]),
    ]


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """[N, 16]: all numbers of bfloat16, infinities and NaN among them; in float32 others between them, too."""
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).view(-1, 16)
    if dtype == torch.bfloat16:
        return numbers
    bits = torch.from_numpy(np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.int32))
    ties = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (ties[:-1] + ties[1:])[:240] / 2
    return torch.cat((numbers.float(), bits.view(torch.float32).view(-1, 16), ties.view(-1, 16)))


@pytest.mark.parametrize("scale", [1.0, 0.125])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_everything_rounds_as_handoffs_do(kernels, dtype: str, scale: float) -> None:
    """Kernels and torch operations keep the bits that agents make of a pool of other elements."""
    numbers = every_number(TORCH_DTYPES[dtype])
    layout = KvLayout("r", FLOAT8, 1, 16, 1, 16, scale=scale)
    wide = numbers.contiguous().view({2: torch.int16, 4: torch.int32}[numbers.itemsize]).numpy()
    expected = convert.converter(KvLayout("r", dtype, 1, 16, 1, 16), layout)(wide.view(convert.BITS[dtype]))
    pages = layout.pages_for(len(numbers))
    batch = make_batch([([0] * len(numbers), 0, range(2, 2 + pages))], 16, False)
    cut_off = int((numbers.float().abs() / scale > 464).sum())  # more is nearer to what would be the next number
    CLIPPING.taken()
    for backend in both(kernels, layout, dtype):
        pool = torch.zeros(1, pages + 2, 2, 16, 1, 16, dtype=torch.uint8)
        backend.bind_pool(pool.view(TORCH_DTYPES[FLOAT8]))
        backend.plan(batch)
        backend.write(0, numbers[:, None], -numbers[:, None])
        k, v = pool[0, 2:].transpose(0, 1).flatten(1, 2)[:, : len(numbers), 0].numpy()
        is_number = ~np.isnan(numbers.float().numpy())
        np.testing.assert_array_equal(k[is_number], expected[is_number])
        np.testing.assert_array_equal(v[is_number], expected[is_number] ^ 0x80)
        assert CLIPPING.taken() == 2 * cut_off
        assert ((k[~is_number] & 0x7F) == 0x7F).all()


@pytest.mark.parametrize("new", [1, 2], ids=["decode", "extend"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_element_is_read_as_it_is(kernels, dtype: str, new: int) -> None:
    """Values that are attended to all alone come out: 16 of the 256 in each of 16 rows."""
    layout = KvLayout("r", FLOAT8, 1, 1, 1, 16, scale=0.25)
    pool = torch.zeros(1, 2 + 2 * 16, 2, 1, 1, 16, dtype=torch.uint8)
    values = torch.arange(256, dtype=torch.uint8).view(16, 1, 1, 16)
    pool[0, 2:18, 1], pool[0, 18:, 1] = values, values
    expected = values.view(torch.float8_e4m3fn).to(TORCH_DTYPES[dtype]).view(16, 16) * 0.25
    rows = [([0] * new, 0, [2 + row, 18 + row]) for row in range(16)]
    nothing = torch.zeros(16 * new, 1, 16, dtype=TORCH_DTYPES[dtype])
    for backend in both(kernels, layout, dtype):
        backend.bind_pool(pool.view(TORCH_DTYPES[FLOAT8]))
        backend.plan(make_batch(rows, 1, False))
        got = backend.run(0, nothing, nothing, nothing)
        torch.testing.assert_close(got[::new, 0], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("one_way", [False, True])
@pytest.mark.parametrize("window", [None, 150, Chunks(130)])
@pytest.mark.parametrize("heads", [(6, 2), (7, 1), (20, 2)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_kernels_attend(kernels, dtype: str, heads, window, one_way: bool) -> None:
    case = test_cpu_attention.Case(LENGTHS, window=window, heads=heads[0], kv_heads=heads[1], dtype=dtype, head_dim=48)
    narrowed(case, 0.5)
    got = case.run(CpuAttention(kernels, case.layout, [window], one_way, dtype=dtype))
    for i, row in enumerate(got):
        torch.testing.assert_close(row.double(), case.exact(i), **TOLERANCE[dtype])


@pytest.mark.parametrize("kind", scorings(1))
def test_kernels_score(kernels, kind) -> None:
    case = narrowed(test_cpu_attention.Case(LENGTHS, heads=10, kv_heads=2, scoring=scorings(10)[kind]), 2.0)
    for i, row in enumerate(case.run(CpuAttention(kernels, case.layout, [None], False, case.scoring, "float32"))):
        torch.testing.assert_close(row.double(), case.exact(i), **TOLERANCE["float32"])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kind", scorings(1))
def test_the_reference_attends(kind, window) -> None:
    case = test_attention.Case(test_attention.LENGTHS, scoring=scorings(4)[kind], window=window)
    narrowed(case, 0.5)
    got = run(case, TorchAttention(case.layout, [window], case.scoring, case.dtype))
    for i, row in enumerate(got):
        torch.testing.assert_close(row.double(), case.exact(i), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("lengths", [test_attention.LENGTHS, [(0, 1), (4, 1), (101, 1)]], ids=["mixed", "decode"])
def test_flashinfer_gets_float8(lengths) -> None:
    case = narrowed(test_attention.Case(lengths), 0.5)
    backend = FlashInferAttention(
        flashinfer_double, case.layout, 4, [None], torch.device("cpu"), Passed, dtype=case.dtype
    )
    for i, row in enumerate(run(case, backend)):
        torch.testing.assert_close(row.double(), case.exact(i), atol=2e-6, rtol=1e-5)


def run(case, backend) -> list[torch.Tensor]:
    backend.bind_pool(case.pool.clone())
    backend.plan(make_batch(case.rows, case.layout.page_size, False))
    k, v = (torch.cat([some[i][row[1] :] for i, row in enumerate(case.rows)]) for some in (case.k, case.v))
    q = torch.cat(case.q)
    backend.write(0, k, v)
    return list(backend.run(0, q, k, v).split([len(q) for q in case.q]))


# --- a model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"), dtype="bfloat16", hidden=128, heads=8, layers=3)


def logits(runner: TorchModelRunner, *chunks: int) -> torch.Tensor:
    """[200, V] of 200 tokens that come in pieces."""
    model, row = PagedModel(runner), Row([(7 * i) % 500 + 4 for i in range(200)])
    return torch.cat([model.step([(row, n)], all_logits=True).clone() for n in (*chunks, 200 - sum(chunks))])


def between(some: torch.Tensor, others: torch.Tensor) -> float:
    """Mean difference. Single logits differ more: sums that hardly differ may be rounded to different neighbours."""
    return (some - others).abs().mean().item()


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_cut_prompt_is_still_the_same(checkpoint, backend: str) -> None:
    """What was rounded in a page is not better known in the step that made it."""
    options = {"dtype": "float32", "kv_dtype": FLOAT8, "backend": backend}
    whole = logits(TorchModelRunner.load(checkpoint, **options))
    cut = logits(TorchModelRunner.load(checkpoint, **options), 1, 37, 64, 1, 1)
    assert between(cut, whole) < 0.2 * between(whole, logits(TorchModelRunner.load(checkpoint, dtype="float32")))


def test_backends_agree(checkpoint) -> None:
    ours, theirs = (
        logits(TorchModelRunner.load(checkpoint, dtype="float32", kv_dtype=FLOAT8, backend=backend), 100)
        for backend in ("auto", "torch")
    )
    exact = logits(TorchModelRunner.load(checkpoint, dtype="float32"), 100)
    assert between(ours, theirs) < 0.2 * between(exact, ours)
    assert 1e-3 < between(exact, ours) < 0.6, "eight bits are kept, and no fewer"


def test_recorded_steps_are_the_same(checkpoint) -> None:
    runner = TorchModelRunner.load(checkpoint, kv_dtype=FLOAT8)
    recorded = PagedModel(runner)
    assert runner._recorded is not None
    tokens = recorded.greedy(Row([9, 8, 7]), 40)
    assert runner._recorded._recordings, "steps of one row are recorded"
    plain = PagedModel(runner)
    runner._recorded = None
    assert plain.greedy(Row([9, 8, 7]), 40) == tokens
    assert torch.equal(plain.pool.view(torch.uint8), recorded.pool.view(torch.uint8))


def test_caches_have_names_of_their_own(checkpoint) -> None:
    layouts = [TorchModelRunner.load(checkpoint, kv_dtype=kv_dtype).layout for kv_dtype in ("auto", FLOAT8)]
    assert [layout.dtype for layout in layouts] == ["bfloat16", FLOAT8]
    assert layouts[0].model == layouts[1].model and layouts[0].fingerprint != layouts[1].fingerprint
    assert layouts[0].page_bytes == 2 * layouts[1].page_bytes
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'int4'; it must be auto or float8_e4m3"):
        TorchModelRunner.load(checkpoint, kv_dtype="int4")


@pytest.mark.parametrize(("given", "scale"), [({}, 1.0), ({"k": 0.011, "v": 0.3}, 0.5), ({"k": 2.0}, 2.0)])
def test_the_checkpoint_says_what_an_element_stands_for(tmp_path, given, scale: float) -> None:
    folder = make_checkpoint(tmp_path)
    add_scales(folder, given)
    runner = TorchModelRunner.load(folder, kv_dtype=FLOAT8)
    assert runner.layout.scale == scale
    exact = logits(TorchModelRunner.load(folder))
    assert between(logits(runner), exact) < 0.3


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none(tmp_path, scale: float) -> None:
    add_scales(make_checkpoint(tmp_path), {"k": scale})
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.1\.self_attn\.k_scale .* above 0, and finite"):
        TorchModelRunner.load(tmp_path, kv_dtype=FLOAT8)


@pytest.mark.parametrize("recorded", [True, False])
def test_numbers_that_do_not_fit_are_counted_and_told_once(tmp_path, monkeypatch, recorded: bool) -> None:
    """By steps that are recorded, too."""
    add_scales(make_checkpoint(tmp_path, head_dim=16, hidden=64), {"k": 1e-6})
    said: list[int] = []
    monkeypatch.setattr("baton.engine.clipping.log.warning", lambda event, numbers: said.append(numbers))
    monkeypatch.setattr("baton.engine.engine.CLIPPING", clipping := Clipping())
    for module in ("cpu.attention", "elements"):
        monkeypatch.setattr(f"baton.engine.{module}.CLIPPING", clipping)
    runner = TorchModelRunner.load(tmp_path, kv_dtype=FLOAT8, backend="auto" if recorded else "torch")
    pool = KvPool(runner.layout, 20)
    engine = EngineCore(runner, pool, EngineConfig(max_running=2))
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    engine.submit(EngineRequest(Attempt("r", 0), list(range(3, 30)), 27, params, b"root"))
    counts = []
    while engine.has_work:
        output = engine.step()
        counts.append(output.clipped)
    stored = pool.tensor.view(torch.uint8) & 0x7F
    most = int((stored == 0x7E).sum())  # the largest number, which others became
    engine.close()
    assert sum(counts) == pytest.approx(most, rel=0.02) and most > 0.9 * 32 * 2 * 2 * runner.layout.kv_heads * 16
    assert sum(count > 0 for count in counts) >= 6 and said == [next(count for count in counts if count)]


def add_scales(folder, given: dict[str, float]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"model.layers.1.self_attn.{part}_scale": torch.tensor([scale]) for part, scale in given.items()}
    save_file(tensors, folder / "model.safetensors")


def test_the_bundled_model_hardly_notices() -> None:
    """Its own greedy texts, told to both again: nearly always the same token is the likeliest, and logits are close."""
    folder = bundled(TINY)
    own, narrow = (
        PagedModel(TorchModelRunner.load(folder, kv_dtype=kv_dtype, max_context_tokens=512)) for kv_dtype in KV_DTYPES
    )
    same, error, spread = [], [], []
    for start in (50, 500, 900):
        row = Row(list(range(start, start + 24)))
        own.greedy(row, 60)
        theirs, ours = (model.step([(Row(row.tokens), len(row.tokens))], all_logits=True) for model in (own, narrow))
        same.append((theirs[24:].argmax(-1) == ours[24:].argmax(-1)).float())
        error.append((theirs - ours).abs().mean())
        spread.append(theirs.std())
    assert torch.cat(same).mean() > 0.95
    assert sum(error) < 0.05 * sum(spread)
