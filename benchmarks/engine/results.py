"""Results of the comparison on disk: one JSON line per (model, engine, row), written as soon as it is known."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """A measured row (`values`: tokens per second, or `value`), or why there is none (`error`)."""

    error: str = ""
    value: float | None = None
    values: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else self.value


class Results:
    """What is in `folder`. Later lines replace earlier ones of the same row."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "results.jsonl"
        self._entries: dict[tuple[str, str, str], Entry] = {}
        for line in self._file.read_text().splitlines() if self._file.exists() else ():
            raw = json.loads(line)
            key = raw.pop("model"), raw.pop("engine"), raw.pop("row")
            self._entries[key] = _entry(raw)

    def has(self, model: str, engine: str, row: str) -> bool:
        """Whether the row was measured; one that failed is tried again."""
        entry = self._entries.get((model, engine, row))
        return entry is not None and not entry.error

    def get(self, model: str, engine: str, row: str) -> Entry | None:
        return self._entries.get((model, engine, row))

    def add(self, model: str, engine: str, row: str, **content: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"model": model, "engine": engine, "row": row, "at": at, **content}) + "\n")
        self._entries[model, engine, row] = _entry({"at": at, **content})

    def note_machine(self, facts: dict[str, Any]) -> None:
        """Keep the best roofline of all runs: a busy machine only ever measures less."""
        before = self.machine()
        for key in ("read_bytes_per_s", "flops_per_s"):
            facts[key] = max(facts[key], before.get(key, 0.0))
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "machine.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def machine(self) -> dict[str, Any]:
        file = self._folder / "machine.json"
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return found

    def forget(self) -> None:
        for name in ("results.jsonl", "machine.json", "table.md"):
            (self._folder / name).unlink(missing_ok=True)
        self._entries.clear()


def _entry(raw: dict[str, Any]) -> Entry:
    known = {key: raw[key] for key in ("error", "value", "values") if key in raw}
    return Entry(**known, facts={key: value for key, value in raw.items() if key not in known})
