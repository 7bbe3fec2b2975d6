"""What a span costs: while tracing is off, for a request that is not sampled, and for one that is."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from baton.router.policy import Placement
from baton.router.traces import RequestTrace
from baton.runtime import tracing
from baton.runtime.tracing_otel import OtelTracer

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PLACEMENT = Placement("prefill-0", "decode-0", "pair", 0.01, 100, 0.01)


def one_span() -> None:
    tracing.start("worker.prefill", PARENT).end()


def one_request_in_the_router() -> None:
    """Four spans and an event: the whole of what the router adds for a request."""
    trace = RequestTrace("r", "m", 100, PARENT)
    trace.placed(0, PLACEMENT)
    _ = trace.traceparent
    trace.first_token()
    trace.over("stop", 100)


def nanoseconds(work: Callable[[], None], rounds: int) -> float:
    """Median of nine runs, per call."""
    runs = []
    for _ in range(9):
        started = time.perf_counter_ns()
        for _ in range(rounds):
            work()
        runs.append((time.perf_counter_ns() - started) / rounds)
    return statistics.median(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="calls per run")
    rounds = parser.parse_args().rounds
    modes: dict[str, Sampler | None] = {"off": None, "not sampled": ALWAYS_OFF, "sampled": ALWAYS_ON}
    print(f"{'tracing':12} {'one span':>12} {'a request in the router':>24}")
    for name, sampler in modes.items():
        provider = TracerProvider(sampler=sampler) if sampler is not None else None
        tracing.install(OtelTracer(provider.get_tracer("bench")) if provider is not None else None)
        figures = [nanoseconds(work, rounds) / 1000 for work in (one_span, one_request_in_the_router)]
        print(f"{name:12} {figures[0]:9.2f} us {figures[1]:21.2f} us")


if __name__ == "__main__":
    main()
