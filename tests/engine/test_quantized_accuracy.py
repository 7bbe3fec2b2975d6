"""The bundled model with weights of fewer bits: how far its logits are from the exact ones, and what it answers.

A trained model says what to expect of others; the bounds, about twice what is measured, guard regressions.
benchmarks/engine/quantization.py measures more.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from paged_rows import PagedModel, Row
from tokenizers import Tokenizer
from torch_gpu_double import gpu_products

from baton.engine import products
from baton.engine.cuda.support import Arithmetic
from baton.engine.runner import TorchModelRunner
from baton.models import TINY, bundled
from baton.models.gguf.folder import checkpoint_folder
from baton.testing import gguf_files, quantized_formats
from baton.testing.gguf_files import Kind
from baton.testing.quantized_formats import FORMATS

torch.set_num_threads(1)
ASKED = (
    "My name is John. What is my name?", "Repeat this: four red boxes and a lamp", "What is 17 + 25?",
    "Spell the word garden.", "The key is 4821. Tell me the key.", "Which of these is the largest: 41, 7, 230?",
)  # fmt: skip
ANSWER_TOKENS = 24
STORED = {
    "fp8 blocks": FORMATS["fp8 blocks"], "gptq 8 bit": FORMATS["gptq 8 bit"], "awq": FORMATS["awq"],
    "gptq 4 bit": quantized_formats.gptq(4, 64, symmetric=True), "nf4": FORMATS["bitsandbytes nf4, double"],
    "nvfp4": FORMATS["compressed nvfp4"], "mxfp4": FORMATS["compressed mxfp4"],
}  # fmt: skip
GGUF = {"Q8_0": lambda name, columns: Kind.Q8_0, "Q4_0": lambda name, columns: Kind.Q4_0, "Q4_K_M": gguf_files.q4_k_m}


def prompts() -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(bundled(TINY) / "tokenizer.json"))
    return [tokenizer.encode(f"<|user|>{text}<|end|><|assistant|>").ids for text in ASKED]


def answers(model: PagedModel) -> list[list[int]]:
    return [model.greedy(Row(list(prompt)), ANSWER_TOKENS) for prompt in prompts()]


@pytest.fixture(scope="module")
def exact() -> tuple[list[list[int]], torch.Tensor]:
    """What the float32 model answers, and its logits on the way."""
    model = PagedModel(TorchModelRunner.load(bundled(TINY), dtype="float32", backend="torch"))
    said = answers(model)
    return said, logits(model, said)


def logits(model: PagedModel, said: list[list[int]]) -> torch.Tensor:
    """At all tokens of answers."""
    found = []
    for prompt, answer in zip(prompts(), said, strict=True):
        tokens = prompt + answer
        found.append(model.step([(Row(tokens), len(tokens))], all_logits=True)[len(prompt) - 1 :])
    return torch.cat(found)


def made(way: str, folder: Path) -> tuple[Path, str]:
    """A folder and what to do at load."""
    if way in STORED:
        quantized_formats.requantize(bundled(TINY), folder / "stored", STORED[way])
        return folder / "stored", "none"
    if way in GGUF:
        gguf_files.write(bundled(TINY), folder / "tiny.gguf", GGUF[way], blocks=gguf_files.nearest_blocks)
        (folder / "tokenizer.json").write_bytes((bundled(TINY) / "tokenizer.json").read_bytes())
        return checkpoint_folder(folder / "tiny.gguf", folder / "cache"), "none"
    return bundled(TINY), way


# Mean divergence in nats; shares of tokens that stay the likeliest, and of answers before the first other token.
@pytest.mark.parametrize(
    ("way", "divergence", "same", "greedy"),
    [
        ("none", 3e-4, 0.97, 0.85), ("int8", 7e-4, 0.97, 0.9), ("fp8", 0.008, 0.95, 0.65), ("int4", 0.045, 0.86, 0.5),
        ("fp8 blocks", 0.003, 0.96, 0.85), ("gptq 8 bit", 1.2e-3, 0.97, 0.85), ("awq", 0.09, 0.85, 0.45),
        ("gptq 4 bit", 0.06, 0.93, 0.6), ("nf4", 0.04, 0.93, 0.5), ("nvfp4", 0.07, 0.85, 0.4),
        ("mxfp4", 0.1, 0.88, 0.35), ("Q8_0", 6e-4, 0.96, 0.75), ("Q4_0", 0.09, 0.9, 0.5), ("Q4_K_M", 0.015, 0.94, 0.7),
    ],
)  # fmt: skip
def test_accuracy(tmp_path, exact, way: str, divergence: float, same: float, greedy: float) -> None:
    folder, quantization = made(way, tmp_path)
    model = PagedModel(TorchModelRunner.load(folder, quantization=quantization))
    said, wanted = exact
    ours, theirs = logits(model, said).double().log_softmax(-1), wanted.double().log_softmax(-1)
    found_divergence = _divergence(ours, theirs)
    found_same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    kept = sum(_before_the_first_other(mine, other) for mine, other in zip(answers(model), said, strict=True))
    found_greedy = kept / (len(ASKED) * ANSWER_TOKENS)
    print(f"{way}: {found_divergence:.2g} nats, same {found_same:.3f}, greedy {found_greedy:.3f}")
    assert found_divergence < divergence
    assert found_same > same
    assert found_greedy > greedy


@pytest.mark.parametrize(("quantization", "divergence"), [("fp8", 0.015), ("int4", 0.045)])
def test_as_a_gpu_multiplies(exact, monkeypatch: pytest.MonkeyPatch, quantization: str, divergence: float) -> None:
    """8-bit floats cost twice a CPU's, as rows have 8 bits, too."""
    device, can = torch.device("cpu"), Arithmetic.of((9, 0), "13.0")
    monkeypatch.setattr(products, "plain", lambda quantization: products.on_gpu(can, quantization, device))
    said, wanted = exact
    with gpu_products():
        model = PagedModel(TorchModelRunner.load(bundled(TINY), backend="torch", quantization=quantization))
        ours = logits(model, said)
    assert _divergence(ours.double().log_softmax(-1), wanted.double().log_softmax(-1)) < divergence


def _divergence(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (theirs.exp() * (theirs - ours)).sum(-1).mean().item()


def _before_the_first_other(mine: list[int], other: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b), len(mine))
