"""Parts of running models through `transformers`: masks as windows, and the self-check."""

from __future__ import annotations

import pytest
import torch
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from baton.core.errors import CheckpointError
from baton.core.layout import KvLayout
from baton.engine.attention import Chunks, Window
from baton.engine.batch import StepBatch
from baton.engine.model.through.masks import window_of
from baton.engine.model.through.selfcheck import Expected, check_self

CPU = torch.device("cpu")
PADDING = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("mask", "window"),
    [
        (causal_mask_function, None),
        (sliding_window_causal_mask_function(7), 7),
        (sliding_window_causal_mask_function(1), 1),
        (sliding_window_causal_mask_function(999), 999),
        (sliding_window_causal_mask_function(1000), None),
        (chunked_causal_mask_function(48, PADDING), Chunks(48)),
        (chunked_causal_mask_function(1, PADDING), 1),
    ],
)
def test_windows(mask, window: Window) -> None:
    assert window_of(mask, 1000, CPU) == window


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (bidirectional_mask_function, "see those that follow them"),
        (and_masks(causal_mask_function, lambda b, h, q, k: (q - k) % 2 == 0), "has gaps"),
        (and_masks(causal_mask_function, lambda b, h, q, k: k >= q // 2), "no known window"),
        (and_masks(causal_mask_function, lambda b, h, q, k: k > 3), "has gaps"),
    ],
)
def test_masks_that_are_no_window(mask, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        window_of(mask, 1000, CPU)


VOCAB = 47


class Sums:
    """A model whose logits hang on the sum of all tokens so far, which it keeps in pages; and what may go wrong."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.cache: dict[int, int] = {}

    def own(self, tokens: list[int]) -> torch.Tensor:
        return torch.stack([self.logits(sum(tokens[: end + 1])) for end in range(len(tokens))])

    def logits(self, total: int) -> torch.Tensor:
        return (torch.arange(VOCAB) * total % VOCAB).float()

    def forward(self, batch: StepBatch, on_layer: object = None) -> torch.Tensor:
        self.cache.update(zip(batch.slots.tolist(), batch.token_ids.tolist(), strict=True))
        found = []
        for row, (length, seq_len) in enumerate(zip(batch.q_lens_host, batch.seq_lens_host, strict=True)):
            for position in range(seq_len - length, seq_len):
                pages = batch.page_table[row].tolist()
                first = seq_len - length if self.fault == "pieces" else 0
                slots = [pages[at // 4] * 4 + at % 4 for at in range(first, position + 1)]
                total = sum(self.cache[slot] for slot in slots)
                total += {"companions": len(batch.q_lens_host) - 1, "attention": 1}.get(self.fault, 0)
                found.append(self.logits(total))
        return torch.stack(found)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("attention", "does not compute the same with Baton's attention"),
        ("pieces", "hangs on those before it by more than their keys and values"),
        ("companions", "hangs on what else is in its batch"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_self_check_names_what_is_wrong(fault: str, reason: str, dtype: str) -> None:
    layout, right, exact = KvLayout("check", dtype, 1, 4, 1, 1), Sums(), dtype == "float32"
    expected = Expected.of(right.own, VOCAB, 1000)
    check_self(right.forward, expected, layout, CPU, exact)
    with pytest.raises(CheckpointError, match=reason):
        check_self(Sums(fault).forward, expected, layout, CPU, exact)
