"""What checksums of KV pages cost: against copying the pages, and against computing them.

python benchmarks/checksum.py [--tokens 1024] [--rounds 7]

CPU time of one thread, A and B in turns, medians: what other processes do hardly counts. `computing` is the prefill of
an 85 M Llama (12 layers, 768 wide, bf16) on one core; a page is summed once by each side of a handoff. Exposed is the
last layer's share alone: the other layers are summed while later ones are computed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from baton.core.layout import RESERVED_PAGES, KvLayout
from baton.core.sampling import SamplingParams
from baton.engine.inprocess import Engine
from baton.kv.checksum import pages_checksum
from baton.kv.memory import PoolMemory
from baton.testing.checkpoints import make_checkpoint

PAGE_KIB = (8, 32, 64, 256)
POOL_BYTES = 64 << 20  # larger than the caches: pages come from memory, as in a handoff
LAYERS, HIDDEN, HEADS = 12, 768, 12
KV_BYTES_PER_TOKEN = LAYERS * 2 * HIDDEN * 2
SIDES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="length of the prompt that is computed")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(f"{'page':>8}  {'xxh3 GB/s':>9}  {'memcpy GB/s':>11}  ratio")
    rates = {}
    for kib in PAGE_KIB:
        rates[kib], copying = speeds(kib, options.rounds)
        print(f"{kib:>4} KiB  {rates[kib]:9.1f}  {copying:11.1f}  {rates[kib] / copying:.2f}")
    per_token_s = compute_s(options.tokens, options.rounds) / options.tokens
    sum_s = SIDES * KV_BYTES_PER_TOKEN / (rates[32] * 1e9)
    share = 100 * sum_s / per_token_s
    print(f"computing a token: {per_token_s * 1e6:.0f} us; summing its {KV_BYTES_PER_TOKEN >> 10} KiB on both sides:")
    print(f"  {sum_s * 1e6:.1f} us, {share:.2f} % of that; exposed: {share / LAYERS:.3f} %")


def speeds(kib: int, rounds: int) -> tuple[float, float]:
    """GB per CPU second of summing and of copying all pages of a pool, scattered."""
    layout = KvLayout("m", "bfloat16", 16, page_size=16, kv_heads=8, head_dim=kib * 1024 // (2 * 16 * 8 * 2))
    pages = POOL_BYTES // layout.layers // layout.page_bytes + RESERVED_PAGES
    pool = PoolMemory.create(layout, pages)
    rng = np.random.default_rng(0)
    content = np.frombuffer(pool.buffer, np.uint64)
    content[:] = rng.integers(0, 1 << 63, len(content), np.uint64)
    order = rng.permutation(np.arange(RESERVED_PAGES, pages))
    target = bytearray(layout.page_bytes * len(order))

    def copy() -> None:
        for layer in range(layout.layers):
            for index, page in enumerate(order.tolist()):
                start = index * layout.page_bytes
                target[start : start + layout.page_bytes] = pool.page(layer, page)

    summing, copying = alternate(lambda: pages_checksum(pool, 0, layout.layers, 0, order.tolist()), copy, rounds)
    size = layout.layers * len(order) * layout.page_bytes
    return size / summing / 1e9, size / copying / 1e9


def alternate(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Medians of the CPU seconds of both, run in turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for work, times in zip((one, other), taken, strict=True):
            before = time.thread_time()
            work()
            times.append(time.thread_time() - before)
    return statistics.median(taken[0]), statistics.median(taken[1])


def compute_s(tokens: int, rounds: int) -> float:
    """CPU seconds of the prefill of `tokens` tokens, by one thread."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(
            Path(folder) / "m", "llama", layers=LAYERS, hidden=HIDDEN, heads=HEADS, kv_heads=HEADS, vocab=4096,
            dtype="bfloat16", max_position=8192,
        )  # fmt: skip
        engine = Engine(str(checkpoint))
        rng = np.random.default_rng(1)
        taken = []
        for _ in range(rounds):
            prompt = rng.integers(10, 4000, tokens).tolist()
            before = time.process_time()
            engine.generate(prompt, SamplingParams(max_tokens=1))
            taken.append(time.process_time() - before)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
