"""What the engine may rely on beyond logits: hooks, pools, and what a step leaves untouched."""

from __future__ import annotations

import pytest
import torch
from paged_rows import PagedModel, Row, make_batch

from baton.core.errors import ConfigError
from baton.engine.runner import TorchModelRunner
from baton.testing.checkpoints import make_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), layers=3)


@pytest.fixture
def runner(folder) -> TorchModelRunner:
    return TorchModelRunner.load(folder, page_size=4)


def test_attributes(runner) -> None:
    assert (runner.vocab_size, runner.max_context_tokens, runner.eos_token_ids) == (512, 4096, {1})
    layout = runner.layout
    assert (layout.layers, layout.page_size, layout.kv_heads, layout.head_dim, layout.dtype) == (3, 4, 2, 16, "float32")


def test_context_can_be_lowered(folder) -> None:
    assert TorchModelRunner.load(folder, max_context_tokens=100).max_context_tokens == 100


def test_on_layer_follows_the_write_of_that_layer(runner) -> None:
    """When told of layer l, its K and V are final, and no later layer has been touched."""
    model = PagedModel(runner)
    row = Row([7, 8, 9, 10, 11, 12])
    snapshots = []

    def on_layer(layer: int) -> None:
        assert torch.equal(model.pool[layer + 1 :].isnan(), torch.ones_like(model.pool[layer + 1 :], dtype=torch.bool))
        snapshots.append((layer, model.pool[layer, row.pages].clone()))

    model.step([(row, 6)], on_layer=on_layer)
    assert [layer for layer, _ in snapshots] == [0, 1, 2]
    for layer, seen in snapshots:
        torch.testing.assert_close(seen, model.pool[layer, row.pages], equal_nan=True, atol=0, rtol=0)
        k_and_v = seen.transpose(1, 2).flatten(0, 1)  # [positions, 2, K, D]
        assert not k_and_v[:6].isnan().any()
        assert k_and_v[6:].isnan().all()


def test_only_the_named_slots_are_written(runner) -> None:
    model = PagedModel(runner)
    a, b = Row([7] * 9), Row([8] * 5)
    model.step([(a, 9), (b, 4)])
    model.step([(b, 1)])
    written = ~model.pool.isnan().flatten(4).all(-1)  # [layers, pages, 2, page_size]
    expected = torch.zeros_like(written)
    for row in (a, b):
        for position in range(len(row.tokens)):
            expected[:, row.pages[position // 4], :, position % 4] = True
    assert torch.equal(written, expected)


def test_rows_whose_logits_nobody_wants(runner) -> None:
    model = PagedModel(runner)
    batch = make_batch([([7, 8, 9], 0, [5]), ([7], 0, [6])], 4, all_logits=True)
    full = runner.forward(batch)
    batch.logit_rows = torch.tensor([3, 1])
    torch.testing.assert_close(runner.forward(batch), full[[3, 1]])
    batch.logit_rows = torch.tensor([], dtype=torch.int64)
    assert runner.forward(batch).shape == (0, 512)
    assert model.pool[:, 5].isfinite()[:, :, :3].all()


@pytest.mark.parametrize("page_size", [1, 5, 64])
def test_any_page_size(folder, page_size: int) -> None:
    tokens = torch.randint(6, 512, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    expected = PagedModel(TorchModelRunner.load(folder)).step([(Row(tokens), 150)], all_logits=True)
    model = PagedModel(TorchModelRunner.load(folder, page_size=page_size))
    row = Row(tokens)
    logits = torch.cat([model.step([(row, n)], all_logits=True) for n in (64, 1, 1, 70, 14)])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_pool_must_fit(runner, folder) -> None:
    with pytest.raises(ConfigError, match="no pool is bound"):
        TorchModelRunner.load(folder).forward(make_batch([([7], 0, [2])], 16, True))
    good = torch.zeros(3, 10, 2, 4, 2, 16)
    runner.bind_pool(good)
    for bad in (good[:2], good.bfloat16(), torch.zeros(3, 10, 2, 4, 2, 8), good[..., ::2], good[0]):
        with pytest.raises(ConfigError, match="does not fit the model"):
            runner.bind_pool(bad)
