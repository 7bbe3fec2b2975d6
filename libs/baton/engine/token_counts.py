"""How often a request has emitted each token, and which tokens its prompt holds: what penalties are computed from.

Made once, when the request first draws, and then kept up to date where the drawing happens, so that no step walks the
context, and a token that the host has not seen yet counts already for the next draw.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from baton.core.sampling import SamplingParams
from baton.engine.transfer import to_device

CPU = torch.device("cpu")


class TokenCounts:
    """Of one request, over a vocabulary of V. `emitted`: float32 [V]. `seen`: bool [V], in the prompt or emitted.

    Changed by one thread at a time: the one that draws.
    """

    __slots__ = ("emitted", "seen")

    def __init__(
        self,
        prompt_ids: npt.ArrayLike,
        output_ids: npt.ArrayLike,
        vocab_size: int,
        device: torch.device = CPU,
    ) -> None:
        emitted = np.bincount(np.asarray(output_ids, dtype=np.int64), minlength=vocab_size)
        seen = emitted > 0
        seen[np.asarray(prompt_ids, dtype=np.int64)] = True
        self.emitted = to_device(torch.from_numpy(emitted.astype(np.float32)), device)
        self.seen = to_device(torch.from_numpy(seen), device)

    def add(self, token_id: torch.Tensor) -> None:
        """Count one more output token: int64 [1], never read on the host."""
        self.emitted.index_add_(0, token_id, torch.ones_like(token_id, dtype=torch.float32))
        self.seen.index_fill_(0, token_id, True)

    def penalize(self, logits_V: torch.Tensor, params: SamplingParams) -> None:
        """Apply repetition, frequency and presence penalties in place."""
        penalty = params.repetition_penalty
        if penalty != 1.0:
            less = torch.where(logits_V < 0, logits_V * penalty, logits_V / penalty)
            torch.where(self.seen, less, logits_V, out=logits_V)
        if params.frequency_penalty or params.presence_penalty:
            logits_V -= params.frequency_penalty * self.emitted + params.presence_penalty * (self.emitted > 0)


def penalizes(params: SamplingParams) -> bool:
    """Whether a request with these parameters needs its tokens counted."""
    return params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
