"""What a chaos run says at its end: JSON for programs, Markdown for people."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from tools.chaos.judge import Judge, Struck


@dataclass(slots=True)
class Run:
    """One run: how to repeat it, and what came of it."""

    seed: int
    minutes: float
    transport: str
    command: str
    left_out: dict[str, str]
    machine: dict[str, Any]
    outcomes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def figures(run: Run, judge: Judge) -> dict[str, Any]:
    """Everything that the report says, as plain data."""
    carried_out = [item for item in judge.struck if item.carried_out]
    kinds = sorted({item.fault.kind.value for item in carried_out})
    tokens = sum(answer.tokens for answer in judge.answers if not answer.error)
    return {
        "seed": run.seed, "minutes": run.minutes, "transport": run.transport, "command": run.command,
        "passed": not judge.violations, "violations": judge.violations,
        "faults": len(carried_out), "faults_not_carried_out": len(judge.struck) - len(carried_out),
        "left_out": run.left_out,
        "answers": judge.right + judge.wrong, "tokens": tokens, "wrong_answers": judge.wrong,
        "lost_tokens": judge.lost_tokens, "repeated_tokens": judge.extra_tokens,
        "failed_answers": judge.broken, "asked_again_after_lost_gateway": judge.asked_again,
        "by_kind": {kind: _kind(kind, carried_out, judge) for kind in kinds},
        "system": dict(sorted(run.outcomes.items())),
        "memory_mb": {name: [round(a, 1), round(b, 1)] for name, (a, b) in sorted(judge.memory_mb.items())},
        "seconds": round(run.seconds, 1), "machine": run.machine,
    }  # fmt: skip


def _kind(kind: str, carried_out: list[Struck], judge: Judge) -> dict[str, Any]:
    of_kind = [item for item in carried_out if item.fault.kind.value == kind]
    back = [item.back_s for item in of_kind if item.back_s is not None]
    pauses = [judge.pause_s(item) for item in of_kind]
    return {"faults": len(of_kind), "back_s": _percentiles(back), "pause_s": _percentiles(pauses)}


def _percentiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    ranked = sorted(values)
    p99 = ranked[math.ceil(0.99 * len(ranked)) - 1]
    return {"p50": round(statistics.median(ranked), 2), "p99": round(p99, 2)}


def as_json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1) + "\n"


def as_markdown(data: dict[str, Any]) -> str:
    verdict = "passed" if data["passed"] else f"FAILED: {len(data['violations'])} violations"
    lines = [
        f"# Chaos, seed {data['seed']}, {data['minutes']:g} minutes: {verdict}",
        "",
        f"`{data['command']}` on {data['machine']['cores']} cores of {data['machine']['cpu']}",
        "",
        "| what | how much |",
        "|---|---|",
        f"| faults carried out | {data['faults']} ({data['faults_not_carried_out']} found their target not running) |",
        f"| answers compared | {data['answers']} ({data['tokens']} tokens) |",
        f"| wrong answers | {data['wrong_answers']} |",
        f"| tokens lost / repeated | {data['lost_tokens']} / {data['repeated_tokens']} |",
        f"| answers that failed | {data['failed_answers']} |",
        f"| asked again, since the gateway was lost | {data['asked_again_after_lost_gateway']} |",
        "",
        "| fault | number | process ready again, s (p50 / p99) | longest pause of a client, s (p50 / p99) |",
        "|---|---|---|---|",
        *(
            f"| {kind} | {item['faults']} | {_pair(item['back_s'])} | {_pair(item['pause_s'])} |"
            for kind, item in data["by_kind"].items()
        ),
        "",
        "Pauses are of all clients whose answer was under way, and faults overlap: a pause may be another fault's.",
        "",
    ]
    if data["system"]:
        lines += ["| what the agents counted | number |", "|---|---|"]
        lines += [f"| {name} | {number} |" for name, number in data["system"].items()] + [""]
    lines += ["| process | own memory before, MB | after |", "|---|---|---|"]
    lines += [f"| {name} | {before:.0f} | {after:.0f} |" for name, (before, after) in data["memory_mb"].items()] + [""]
    lines += [f"Left out: {kind} ({reason})." for kind, reason in data["left_out"].items()]
    lines += [f"- violation: {text}" for text in data["violations"]]
    return "\n".join(lines).rstrip() + "\n"


def _pair(percentiles: dict[str, float] | None) -> str:
    return f"{percentiles['p50']:.2f} / {percentiles['p99']:.2f}" if percentiles else ""
