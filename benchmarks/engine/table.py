"""The comparison as a Markdown table: medians, how many timings each is of, Baton against the best peer, roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cases import Case
from models import Model
from peers import PEERS
from results import Entry, Results
from roofline import Machine

BEGIN, END = "<!-- comparison: begin -->", "<!-- comparison: end -->"
_OWN = "baton"


def markdown(results: Results, wanted: Sequence[Model], rows: Sequence[Case]) -> str:
    facts = results.machine()
    if not facts:
        return "Nothing was measured yet.\n"
    machine = Machine(facts["read_bytes_per_s"], facts["flops_per_s"])
    load, read, product = facts["load_average"], machine.read_bytes_per_s / 1e9, machine.flops_per_s / 1e9
    parts = [
        f"{facts['cpu']}, {facts['cores']} cores, load {load:.1f} at the start, commit {facts['commit']}. "
        f"Read {read:.1f} GB/s, bf16 products {product:.0f} GFLOP/s. "
        "Tokens per second, medians; in brackets the number of timings where fewer than five."
    ]
    for model in wanted:
        parts += [f"### {model.title} (bf16)", _table(results, model, rows, machine), *_notes(results, model, rows)]
    return "\n\n".join(parts) + "\n"


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the page's marks. Raises ValueError when it has none."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: the marks {BEGIN} and {END} are missing")
    page.write_text(f"{before}{BEGIN}\n{text.rstrip()}\n{END}{after}", encoding="utf-8")


def _table(results: Results, model: Model, rows: Sequence[Case], machine: Machine) -> str:
    titles = ["", *(peer.title for peer in PEERS), "Baton / best peer", "Baton / roofline"]
    lines = [_line(titles), _line(["---", *["---:"] * (len(titles) - 1)])]
    for case in rows:
        entries = {peer.name: results.get(model.name, peer.name, case.name) for peer in PEERS}
        own = _median(entries[_OWN])
        best = max((_median(entry) or 0.0 for name, entry in entries.items() if name != _OWN), default=0.0)
        limit = case.roofline_tokens_per_s(machine, model)
        ratios = [f"{own / best:.2f}" if own and best else "", f"{own / limit:.0%}" if own else ""]
        lines.append(_line([case.name, *(_cell(entry) for entry in entries.values()), *ratios]))
    for row, unit, scale in (("start", "s", 1.0), ("memory", "MiB", 2.0**20)):
        title = "start to first token (s)" if row == "start" else "peak memory (MiB)"
        values = [_median(results.get(model.name, peer.name, row)) for peer in PEERS]
        cells = ["-" if value is None else f"{value / scale:.{1 if unit == 's' else 0}f}" for value in values]
        lines.append(_line([title, *cells, "", ""]))
    return "\n".join(lines)


def _notes(results: Results, model: Model, rows: Sequence[Case]) -> list[str]:
    """Versions, and reasons of rows that could not be measured."""
    notes = []
    for peer in PEERS:
        start = results.get(model.name, peer.name, "start")
        if start is not None and "about" in start.facts:
            notes.append(f"- {peer.title}: {start.facts['about']}; loaded in {start.facts['load_s']:.1f} s")
        reasons: dict[str, list[str]] = {}
        for row in ["start", *(case.name for case in rows)]:
            entry = results.get(model.name, peer.name, row)
            if entry is not None and entry.error:
                reasons.setdefault(entry.error, []).append(row)
        notes += [f"- {peer.title}, {', '.join(names)}: {error}" for error, names in reasons.items()]
    return ["\n".join(notes)] if notes else []


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    value = entry.median
    if entry.error or value is None:
        return "cannot"
    few = f" ({len(entry.values)})" if len(entry.values) < 5 else ""
    return f"{value:.1f}{few}" if value < 1000 else f"{value:.0f}{few}"


def _median(entry: Entry | None) -> float | None:
    return entry.median if entry is not None and not entry.error else None


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
