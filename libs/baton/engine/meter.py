"""How fast this engine is, smoothed, for the router's predictions."""

from __future__ import annotations

_WEIGHT = 0.1  # of the newest step


class LoadMeter:
    """Exponentially weighted measures of past steps. O(1) to update and to read; 0 until something was measured.

    The extend rate is smoothed tokens over smoothed seconds, so that a last chunk of three tokens does not count like
    a full one. Decode rows that share the step slow it, as they will slow the next prompt.
    """

    def __init__(self) -> None:
        self._extend_tokens = 0.0
        self._extend_s = 0.0
        self._decode_step_s = 0.0

    @property
    def extend_tokens_per_s(self) -> float:
        return self._extend_tokens / self._extend_s if self._extend_s > 0 else 0.0

    @property
    def decode_step_s(self) -> float:
        """Duration of a step that decodes, prompts in the same step included: the time between tokens of a stream."""
        return self._decode_step_s

    def observe(self, extend_tokens: int, decode_rows: int, duration_s: float) -> None:
        if extend_tokens:
            self._extend_tokens += _WEIGHT * (extend_tokens - self._extend_tokens)
            self._extend_s += _WEIGHT * (duration_s - self._extend_s)
        if decode_rows:
            first = self._decode_step_s == 0.0
            self._decode_step_s += (1.0 if first else _WEIGHT) * (duration_s - self._decode_step_s)
