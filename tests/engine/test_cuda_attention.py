"""FlashInfer's backend against a dense softmax, with a stand-in that keeps FlashInfer's contract."""

from __future__ import annotations

import flashinfer_double
import pytest
import torch
from flashinfer_double import Passed
from paged_rows import make_batch
from test_attention import LENGTHS, Case, scorings

from baton.core.layout import KvLayout
from baton.engine.attention import Chunks, TorchAttention
from baton.engine.cuda import attention
from baton.engine.cuda.attention import FlashInferAttention

CPU = torch.device("cpu")
DECODES = [(0, 1), (3, 1), (4, 1), (15, 1), (16, 1), (101, 1)]


def run(case: Case, picked: list[int], backend: FlashInferAttention) -> list[torch.Tensor]:
    backend.bind_pool(case.pool.clone())
    backend.plan(make_batch([case.rows[i] for i in picked], case.layout.page_size, False))
    q = torch.cat([case.q[i] for i in picked])
    k = torch.cat([case.k[i][case.rows[i][1] :] for i in picked])
    v = torch.cat([case.v[i][case.rows[i][1] :] for i in picked])
    backend.write(0, k, v)
    return list(backend.run(0, q, k, v).split([len(case.q[i]) for i in picked]))


def backend_of(case: Case, record=Passed) -> FlashInferAttention:
    heads = case.q[0].shape[1]
    return FlashInferAttention(flashinfer_double, case.layout, heads, [case.window], CPU, record, case.scoring)


@pytest.mark.parametrize("lengths", [LENGTHS, DECODES], ids=["mixed", "decode"])
@pytest.mark.parametrize("window", [None, 1, 3, 16, 1000])
def test_ragged_rows(lengths, window) -> None:
    case = Case(lengths, window=window)
    got = run(case, list(range(len(lengths))), backend_of(case))
    for i, each in enumerate(got):
        torch.testing.assert_close(each.double(), case.exact(i), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("lengths", [LENGTHS, DECODES], ids=["mixed", "decode"])
@pytest.mark.parametrize("kind", ["scale", "cap"])
def test_scoring(lengths, kind) -> None:
    case = Case(lengths, scoring=scorings(4)[kind])
    for i, each in enumerate(run(case, list(range(len(lengths))), backend_of(case))):
        torch.testing.assert_close(each.double(), case.exact(i), atol=2e-6, rtol=1e-5)


def test_pages_are_listed_in_order_of_rows() -> None:
    batch = make_batch([([0], 4, [9, 7, 3]), ([0, 0], 0, [5]), ([0], 7, [8, 2])], 4, False)
    pages = attention._Pages.of(batch, 4)
    assert pages.indices.tolist() == [9, 7, 5, 8, 2]
    assert (pages.starts.tolist(), pages.last_page_tokens.tolist()) == ([0, 2, 3, 5], [1, 2, 4])
    assert pages.q_starts.tolist() == [0, 1, 3, 4]


def test_layers_of_different_windows_are_planned_each_once() -> None:
    layout = KvLayout("r", "float32", 4, 4, 2, 8)
    backend = FlashInferAttention(flashinfer_double, layout, 4, [None, 8, None, 8], CPU, Passed)
    backend.bind_pool(torch.zeros(4, 20, 2, 4, 2, 8))
    backend.plan(make_batch([([0], 4, [9, 7])], 4, False))
    wrappers = [backend._current[window] for window in backend._windows]
    assert len(set(map(id, wrappers))) == 2
    assert [wrapper._wrapper.window_left for wrapper in wrappers] == [-1, 7, -1, 7]


def test_a_plan_is_not_overwritten_before_the_device_has_taken_it() -> None:
    """FlashInfer copies plans from one place in pinned memory: rewriting it early gives the step before wrong pages."""
    log: list[str] = []
    case = Case(DECODES)

    def record() -> Passed:
        log.append("recorded")
        return Passed(log, "passed")

    backend = backend_of(case, record)
    backend.bind_pool(case.pool)
    wrapper = backend._decode[None]._wrapper
    plan = wrapper.plan
    wrapper.plan = lambda *args, **kwargs: (log.append("plan"), plan(*args, **kwargs))
    batch = make_batch(case.rows, case.layout.page_size, False)
    for _ in range(2):
        backend.plan(batch)
    assert log == ["plan", "recorded", "passed", "plan", "recorded"]


@pytest.mark.parametrize(("dtype", "head_dim"), [("float32", 128), ("bfloat16", 96)])
def test_what_flashinfer_does_not_know_goes_to_torch(dtype, head_dim) -> None:
    layout = KvLayout("r", dtype, 1, 16, 2, head_dim)
    assert isinstance(attention.backend(layout, 4, [None], CPU), TorchAttention)


def test_without_flashinfer_torch_attends(monkeypatch) -> None:
    def absent():
        raise ImportError("No module named 'flashinfer'")

    layout = KvLayout("r", "bfloat16", 1, 16, 2, 128)
    monkeypatch.setattr(attention, "import_flashinfer", absent)
    assert isinstance(attention.backend(layout, 4, [None], CPU), TorchAttention)
    monkeypatch.setattr(attention, "import_flashinfer", lambda: flashinfer_double)
    assert isinstance(attention.backend(layout, 4, [None], CPU), FlashInferAttention)
    sinks = scorings(4)["sinks"]
    assert isinstance(attention.backend(layout, 4, [None], CPU, sinks), TorchAttention)
    assert isinstance(attention.backend(layout, 4, [None, Chunks(8)], CPU), TorchAttention)
