"""The GPU path on a GPU: `pytest -m gpu`. Everything is compared with the torch reference, on the CPU or the device.

Skipped where torch has no GPU. What needs FlashInfer is skipped where that does not load.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from paged_rows import PagedModel, Row, make_batch
from test_cuda_quantized import CASES, weight_of
from torch_gpu_double import gpu_products

from baton.core.attempt import Attempt
from baton.core.layout import FLOAT8, RESERVED_PAGES, KvLayout
from baton.core.sampling import SamplingParams
from baton.engine.api import EngineRequest, Stage
from baton.engine.attention import TorchAttention
from baton.engine.cuda import quantized
from baton.engine.cuda.attention import FlashInferAttention
from baton.engine.cuda.graphs import sizes_up_to
from baton.engine.cuda.support import arithmetic, cuda_problem, import_flashinfer
from baton.engine.elements import TORCH_DTYPES
from baton.engine.engine import EngineCore
from baton.engine.inprocess import Engine
from baton.engine.model.quantized.matrix import to_float8
from baton.engine.philox import gumbel, philox
from baton.engine.plan import EngineConfig
from baton.engine.pool import KvPool
from baton.engine.runner import TorchModelRunner
from baton.engine.sampler import SampleRow, launch_sample
from baton.testing.checkpoints import make_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(cuda_problem() is not None, reason=str(cuda_problem()))]

CUDA = torch.device("cuda")
LENGTHS = [(0, 1), (3, 1), (0, 70), (40, 1), (159, 1), (160, 1), (80, 5), (1010, 1), (400, 330), (990, 1), (7, 2)]


@pytest.fixture(scope="module")
def flashinfer():
    try:
        return import_flashinfer()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(
        tmp_path_factory.mktemp("gpu"), layers=3, hidden=512, heads=8, kv_heads=2, head_dim=64, dtype="bfloat16"
    )


def batch_on(device, lengths, layout: KvLayout, seed: int):
    """Random rows over shuffled pages, and the pool that holds K and V of what they have cached."""
    generator, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    count = RESERVED_PAGES + sum(layout.pages_for(cached + new) for cached, new in lengths)
    free = chance.sample(range(RESERVED_PAGES, count), count - RESERVED_PAGES)
    rows = [([0] * new, cached, [free.pop() for _ in range(layout.pages_for(cached + new))]) for cached, new in lengths]
    shape = (layout.layers, count, 2, layout.page_size, layout.kv_heads, layout.head_dim)
    pool = torch.randn(shape, generator=generator).to(TORCH_DTYPES[layout.dtype])
    batch = make_batch(rows, layout.page_size, False)
    moved = {name: getattr(batch, name).to(device) for name in _TENSORS}
    return replace(batch, **moved), pool.to(device), generator


_TENSORS = ("token_ids", "positions", "slots", "q_starts", "seq_lens", "page_table", "logit_rows")


def attend(backend, batch, pool, heads: int, layout: KvLayout, generator, dtype=None) -> torch.Tensor:
    """`dtype`: of queries, K and V; None: the pool's."""
    tokens = len(batch.token_ids)
    q, k, v = (
        torch.randn(tokens, count, layout.head_dim, generator=generator).to(dtype or pool.dtype).to(pool.device)
        for count in (heads, layout.kv_heads, layout.kv_heads)
    )
    backend.bind_pool(pool)
    backend.plan(batch)
    backend.write(0, k, v)
    return backend.run(0, q, k, v).float().cpu()


@pytest.mark.parametrize("lengths", [LENGTHS, [one for one in LENGTHS if one[1] == 1]], ids=["mixed", "decode"])
@pytest.mark.parametrize("window", [None, 16, 500])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 8, 64), (14, 2, 64), (32, 8, 128), (8, 1, 256)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_flashinfer_attends_as_the_reference(flashinfer, lengths, window, heads, kv_heads, head_dim, dtype) -> None:
    layout = KvLayout("r", dtype, 1, 16, kv_heads, head_dim)
    batch, pool, generator = batch_on(CUDA, lengths, layout, 1)
    got = attend(FlashInferAttention(flashinfer, layout, heads, [window], CUDA), batch, pool, heads, layout, generator)
    wide = KvLayout("r", "float32", 1, 16, kv_heads, head_dim)
    batch, pool, generator = batch_on(torch.device("cpu"), lengths, layout, 1)
    expected = attend(TorchAttention(wide, [window]), batch, pool.float(), heads, layout, generator)
    torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("lengths", [LENGTHS, [one for one in LENGTHS if one[1] == 1]], ids=["mixed", "decode"])
def test_flashinfer_reads_and_writes_float8(flashinfer, lengths) -> None:
    layout, half = KvLayout("r", FLOAT8, 1, 16, 2, 128, scale=0.5), torch.bfloat16
    results, pools = [], []
    for device in (CUDA, torch.device("cpu")):
        batch, pool, generator = batch_on(device, lengths, layout, 1)
        backend = TorchAttention(layout, [None], dtype=half)
        if device == CUDA:
            backend = FlashInferAttention(flashinfer, layout, 8, [None], device, dtype=half)
        results.append(attend(backend, batch, pool, 8, layout, generator, half))
        pools.append(pool.cpu().view(torch.uint8))
    torch.testing.assert_close(*results, atol=2e-2, rtol=2e-2)
    assert torch.equal(*pools)


