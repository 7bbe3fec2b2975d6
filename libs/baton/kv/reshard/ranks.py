"""Which tensor-parallel ranks of a reading worker deal with which ranks of a source. Pure; both sides agree by it.

Heads are split among ranks, or, where there are more ranks than heads, copied: then a reader takes a head from the
copy that its own number among the holders of that head points at, so that the copies share the work. A copy that nobody
reads is opened all the same, by one rank, for nothing: its lease must end when the handoff is over.
"""

from __future__ import annotations

from baton.core.layout import KvLayout


def partners(own: KvLayout, source_ranks: int) -> dict[int, range]:
    """Ranks of the source that `own` opens, and which of all heads it takes from each; empty: none."""
    return _partners(own.total_kv_heads, own.rank, own.tensor_parallel, source_ranks)


def readers(source: KvLayout, reader_ranks: int) -> list[int]:
    """Ranks of a reading worker that open `source`."""
    total, sources = source.total_kv_heads, source.tensor_parallel
    return [rank for rank in range(reader_ranks) if source.rank in _partners(total, rank, reader_ranks, sources)]


def _partners(total: int, rank: int, ranks: int, source_ranks: int) -> dict[int, range]:
    found: dict[int, range] = {}
    own_copies, source_copies = max(1, ranks // total), max(1, source_ranks // total)
    own_copy = rank % own_copies
    for head in _heads(total, rank, ranks):
        holder = head * source_ranks // total  # the first that has it
        taken_from = holder + own_copy % source_copies
        before = found.get(taken_from) or range(head, head)
        found[taken_from] = range(before.start, head + 1)
        for copy in range(own_copies, source_copies):
            if copy % own_copies == own_copy:
                found.setdefault(holder + copy, range(0))
    return found


def _heads(total: int, rank: int, ranks: int) -> range:
    first = rank * total // ranks
    return range(first, first + max(1, total // ranks))
