"""One handoff on one time axis: what prefill computed when, what was read when, and what that comes to. Pure.

Times are seconds since prefill offered the request. An agent knows when a layer was finished, not when it was begun: a
layer's bar begins where the one before it ended, the first one's with the offer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from baton.client.timelines import HandoffTimeline
from baton.core.errors import HandoffFailed

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Computed:
    """Layers [layer_start, layer_end) of a chunk of pages. `cached`: they were there before, all layers at once."""

    layer_start: int
    layer_end: int
    page_start: int
    pages: int
    start_s: float
    end_s: float
    cached: bool


@dataclass(frozen=True, slots=True)
class Read:
    """One announcement and what became of it. `answered_s`: when the source heard that the bytes are verified."""

    seq: int
    layer_start: int
    layer_end: int
    page_start: int
    pages: int
    bytes: int
    announced_s: float
    heard_s: float
    started_s: float
    arrived_s: float
    verified_s: float
    answered_s: float


@dataclass(frozen=True, slots=True)
class Trace:
    """`marks`: moments by name, in order of time. `clock_error_s`: by how much the two agents' times may be apart."""

    request_id: str
    model: str
    tokens: int
    layers: int
    prefill_worker: str
    decode_worker: str
    transport: str
    computed: tuple[Computed, ...]
    reads: tuple[Read, ...]
    marks: dict[str, float]
    clock_error_s: float = 0.0

    @property
    def computed_s(self) -> float:
        """When the last layer of the last chunk was there."""
        return max((bar.end_s for bar in self.computed), default=0.0)

    @property
    def bytes(self) -> int:
        return sum(read.bytes for read in self.reads)

    @property
    def reading_s(self) -> float:
        """Time in which bytes moved."""
        return length(union((read.started_s, read.arrived_s) for read in self.reads))

    @property
    def bytes_per_s(self) -> float:
        """While bytes moved; 0 when none did."""
        return self.bytes / self.reading_s if self.reading_s > 0 else 0.0

    @property
    def committed_s(self) -> float:
        """When prefill had drawn the first token: before that, decode has nothing to go on with."""
        return self.marks["committed"]

    @property
    def tail_s(self) -> float:
        """From the first token at prefill to the moment from which decode may run."""
        return max(0.0, self.marks["verified"] - self.committed_s)

    @property
    def hidden_s(self) -> float:
        """Time of announcing, reading and verifying that passed while prefill was still computing."""
        spans = union((read.announced_s, read.verified_s) for read in self.reads)
        return length((start, min(end, self.committed_s)) for start, end in spans if start < self.committed_s)

    @property
    def hidden_share(self) -> float:
        """Of all the time that the handoff took for itself."""
        whole = self.hidden_s + self.tail_s
        return self.hidden_s / whole if whole > 0 else 1.0

    def last_steps(self) -> list[tuple[str, float]]:
        """What happened after the last layer was computed, in order, in seconds after it."""
        last = max(self.reads, key=lambda read: read.seq, default=None)
        steps = dict(self.marks)
        if last is not None:
            steps |= {
                "last announcement sent": last.announced_s,
                "heard": last.heard_s,
                "read begun": last.started_s,
                "bytes there": last.arrived_s,
                "checksums right": last.verified_s,
            }
        after = [(name, at - self.computed_s) for name, at in steps.items() if at >= self.computed_s]
        return sorted(after, key=lambda step: step[1])

    def document(self) -> dict[str, Any]:
        """For programs: everything, and the figures."""
        figures = {
            "computed_s": self.computed_s, "committed_s": self.committed_s, "bytes": self.bytes,
            "reading_s": self.reading_s, "bytes_per_s": self.bytes_per_s, "tail_s": self.tail_s,
            "hidden_share": self.hidden_share,
        }  # fmt: skip
        return {**asdict(self), "figures": figures}


def build(
    source: HandoffTimeline,
    reader: HandoffTimeline,
    client_at: Mapping[str, float],
    *,
    source_ahead_s: float = 0.0,
    reader_ahead_s: float = 0.0,
    clock_error_s: float = 0.0,
    **facts: Any,
) -> Trace:
    """Bring both sides and the client's own moments together. `..._ahead_s`: how far a clock is before the client's.

    Raises HandoffFailed when the handoff did not come to its end, or one side does not remember all of it.
    """
    if source.outcome != "released" or reader.outcome != "fetched":
        outcomes = f"at its source {source.outcome or 'unknown'}, at its reader {reader.outcome or 'unknown'}"
        raise HandoffFailed(f"the handoff did not come to its end: {outcomes}")
    if source.left_out or reader.left_out or len(source.reads) != len(reader.reads):
        raise HandoffFailed("the agents do not remember all of this handoff: its prompt is too long for a picture")
    zero = source.began_at - source_ahead_s
    at_source, at_reader = zero + source_ahead_s, zero + reader_ahead_s
    marks = {
        "opened": source.opened_at - at_source,
        "committed": source.committed_at - at_source,
        "record sent": source.recorded_at - at_source,
        "record there": reader.recorded_at - at_reader,
        **({"lease questioned": reader.questioned_at - at_reader} if reader.questioned_at else {}),
        "verified": reader.ended_at - at_reader,
        "released": source.ended_at - at_source,
        **{name: at - zero for name, at in client_at.items()},
    }
    return Trace(
        request_id=source.attempt.request_id,
        layers=source.layers,
        computed=tuple(_computed(source, at_source)),
        reads=tuple(_reads(source, reader, at_source, at_reader)),
        marks=dict(sorted(marks.items(), key=lambda mark: mark[1])),
        clock_error_s=clock_error_s,
        **facts,
    )


def _computed(source: HandoffTimeline, at_source: float) -> Iterable[Computed]:
    before = 0.0
    for item in sorted(source.computed, key=lambda item: item.computed_at):
        end = item.computed_at - at_source
        cached = item.layer_end - item.layer_start > 1
        start = end if cached else min(end, max(0.0, before))
        yield Computed(item.layer_start, item.layer_end, item.page_start, item.pages, start, end, cached)
        before = end


def _reads(source: HandoffTimeline, reader: HandoffTimeline, at_source: float, at_reader: float) -> Iterable[Read]:
    for sent, heard in zip(source.reads, reader.reads, strict=True):
        yield Read(
            sent.seq,
            sent.layer_start,
            sent.layer_end,
            sent.page_start,
            sent.pages,
            sent.bytes,
            announced_s=sent.announced_at - at_source,
            heard_s=heard.announced_at - at_reader,
            started_s=heard.started_at - at_reader,
            arrived_s=heard.arrived_at - at_reader,
            verified_s=heard.done_at - at_reader,
            answered_s=sent.done_at - at_source,
        )


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time without overlaps, in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)