def test_graphs_compute_what_eager_steps_compute(flashinfer, folder) -> None:
    runners = [TorchModelRunner.load(folder, device="cuda") for _ in range(2)]
    models = []
    for runner in runners:
        pool = torch.zeros(3, 200, 2, 16, 2, 64, dtype=torch.bfloat16, device=CUDA)
        runner.bind_pool(pool)
        models.append(pool)
    runners[0].capture(sizes_up_to(12), lambda done, total: None)
    chance = random.Random(3)
    for rows in (1, 12, 5, 8, 3, 12):
        lengths = [(chance.randrange(1, 150), 1) for _ in range(rows)]
        batch, filled, _ = batch_on(CUDA, lengths, runners[0].layout, rows)
        logits = []
        for runner, pool in zip(runners, models, strict=True):
            pool[:, : filled.shape[1]] = filled
            logits.append(runner.forward(batch).float().cpu().clone())
        torch.testing.assert_close(*logits, atol=2e-2, rtol=2e-2)
        kept = slice(0, filled.shape[1])
        torch.testing.assert_close(models[0][:, kept].cpu(), models[1][:, kept].cpu(), atol=2e-2, rtol=2e-2)


def test_random_numbers_are_those_of_the_cpu() -> None:
    counter = [torch.randint(0, 1 << 32, (1000,)) for _ in range(6)]
    here = philox(tuple(counter[:4]), tuple(counter[4:]))
    there = philox(tuple(c.to(CUDA) for c in counter[:4]), tuple(c.to(CUDA) for c in counter[4:]))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))
    seeds, positions = torch.tensor([1, -5, 1 << 60]), torch.tensor([0, 9, 1 << 33])
    torch.testing.assert_close(
        gumbel(seeds, positions, 1, 256), gumbel(seeds.to(CUDA), positions.to(CUDA), 1, 256).cpu()
    )


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.7, seed=11),
        SamplingParams(temperature=1.3, top_p=0.8, top_k=50, min_p=0.01, seed=5),
        SamplingParams(temperature=1.0, logit_bias={3: 4.0}, min_tokens=3, stop_token_ids=(9,), seed=2),
    ],
)
def test_the_same_tokens_are_drawn_as_on_the_cpu(params) -> None:
    logits = 3 * torch.randn(32, 32_003, generator=torch.Generator().manual_seed(8))
    rows = [SampleRow(params, position, output_len=1) for position in range(32)]
    assert launch_sample(logits, rows).token_ids.tolist() == launch_sample(logits.to(CUDA), rows).token_ids.tolist()


def test_decode_steps_do_not_wait_for_the_device(folder) -> None:
    """torch's own guard: a step's launch that synchronizes raises. Steps are read one late, by their event."""
    engine, _ = _core(folder, cuda_graphs=False)
    for i in range(4):
        params = SamplingParams(temperature=0.9, top_p=0.9, max_tokens=40, seed=i)
        engine.submit(EngineRequest(Attempt(f"r{i}", 0), list(range(2, 30 + i)), 28 + i, params, b"root"))
    for _ in range(6):
        engine.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            assert not engine.step().failed
    finally:
        torch.cuda.set_sync_debug_mode("default")
        engine.close()


class Listener:
    """Reads each announced page on another stream at once, as an agent would."""

    def __init__(self) -> None:
        self.pool: torch.Tensor | None = None
        self.seen: dict[tuple[int, int], torch.Tensor] = {}
        self.stream = torch.cuda.Stream()

    def offered(self, attempt, tokens) -> None: ...

    def produced(self, attempt, layer_start, layer_end, page_start, page_ids, generations) -> None:
        assert self.pool is not None
        with torch.cuda.stream(self.stream):
            for layer in range(layer_start, layer_end):
                for page in page_ids:
                    self.seen[layer, page] = self.pool[layer, page].cpu()


