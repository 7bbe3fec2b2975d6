"""How much of a prefix is worth bringing from slower memory than it would be to compute it.

The same rule for the worker, which decides, and for the router, which must know what it will decide.
"""

from __future__ import annotations

from collections.abc import Sequence


def worth_restoring(parts: Sequence[tuple[int, float]], tokens_per_s: float) -> tuple[int, float]:
    """`parts`: (tokens, seconds to bring them) in order. How many leading parts to bring, and their seconds together:
    so that bringing them and computing the others takes least. Computing wins a draw.

    `tokens_per_s` is the speed of computing; while it is unknown (0), everything is brought.
    """
    if not tokens_per_s:
        return len(parts), sum(seconds for _, seconds in parts)
    chosen, chosen_s = 0, 0.0
    spent_s = saved_s = most_s = 0.0
    for count, (tokens, seconds) in enumerate(parts, 1):
        spent_s += seconds
        saved_s += tokens / tokens_per_s
        if saved_s - spent_s > most_s:
            chosen, chosen_s, most_s = count, spent_s, saved_s - spent_s
    return chosen, chosen_s
