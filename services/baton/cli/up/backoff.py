"""How long to wait before a child is started again. Pure: it is told how long the child ran."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Delays that double from `first_s` to `most_s`, and begin anew after a run of at least `stable_s`."""

    first_s: float = 0.2
    most_s: float = 10.0
    stable_s: float = 10.0
    _next_s: float = 0.0

    def delay_s(self, ran_s: float) -> float:
        """The wait after a run of `ran_s` seconds."""
        if ran_s >= self.stable_s or self._next_s == 0.0:
            self._next_s = self.first_s
        delay = self._next_s
        self._next_s = min(self.most_s, 2 * delay)
        return delay