def test_announced_pages_hold_their_final_bytes(folder) -> None:
    listener = Listener()
    engine, pool = _core(folder, cuda_graphs=False, listener=listener)
    listener.pool = pool.tensor
    prompt = [random.Random(1).randrange(2, 500) for _ in range(900)]
    params = SamplingParams(temperature=0.0, max_tokens=4)
    engine.submit(EngineRequest(Attempt("offer", 0), prompt, len(prompt), params, b"root", Stage.OFFER))
    rows = []
    while not rows:
        rows = engine.step().rows
    assert len(listener.seen) == 3 * -(-900 // 16)
    for (layer, page), seen in listener.seen.items():
        used = 16 if page != max(p for _, p in listener.seen) else 900 % 16
        assert torch.equal(seen[:, :used], pool.tensor[layer, page].cpu()[:, :used])
    engine.close()


def _core(folder, cuda_graphs: bool, listener=None) -> tuple[EngineCore, KvPool]:
    runner = TorchModelRunner.load(folder, device="cuda")
    pool = KvPool(runner.layout, 400, device="cuda", spare=1)
    engine = EngineCore(runner, pool, EngineConfig(max_running=8), listener)
    if cuda_graphs:
        runner.capture(sizes_up_to(8), lambda done, total: None)
    return engine, pool


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_greedy_tokens_are_those_of_transformers(folder, cuda_graphs) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(CUDA).eval()
    chance = random.Random(4)
    prompts = [[chance.randrange(3, 500) for _ in range(length)] for length in (3, 17, 200, 64, 33)]
    with Engine(folder, device="cuda", kv_memory_bytes=64 << 20, cuda_graphs=cuda_graphs) as engine:
        results = engine.generate(prompts, {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True})
    for prompt, result in zip(prompts, results, strict=True):
        tokens = torch.tensor([prompt + result["output_ids"]], device=CUDA)
        with torch.inference_mode():
            logits = reference(tokens).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, tokens[0, len(prompt) :, None])[:, 0]
        # In bfloat16 two likeliest tokens may change places: each must be the reference's choice within rounding.
        assert (logits.amax(-1) - chosen).max() < 0.15


def test_the_pool_takes_what_memory_fraction_leaves(folder) -> None:
    free, total = torch.cuda.mem_get_info()
    fraction = (total - free) / total + 0.1
    with Engine(folder, device="cuda", memory_fraction=fraction, cuda_graphs=False) as engine:
        assert engine.generate([5, 6, 7], {"max_new_tokens": 4, "ignore_eos": True})["output_ids"]
        left, _ = torch.cuda.mem_get_info()
    assert total - left <= fraction * total + (1 << 30)


def test_on_the_device_a_model_is_that_of_the_cpu(folder) -> None:
    """Whole model, float32, torch attention: only the order of sums differs."""
    models = [PagedModel(TorchModelRunner.load(folder, dtype="float32", backend="torch"))]
    here = models[0].step([(Row(list(range(2, 40))), 38)])
    runner = TorchModelRunner.load(folder, dtype="float32", device="cuda")
    pool = torch.zeros(3, 20, 2, 16, 2, 64, device=CUDA)
    runner.bind_pool(pool)
    batch = make_batch([(list(range(2, 40)), 0, [2, 3, 4])], 16, False)
    there = runner.forward(replace(batch, **{name: getattr(batch, name).to(CUDA) for name in _TENSORS}))
    torch.testing.assert_close(here, there.cpu(), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(("kind", "group", "lowest", "zero"), [case[:4] for case in CASES])
@torch.inference_mode()
def test_products_of_few_bits_are_those_of_the_stand_ins(kind: str, group: int, lowest: bool, zero: int) -> None:
    """Of the same rows, within what sums in another order and results in bfloat16 differ by."""
    weight, can = weight_of(kind, group, lowest, zero), arithmetic(CUDA)
    there = quantized.keeper(can, CUDA)(weight, None)
    if there is None:
        pytest.skip(f"this GPU has no such product: {can}")
    with gpu_products():
        here = quantized.keeper(can, torch.device("cpu"))(weight, None)
        for rows in (1, 3, 16, 257):
            x = torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(rows)).bfloat16()
            expected = here(x).float()
            allowed = 0.02 * expected.square().mean().sqrt().item()
            torch.testing.assert_close(there(x.to(CUDA)).float().cpu(), expected, atol=allowed, rtol=0.02)


@torch.inference_mode()
def test_experts_of_8_bit_floats_are_those_of_the_stand_ins() -> None:
    can = arithmetic(CUDA)
    weights = [to_float8(torch.randn(64, 128, generator=torch.Generator().manual_seed(i))) for i in range(8)]
    there = quantized.experts_keeper(can, CUDA)(weights, None)
    if there is None:
        pytest.skip(f"this GPU has no such product: {can}")
    x, counts = torch.randn(90, 128).bfloat16(), torch.tensor([4, 0, 60, 1, 0, 0, 25, 0])
    with gpu_products():
        expected = quantized.experts_keeper(can, torch.device("cpu"))(weights, None)(x, counts).float()
    made = there(x.to(CUDA), counts.to(CUDA)).float().cpu()
    torch.testing.assert_close(made, expected, atol=0.02 * expected.square().mean().sqrt().item(), rtol=0.02)


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_quantized_at_load(folder, quantization: str, cuda_graphs: bool) -> None:
    """Greedy tokens are likely ones of the model that is not quantized."""
    prompt = [random.Random(6).randrange(3, 500) for _ in range(40)]
    params = {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True}
    with Engine(
        folder, device="cuda", kv_memory_bytes=64 << 20, cuda_graphs=cuda_graphs, quantization=quantization
    ) as engine:
        answer = engine.generate([prompt], params)[0]["output_ids"]
    model = PagedModel(TorchModelRunner.load(folder, dtype="float32", backend="torch"))
    tokens = prompt + answer
    logits = model.step([(Row(tokens), len(tokens))], all_logits=True)[len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    assert ((logits.amax(-1) - chosen) / logits.std(-1)).mean() < 1
