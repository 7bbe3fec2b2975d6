"""The figures of one handoff, in words."""

from __future__ import annotations

from baton.cli.trace_handoff.timeline import Trace

_QUIET_MARKS = ("opened",)  # of no interest after the last layer


def text(trace: Trace) -> str:
    chunks = len({bar.page_start for bar in trace.computed if not bar.cached})
    cached = sum(bar.pages for bar in trace.computed if bar.cached)
    held = f", {cached} pages were cached" if cached else ""
    mean_s = sum(read.arrived_s - read.started_s for read in trace.reads) / max(1, len(trace.reads))
    rate = f"{trace.bytes_per_s / 1e6:,.0f} MB/s while bytes moved"
    way = f"{trace.prefill_worker} -> {trace.decode_worker} ({trace.transport})"
    lines = [
        f"{trace.tokens:,} tokens of {trace.model}: {way}",
        f"  computed   {trace.layers} layers x {chunks} chunks in {_ms(trace.computed_s)}{held}",
        f"  moved      {trace.bytes / 1e6:,.1f} MB in {len(trace.reads)} reads of {_ms(mean_s)}, {rate}",
        f"  hidden     {trace.hidden_share:.1%}: of {_ms(trace.hidden_s + trace.tail_s)} that the handoff took, "
        f"{_ms(trace.hidden_s)} passed before prefill had the first token",
        f"  tail       {_ms(trace.tail_s)} from then to verified pages. After the last layer:",
        *(f"    +{after * 1e3:7.2f} ms  {name}" for name, after in trace.last_steps() if name not in _QUIET_MARKS),
        f"  clocks     {clocks(trace)}",
    ]
    return "\n".join(lines)


def clocks(trace: Trace) -> str:
    """How far times of different processes can be compared."""
    if not trace.clock_error_s:
        return "all processes are on one host and read one clock"
    return f"of different hosts, brought together by question and answer: +-{_ms(trace.clock_error_s)}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms" if seconds < 0.1 else f"{seconds * 1e3:,.0f} ms"
