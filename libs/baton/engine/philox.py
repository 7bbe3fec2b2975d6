"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A pure function of (key, counter): no state to carry along with a request, and the same numbers on any device and in
any batch. Sampling is its one user.
"""

from __future__ import annotations

import torch

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], key: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four random 32-bit words per element. All tensors are int64 that hold uint32, and broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A product wraps around int64, but its 64 bits are those of the unsigned product.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & _WORD, (product1 >> 32) & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & _WORD, high0 ^ c3 ^ k1, product0 & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def gumbel(seeds_R: torch.Tensor, positions_R: torch.Tensor, stream: int, count: int) -> torch.Tensor:
    """Standard Gumbel noise, float64 [R, count]: a function of each row's 64-bit seed (as int64) and position.

    Different streams of one seed and position are independent. Values lie between -3.2 and 22.9.
    """
    seeds_R1, positions_R1 = seeds_R[:, None], positions_R[:, None]
    blocks_RN = torch.arange(-(-count // 4), device=seeds_R.device).expand(len(seeds_R), -1)
    counter = (blocks_RN, torch.full_like(seeds_R1, stream), positions_R1 & _WORD, positions_R1 >> 32)
    words = philox(counter, (seeds_R1 & _WORD, (seeds_R1 >> 32) & _WORD))
    uniform = (torch.stack(words, dim=-1).flatten(1)[:, :count].double() + 0.5) / 2.0**32
    return -torch.log(-torch.log(uniform))
