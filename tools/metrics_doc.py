"""Writes docs/metrics.md from the metrics that the services declare; with --check, fails when it is not current."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from baton.runtime.metrics import Declaration, declared
from tools.generated import write_or_check

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "metrics.md"
SOURCES = (ROOT / "services", ROOT / "libs")

INTRODUCTION = """# Metrics

Generated from the services' declarations by `make docs`; `make check` fails when it is not current.

Prometheus reads them at `/metrics`: the gateway's at its own port, or at its `metrics_port` where that is set; those of
every other service at its `metrics_port`. `baton up` chooses those ports and lists them in its `status.json`. Processes
also tell what Prometheus's client knows of any Python process (`process_*`).

Names are `baton_<service>_<what>_<unit>`, with `_total` for what only grows. A histogram has the series `_bucket` (by
`le`), `_sum` and `_count`; its buckets go from {first:g} s to {last:g} s. [operations.md](operations.md) says what to
look at first, and [deploy/observability](../deploy/observability/README.md) has a dashboard and alert rules made of
these.
"""

TITLES = {
    "gateway": "Gateway",
    "router": "Router",
    "worker": "Workers (prefill, decode, unified)",
    "kv_agent": "KV agent",
}


def known() -> list[Declaration]:
    """All metrics that some service has: every module called `metrics` is imported."""
    for source in SOURCES:
        for path in sorted(source.glob("baton/*/metrics.py")):
            importlib.import_module(".".join(path.relative_to(source).with_suffix("").parts))
    return [metric for metric in declared() if metric.name.startswith("baton_")]


def document() -> str:
    metrics = known()
    buckets = next(metric.buckets for metric in metrics if metric.kind == "histogram")
    parts = [INTRODUCTION.format(first=buckets[0], last=buckets[-1])]
    for service, title in TITLES.items():
        rows = [row(metric) for metric in metrics if metric.name.startswith(f"baton_{service}_")]
        head = "| metric | kind | labels | what it says |\n|---|---|---|---|"
        parts.append("\n".join([f"## {title}\n", head, *rows]) + "\n")
    return "\n".join(parts)


def row(metric: Declaration) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help.replace('|', chr(92) + '|')} |"


def main() -> int:
    prefixes = tuple(f"baton_{service}_" for service in TITLES)
    if strangers := [metric.name for metric in known() if not metric.name.startswith(prefixes)]:
        raise SystemExit(f"metrics of no known service: {', '.join(strangers)}")
    return write_or_check(TARGET, document())


if __name__ == "__main__":
    sys.exit(main())
