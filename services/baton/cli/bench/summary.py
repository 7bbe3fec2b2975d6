"""Figures of a run: percentiles, throughput, goodput, cache hits, errors by kind, and what the client itself cost.

    TTFT  from sending the request to its first piece of output      ITL  between neighbouring pieces, all requests
    TPOT  (last piece - first piece) / (output tokens - 1)           E2E  from sending to the last piece

Percentiles interpolate linearly between neighbouring values, as numpy does. Unfinished and failed requests are in
none of them; they lower throughput and goodput.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from baton.cli.bench.outcome import Log, Outcome

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Slo:
    """What a good request is: first token within `ttft_ms`, mean time per further token within `itl_ms`."""

    ttft_ms: float | None = None
    itl_ms: float | None = None

    def __bool__(self) -> bool:
        return self.ttft_ms is not None or self.itl_ms is not None

    def met_by(self, outcome: Outcome) -> bool:
        if self.ttft_ms is not None and outcome.ttft_s * 1e3 > self.ttft_ms:
            return False
        return self.itl_ms is None or outcome.tpot_s is None or outcome.tpot_s * 1e3 <= self.itl_ms


def distribution(values_s: Iterable[float]) -> dict[str, float] | None:
    """Mean, percentiles and maximum in milliseconds; None when there is nothing to tell."""
    values = np.fromiter(values_s, dtype=np.float64) * 1e3
    if not len(values):
        return None
    at = np.percentile(values, PERCENTILES)
    percentiles = {f"p{name}": float(value) for name, value in zip(PERCENTILES, at, strict=True)}
    return {"mean": float(values.mean()), **percentiles, "max": float(values.max())}


def summarize(log: Log, slo: Slo) -> dict[str, Any]:
    """All figures of a run; latencies in milliseconds, rates per second."""
    answered = log.answered
    duration_s = max(log.ended_s - log.started_s, 1e-9)
    prompt_tokens = sum(outcome.prompt_tokens for outcome in answered)
    output_tokens = sum(outcome.output_tokens for outcome in answered)
    told = [outcome for outcome in answered if outcome.cached_tokens is not None]
    told_prompt_tokens = sum(outcome.prompt_tokens for outcome in told)
    good = sum(slo.met_by(outcome) for outcome in answered)
    return {
        "duration_s": duration_s,
        "requests": {
            "planned": log.planned,
            "sent": len(log.outcomes),
            "answered": len(answered),
            "errors": dict(Counter(outcome.error for outcome in log.outcomes if outcome.error)),
        },
        "tokens": {"prompt": prompt_tokens, "output": output_tokens},
        "throughput": {
            "requests_per_s": len(answered) / duration_s,
            "prompt_tokens_per_s": prompt_tokens / duration_s,
            "output_tokens_per_s": output_tokens / duration_s,
        },
        "latency_ms": {
            "ttft": distribution(outcome.ttft_s for outcome in answered),
            "itl": distribution(gap for outcome in answered for gap in outcome.itl_s),
            "tpot": distribution(tpot for outcome in answered if (tpot := outcome.tpot_s) is not None),
            "e2e": distribution(outcome.e2e_s for outcome in answered),
        },
        "cached_tokens_share": (
            sum(outcome.cached_tokens or 0 for outcome in told) / told_prompt_tokens if told_prompt_tokens else None
        ),
        "goodput": (
            {
                "slo_ttft_ms": slo.ttft_ms,
                "slo_itl_ms": slo.itl_ms,
                "good": good,
                "share_of_sent": good / max(1, len(log.outcomes)),
                "requests_per_s": good / duration_s,
            }
            if slo
            else None
        ),
        "client": {
            "lag_ms": distribution(outcome.sent_s - outcome.due_s for outcome in log.outcomes),
            "cpu_share": log.cpu_s / duration_s,
            "cpu_us_per_piece": log.cpu_s / log.pieces * 1e6 if log.pieces else None,
        },
    }
