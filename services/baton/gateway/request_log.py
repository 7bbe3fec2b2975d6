"""Which requests get a line in the log, and how much it tells: the setting `log_requests`.

Never the text of a prompt or an answer; where that is wanted, there is the audit log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baton.gateway.generation import Choice

NONE, ERRORS, ALL, DETAIL = LEVELS = ("none", "errors", "all", "detail")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens")


def gets_line(level: str, status: int) -> bool:
    """`status` 0: the client left before it was answered."""
    return level in (ALL, DETAIL) or (level == ERRORS and not 0 < status < 400)


def details(choices: Sequence[Choice], started: float) -> dict[str, Any]:
    """What `detail` adds: how was sampled, how each choice ended, when its first token came, and who served it."""
    sampling = choices[0].sampling
    return {
        "sampling": {name: getattr(sampling, name) for name in _SAMPLING},
        "structure": sampling.structure.kind if sampling.structure is not None else None,
        "choices": [
            {
                "tokens": choice.completion_tokens,
                "finish": choice.finish,
                "first_token_s": None if choice.first_token_at is None else round(choice.first_token_at - started, 4),
                "prefill": choice.served.prefill_worker,
                "decode": choice.served.decode_worker,
                "attempts": choice.served.attempts if choice.is_reported else None,
            }
            for choice in choices
        ],
    }
