"""What the machine could do: measured memory bandwidth and matrix speed, and the least time that a case can take.

A step must read all weights and its context's KV once, and do the multiplications; whatever takes longer is its
bound. Shared contexts count once. Caches can beat the bandwidth figure where a layer's KV fits in them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

from models import Model

_MEASURE = """
import json, sys, time, torch
threads, quick = int(sys.argv[1]), sys.argv[2] == "quick"
torch.set_num_threads(threads)
def best(work, repeats):
    times = []
    for _ in range(repeats):
        started = time.perf_counter(); work(); times.append(time.perf_counter() - started)
    return min(times)
data = torch.ones((64 if quick else 512) * 2**18)
size, width = (256, 1024) if quick else (1024, 4096)
x, w = torch.randn(size, width).bfloat16(), torch.randn(width, width).bfloat16()
with torch.inference_mode():
    read = data.nbytes / best(lambda: data.sum(), 7)
    linear = torch.nn.functional.linear
    flops = 2 * size * width * width / best(lambda: linear(x, w), 7)
print(json.dumps({"read_bytes_per_s": read, "flops_per_s": flops}))
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """Best of 7 on the cores at hand: reading fp32 once, and a bf16 product of 1,024 x 4,096 x 4,096."""

    read_bytes_per_s: float
    flops_per_s: float


def measure(threads: int, *, quick: bool = False) -> Machine:
    command = [sys.executable, "-c", _MEASURE, str(threads), "quick" if quick else "full"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Machine(**json.loads(said))


def prefill_s(machine: Machine, model: Model, tokens: int) -> float:
    """The head is computed for the last token alone; token t attends to t tokens."""
    linear = 2 * (model.layers * model.layer_weights * tokens + model.hidden * model.vocab)
    attention = 2 * model.layers * model.heads * model.head_dim * tokens * tokens
    return max((linear + attention) / machine.flops_per_s, 2 * model.weights / machine.read_bytes_per_s)


def decode_s(machine: Machine, model: Model, batch: int, context: int, *, shared: bool) -> float:
    """One step: one token for each of `batch` rows."""
    kv_bytes = (1 if shared else batch) * context * model.kv_token_bytes
    flops = batch * (2 * model.weights + 4 * model.layers * model.heads * model.head_dim * context)
    return max((2 * model.weights + kv_bytes) / machine.read_bytes_per_s, flops / machine.flops_per_s)


def mixed_s(machine: Machine, model: Model, requests: int, input_tokens: int, output_tokens: int) -> float:
    """All prompts, then all rows together."""
    mean_context = input_tokens + output_tokens // 2
    step = decode_s(machine, model, requests, mean_context, shared=False)
    return requests * prefill_s(machine, model, input_tokens) + (output_tokens - 1) * step
