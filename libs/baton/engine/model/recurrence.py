"""A recurrence along the tokens of each row, however many tokens each row of a step has.

What layers do that keep a state: rows with one new token go together, a step of the recurrence for all of them; several
tokens of a row go in chunks, each of which a mixer does as a few matrix products.

    T  tokens of all rows    R  rows    H  heads    L  tokens of a chunk
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol, TypeVar

import torch

from baton.engine.transfer import indices

CHUNK = 64


class Tokens(Protocol):
    """What a recurrence takes of each token."""

    def at(self: _Tokens, where: slice | torch.Tensor) -> _Tokens:
        """The same of some tokens only."""


_Tokens = TypeVar("_Tokens", bound=Tokens)
# Of tokens and a state: what comes out of the tokens, and the state after them.
Advance = Callable[[_Tokens, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def recur(
    tokens: _Tokens,
    state_R: torch.Tensor,
    q_lens: Sequence[int],
    out_T: torch.Tensor,
    one_each: Advance[_Tokens],
    chunk: Advance[_Tokens],
    chunk_tokens: int = CHUNK,
) -> None:
    """Fill `out_T`, and bring `state_R` from before each row's tokens to after them.

    `one_each` gets a token of each of some rows and their states, `chunk` up to `chunk_tokens` of a row and its state.
    """
    starts = list(accumulate(q_lens, initial=0))
    singles = [row for row, q_len in enumerate(q_lens) if q_len == 1]
    if singles:
        at, of = indices([starts[row] for row in singles], out_T.device), indices(singles, out_T.device)
        out_T[at], state_R[of] = one_each(tokens.at(at), state_R[of])
    for row, q_len in enumerate(q_lens):
        for start in range(starts[row], starts[row] + q_len, chunk_tokens) if q_len > 1 else ():
            some = slice(start, min(start + chunk_tokens, starts[row] + q_len))
            out_T[some], state_R[row] = chunk(tokens.at(some), state_R[row])


def left_of(decay_LH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a chunk whose tokens each leave exp(decay) of a state: the logarithm of what is left after each token of what
    was there before the chunk, [H, L], and after token i of what token j brought, [H, i, j], 0 where that is later.
    Decays may have a third dimension, as both results have then."""
    total_HL = decay_LH.transpose(0, 1).cumsum(1)
    between_HLL = total_HL[:, :, None] - total_HL[:, None]
    tokens, device = len(decay_LH), decay_LH.device
    later = torch.ones((tokens, tokens), dtype=torch.bool, device=device).triu(1)
    later = later.view(tokens, tokens, *(1 for _ in decay_LH.shape[2:]))
    return total_HL, between_HLL.masked_fill(later, float("-inf")).exp()
