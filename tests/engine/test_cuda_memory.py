"""Pages by memory_fraction, and the step that is run to find out: with made-up facts of a device."""

from __future__ import annotations

import pytest
import torch
from family_checkpoints import Checkpoint
from paged_rows import PagedModel

from baton.core.errors import ConfigError, InternalError
from baton.core.layout import KvLayout
from baton.engine import sizing
from baton.engine.cuda import support
from baton.engine.cuda.memory import Memory, largest_batch, pages_within
from baton.engine.plan import EngineConfig
from baton.engine.pool import KvPool, PageAllocator
from baton.engine.runner import TorchModelRunner
from baton.engine.sizing import pool_pages
from baton.testing.checkpoints import make_checkpoint

torch.set_num_threads(1)
LAYOUT = KvLayout("r", "bfloat16", 32, 16, 8, 128)  # 2 MiB a page, all layers
GB = 10**9


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> TorchModelRunner:
    return TorchModelRunner.load(make_checkpoint(tmp_path_factory.mktemp("c"), layers=2), page_size=4)


def test_what_weights_and_the_largest_step_leave_becomes_pages() -> None:
    memory = Memory(total=80 * GB, used=17 * GB, step=3 * GB)
    assert pages_within(memory, 0.85, LAYOUT) == 48 * GB // (2 << 20)
    assert pages_within(memory, 0.50, LAYOUT) == 20 * GB // (2 << 20)


def test_nothing_left_is_refused_with_the_facts() -> None:
    with pytest.raises(ConfigError, match=r"leaves -2\.00 GB.*17\.00 GB are used.*3\.00 GB"):
        pages_within(Memory(total=20 * GB, used=17 * GB, step=3 * GB), 0.9, LAYOUT)
    with pytest.raises(ConfigError, match=r"memory_fraction = 0\.9"):
        pages_within(Memory(total=10 * GB, used=9 * GB - 6 * (1 << 20), step=0), 0.9, LAYOUT)


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (EngineConfig(max_running=4, max_batch_tokens=100), 4),
        (EngineConfig(max_running=64, max_batch_tokens=512), 64),
        (EngineConfig(max_running=2, max_batch_tokens=9000), 2),
        (EngineConfig(max_running=1, max_batch_tokens=50_000), 1),
    ],
)
def test_the_largest_step_is_a_step_that_runs(runner, config, rows) -> None:
    batch = largest_batch(runner, config)
    assert len(batch.token_ids) == sum(batch.q_lens_host) == min(config.max_batch_tokens, 4095 * config.max_running)
    assert (len(batch.q_lens_host), len(batch.logit_rows)) == (rows, rows)
    assert all(1 <= length < runner.max_context_tokens for length in batch.q_lens_host)
    assert int(batch.page_table.max()) * 4 + 3 >= int(batch.slots.max())
    if len(batch.token_ids) <= 512:
        PagedModel(runner, int(batch.page_table.max()) + 1)
        assert runner.forward(batch).shape == (rows, runner.vocab_size)


def test_the_largest_step_of_a_model_that_keeps_states(tmp_path) -> None:
    runner = TorchModelRunner.load(Checkpoint(tmp_path, "falcon h1").folder)
    batch = largest_batch(runner, EngineConfig(max_running=4, max_batch_tokens=100))
    runner.bind_pool(KvPool(runner.layout, 20).tensor)
    assert runner.forward(batch).shape == (4, runner.vocab_size)


def test_an_explicit_size_wins_and_only_a_gpu_is_measured(runner, monkeypatch) -> None:
    page_bytes = runner.layout.pool_bytes(1)
    assert pool_pages(runner, EngineConfig(), 10 * page_bytes, 0.85) == 10
    assert pool_pages(runner, EngineConfig(), 0, 0.85) == (256 << 20) // page_bytes
    monkeypatch.setattr(runner, "device", torch.device("cuda"))
    monkeypatch.setattr(sizing, "measure", lambda runner, config: Memory(100 * page_bytes, 20 * page_bytes, 0))
    assert pool_pages(runner, EngineConfig(), 0, 0.5) == 30
    assert pool_pages(runner, EngineConfig(), 12 * page_bytes, 0.5) == 12
    with pytest.raises(ConfigError, match="kv_memory_bytes"):
        pool_pages(runner, EngineConfig(), page_bytes, 0.5)


def test_a_pool_can_be_given_up(runner) -> None:
    PagedModel(runner, 20)
    runner.unbind_pool()
    with pytest.raises(ConfigError, match="no pool is bound"):
        runner.forward(largest_batch(runner, EngineConfig(max_running=1, max_batch_tokens=8)))


def test_spare_pages_are_lent_to_nobody() -> None:
    allocator = PageAllocator(10, spare=1)
    assert (allocator.usable, sorted(allocator.allocate(7))) == (7, [2, 3, 4, 5, 6, 7, 8])
    with pytest.raises(InternalError, match=r"pages 2\.\.8 can"):
        allocator.free([9])
    with pytest.raises(ConfigError, match="3 that are not lent"):
        PageAllocator(3, spare=1)


def test_devices_are_picked_or_refused_with_the_reason(monkeypatch) -> None:
    monkeypatch.setattr(support, "cuda_problem", lambda: "there is none")
    assert (support.pick_device("auto"), support.pick_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(ConfigError, match="device = cuda cannot be had: there is none"):
        support.pick_device("cuda")
    with pytest.raises(ConfigError, match="auto, cpu, cuda"):
        support.pick_device("tpu")
    monkeypatch.setattr(support, "cuda_problem", lambda: None)
    assert (support.pick_device("auto"), support.pick_device("cpu"), support.pick_device("cuda")) == (
        "cuda", "cpu", "cuda",
    )  # fmt: skip


def test_what_a_gpu_lacks_is_told(monkeypatch) -> None:
    def absent() -> None:
        raise ImportError("no flashinfer here")

    monkeypatch.setattr(support, "cuda_problem", lambda: None)
    monkeypatch.setattr(support, "import_flashinfer", absent)
    for capability, lacking in (((8, 0), 2), ((9, 0), 1)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        told = support.problems()
        assert len(told) == lacking and told[-1] == "no fast attention and no CUDA graphs: no flashinfer here"
    assert support.Arithmetic.of((9, 0), None) == support.Arithmetic(True, False, True, True)
