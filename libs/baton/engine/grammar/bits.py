"""Masks on the device: packed bits, copied once per step, bar tokens from logits without the host waiting.

A mask has 32 tokens per int32 word; token t's bit is `word[t // 32] >> (t % 32) & 1`.
"""

from __future__ import annotations

import math

import numpy as np
import torch


def bar_unset(logits_NV: torch.Tensor, rows_M: torch.Tensor, bits_MW: torch.Tensor) -> None:
    """Set logits of rows `rows_M`, int64, to -inf where their bits are not set. In place; all on one device."""
    barred_MV = unpack(~bits_MW, logits_NV.shape[1])
    if logits_NV.device.type == "cpu":  # where rows are in place, nothing is copied
        for row, barred_V in zip(rows_M.tolist(), barred_MV, strict=True):
            logits_NV[row].masked_fill_(barred_V, -math.inf)
        return
    logits_NV.index_copy_(0, rows_M, logits_NV.index_select(0, rows_M).masked_fill_(barred_MV, -math.inf))


def unpack(bits_MW: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """bool [M, V] of int32 [M, W]."""
    if bits_MW.device.type == "cpu":  # several times faster than torch's shifts
        packed = bits_MW.numpy().view(np.uint8)
        unpacked = np.unpackbits(packed, axis=1, count=vocab_size, bitorder="little")
        return torch.from_numpy(unpacked.view(np.bool_))
    shifts = torch.arange(8, device=bits_MW.device, dtype=torch.uint8)
    return (bits_MW.view(torch.uint8)[:, :, None] >> shifts & 1).bool().flatten(1)[:, :vocab_size]
