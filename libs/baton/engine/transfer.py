"""Between host and device without waiting: what the engine sends up for a step, and brings down after it.

On a CPU host and device are one, and nothing is copied. On a GPU values go up from pinned memory in stream order, and
results come down into pinned memory that may be read once the step has ended; torch keeps pinned memory from being
used anew before its copies are done. Everything in a step that crosses over does so here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def staged(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values`, on the host, where `device` can copy them from without keeping the host; on a CPU they themselves."""
    return values.pin_memory() if device.type == "cuda" else values


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values`, on the host, as they are now, on `device`; on a CPU they themselves."""
    if device.type == "cpu":
        return values
    return staged(values, device).to(device, non_blocking=True)


def floats(values: Iterable[float], device: torch.device) -> torch.Tensor:
    """float32 [N] on `device`."""
    return to_device(torch.tensor(list(values), dtype=torch.float32), device)


def indices(values: Iterable[int], device: torch.device) -> torch.Tensor:
    """int64 [N] on `device`: token ids, or places in another tensor."""
    return to_device(torch.tensor(list(values), dtype=torch.int64), device)


def to_host(values: torch.Tensor) -> torch.Tensor:
    """A host tensor that holds `values` when all work launched up to now is done; on a CPU they themselves.

    Wait for that work (baton.engine.lane) before reading it.
    """
    if values.device.type == "cpu":
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.device.type == "cuda")
    return host.copy_(values, non_blocking=True)
