"""The engine's loop on a device whose values the host cannot see: torch's meta device, on which reading a value fails.

A second guard watches that nothing crosses between host and device but through baton.engine.transfer, for on a GPU a
plain `torch.tensor(values, device=...)` or an index that is a list makes the host wait. Together: no step waits for
the device, apart from the lane's event.
"""

from __future__ import annotations

import gc
import sys

import pytest
import torch
from flashinfer_double import Passed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baton.core.attempt import Attempt
from baton.core.layout import KvLayout
from baton.core.sampling import SamplingParams
from baton.engine.api import EngineRequest
from baton.engine.cuda.lane import StreamLane
from baton.engine.engine import EngineCore
from baton.engine.plan import EngineConfig
from baton.engine.pool import KvPool
from baton.engine.sampler import SampleRow, launch_sample

META = torch.device("meta")
VOCAB = 1000
LAYOUT = KvLayout("r", "float32", 1, 4, 1, 8)


class NoWaiting(TorchDispatchMode):
    """Fails what would make the host wait for a GPU. Copies to the host give zeros: there is nothing to copy.

    A tensor of the device that no operation has made was made of the host's values, behind an operation's back.
    """

    def __enter__(self):
        self.crossings = 0
        there = [each for each in gc.get_objects() if type(each) is torch.Tensor and each.is_meta]
        self._storages = {_key(each): each.untyped_storage() for each in there}  # kept, so that no key is used anew
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in tensors:
            assert not tensor.is_meta or _key(tensor) in self._storages, f"{func} gets values of the host"
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        if len(devices | ({"meta"} if _names_meta(kwargs) and devices else set())) > 1:
            assert _called_by_transfer(), f"{func} brings host and device together"
            self.crossings += 1
            if func is torch.ops.aten.copy_.default:
                return args[0].zero_()
        assert func not in (torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default), func
        result = func(*args, **kwargs)
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.is_meta:
                self._storages[_key(made)] = made.untyped_storage()
        return result


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _names_meta(kwargs) -> bool:
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta"


def _called_by_transfer() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith("engine/transfer.py"):
            return True
        frame = frame.f_back
    return False


class Runner:
    """Logits without values."""

    vocab_size = VOCAB
    layout = LAYOUT
    max_context_tokens = 64
    eos_token_ids = frozenset({1})

    def bind_pool(self, pool) -> None:
        assert pool.device == META

    def forward(self, batch, on_layer=None):
        for values in (batch.token_ids, batch.positions, batch.slots, batch.page_table, batch.logit_rows):
            assert values.device == META
        return torch.empty(len(batch.logit_rows), VOCAB, device=META)


PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=9),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=20, min_p=0.1, max_tokens=9, seed=3),
    SamplingParams(temperature=1.0, repetition_penalty=1.2, frequency_penalty=0.5, max_tokens=9, top_logprobs=3),
    SamplingParams(temperature=1.0, logit_bias={5: 2.0}, min_tokens=4, stop_token_ids=(7,), max_tokens=9),
    SamplingParams(temperature=0.0, prompt_logprobs=2, top_logprobs=0, max_tokens=9),
]


def test_no_step_waits_for_the_device() -> None:
    pool = KvPool(LAYOUT, 64, device=META, spare=1)
    config = EngineConfig(max_running=8, max_batch_tokens=32, chunk_tokens=8, overlap=True)
    engine = EngineCore(Runner(), pool, config, lane=StreamLane(Passed))
    drawn: dict[str, int] = {}
    with NoWaiting() as guard:
        for i, params in enumerate(PARAMS):
            prompt = list(range(2, 15 + i))
            engine.submit(EngineRequest(Attempt(f"r{i}", 0), prompt, len(prompt), params, b"root"))
        while engine.has_work:
            output = engine.step()
            assert not output.failed, output.failed
            for row in output.rows:
                drawn[row.attempt.request_id] = drawn.get(row.attempt.request_id, 0) + len(row.token_ids)
    engine.close()
    assert drawn == {f"r{i}": 9 for i in range(len(PARAMS))}
    assert guard.crossings > 100


@pytest.mark.parametrize(
    "wait",
    [
        lambda logits: logits[[0, 1]],
        lambda logits: logits.argmax(-1).tolist(),
        lambda logits: logits[logits > 0],
        lambda logits: torch.tensor([1.0, 2.0]).to(META),
        lambda logits: logits[0] + torch.tensor([1.0] * 8, device=META),
    ],
    ids=["list as index", "tolist", "mask as index", "plain copy", "made there"],
)
def test_the_guard_finds_what_waits(wait) -> None:
    logits = torch.empty(2, 8, device=META)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), NoWaiting():
        wait(logits)


@pytest.mark.parametrize("params", PARAMS[1:4])
def test_cuts_that_need_no_look_draw_the_same_tokens(params, monkeypatch) -> None:
    """Top-p sorts the whole vocabulary where it cannot see how much is enough; penalties and bias are the same code."""
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1))
    rows = [SampleRow(params, position) for position in range(4)]
    expected = launch_sample(logits, rows).token_ids.tolist()
    monkeypatch.setattr("baton.engine.sampler._HEAD", VOCAB)
    assert launch_sample(logits, rows).token_ids.tolist() == expected
