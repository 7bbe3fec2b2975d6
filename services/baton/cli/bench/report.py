"""A run's figures for people (a table) and for programs (one JSON file that says where it comes from)."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from baton.cli.bench.machine import commit, hardware
from baton.cli.bench.outcome import Log, Outcome
from baton.cli.bench.summary import PERCENTILES
from baton.core.errors import ConfigError

FORMAT = 1
_LAG_WARNING_MS = 20.0
_CPU_WARNING = 0.5
_ROWS = (("ttft", "TTFT"), ("itl", "ITL"), ("tpot", "TPOT"), ("e2e", "E2E"))


def table(summary: dict[str, Any]) -> str:
    """The figures as text, 76 columns wide at most."""
    columns = ("mean", *(f"p{name}" for name in PERCENTILES), "max")
    lines = [_requests_line(summary), _tokens_line(summary), ""]
    lines.append(f"{'ms':<6}" + "".join(f"{column:>11}" for column in columns))
    for key, title in _ROWS:
        found = summary["latency_ms"][key]
        values = [f"{found[column]:>11.2f}" if found else f"{'-':>11}" for column in columns]
        lines.append(f"{title:<6}" + "".join(values))
    lines.append("")
    if summary["cached_tokens_share"] is not None:
        lines.append(f"cached prompt tokens   {summary['cached_tokens_share']:.1%}")
    if goodput := summary["goodput"]:
        limits = [f"TTFT <= {goodput['slo_ttft_ms']:g} ms"] if goodput["slo_ttft_ms"] is not None else []
        limits += [f"TPOT <= {goodput['slo_itl_ms']:g} ms"] if goodput["slo_itl_ms"] is not None else []
        lines.append(
            f"goodput                {goodput['requests_per_s']:.2f} requests/s, "
            f"{goodput['share_of_sent']:.1%} of those sent ({', '.join(limits)})"
        )
    for kind, count in sorted(summary["requests"]["errors"].items()):
        lines.append(f"error                  {kind}: {count}")
    return "\n".join([*lines, *_client_lines(summary["client"])])


def _requests_line(summary: dict[str, Any]) -> str:
    requests = summary["requests"]
    return (
        f"{requests['answered']} of {requests['planned']} requests answered in {summary['duration_s']:.1f} s"
        f" ({summary['throughput']['requests_per_s']:.2f}/s)"
    )


def _tokens_line(summary: dict[str, Any]) -> str:
    tokens, rates = summary["tokens"], summary["throughput"]
    return (
        f"{tokens['prompt']} tokens in ({rates['prompt_tokens_per_s']:.0f}/s), "
        f"{tokens['output']} tokens out ({rates['output_tokens_per_s']:.0f}/s)"
    )


def _client_lines(client: dict[str, Any]) -> list[str]:
    lag = client["lag_ms"]["p99"] if client["lag_ms"] else 0.0
    per_piece = f", {client['cpu_us_per_piece']:.0f} us per piece" if client["cpu_us_per_piece"] else ""
    lines = [f"this client            {client['cpu_share']:.0%} of a core{per_piece}; p99 lag {lag:.1f} ms"]
    if lag > _LAG_WARNING_MS or client["cpu_share"] > _CPU_WARNING:
        lines.append("warning                the client was busy: its own delays are part of these figures")
    return lines


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """The flags of a run, as JSON can hold them."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}


def document(
    summary: dict[str, Any], *, command: list[str], settings: dict[str, Any], log: Log | None = None
) -> dict[str, Any]:
    """The JSON document of a run."""
    return {
        "format": FORMAT,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "commit": commit(),
        "hardware": hardware(),
        "settings": settings,
        "summary": summary,
        **({"requests": [_request(outcome) for outcome in log.outcomes]} if log is not None else {}),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Raises ConfigError when the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None


def _request(outcome: Outcome) -> dict[str, Any]:
    fine = not outcome.error
    return {
        "sent_s": round(outcome.sent_s, 6),
        "turn": outcome.turn,
        "prompt_tokens": outcome.prompt_tokens,
        "cached_tokens": outcome.cached_tokens,
        "output_tokens": outcome.output_tokens,
        "ttft_ms": round(outcome.ttft_s * 1e3, 3) if fine else None,
        "e2e_ms": round(outcome.e2e_s * 1e3, 3) if fine else None,
        **({"error": outcome.error, "detail": outcome.detail} if outcome.error else {}),
    }
