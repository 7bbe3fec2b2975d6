"""What happened to one request, as the client saw it, and the log that collects it while the load runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True)
class Outcome:
    """Times in seconds since the load began. `error` is empty for a request that was answered whole, else its kind.

    `arrivals_s` has one entry per piece that carried output; servers send one token in each, mostly.
    """

    due_s: float
    sent_s: float
    turn: int = 0
    arrivals_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int | None = None  # None: the server does not say
    output_tokens: int = 0
    text: str = ""
    error: str = ""
    detail: str = ""

    @property
    def ttft_s(self) -> float:
        return self.arrivals_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.arrivals_s[-1] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None for answers of one token."""
        if self.output_tokens < 2:
            return None
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """Times between neighbouring pieces."""
        gaps: list[float] = np.diff(self.arrivals_s).tolist()
        return gaps


@dataclass(slots=True)
class Log:
    """All outcomes of a run, in order of completion, and counters that a progress display reads."""

    planned: int
    outcomes: list[Outcome] = field(default_factory=list)
    running: int = 0
    pieces: int = 0
    failed: int = 0
    started_s: float = 0.0
    ended_s: float = 0.0
    cpu_s: float = 0.0  # of this process, while the load ran

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.failed += bool(outcome.error)

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.error]
