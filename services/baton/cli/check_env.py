"""`baton check-env`: what works on this machine, what does not, how to mend it. Exit code 1: something needed lacks."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

from baton.cli import probes
from baton.cli.flags import Parser
from baton.cli.probes import Check
from baton.runtime import environ

# Which extras each command needs; `up` needs them all.
NEEDS = {
    "up": ("gateway", "router", "worker", "kv-agent", "embedded"),
    "gateway": ("gateway",),
    "router": ("router",),
    "worker": ("worker",),
    "kv-agent": ("kv-agent",),
}
_EXTRAS = ("gateway", "worker", "kv-agent", "embedded", "cuda")
_INDENT = 29
_COLOURS = {"ok": "32", "warn": "33", "missing": "31"}


def main(argv: list[str]) -> int:
    parser = Parser(prog="baton check-env", description="Say what works on this machine and how to mend the rest.")
    parser.add_argument("--for", dest="purpose", choices=NEEDS, default="up", help="what must run here (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    given = parser.parse_args(argv)
    checks = run_checks(given.purpose)
    lacking = [check.name for check in checks if check.required and check.status == "missing"]
    if given.json:
        print(json.dumps({"fit": not lacking, "for": given.purpose, "checks": [asdict(check) for check in checks]}))
    else:
        print("\n".join(_line(check) for check in checks))
        good, bad = f"baton {given.purpose} can run here", f"baton {given.purpose} cannot run here"
        print(f"\n{bad}; missing: {', '.join(lacking)}" if lacking else f"\n{good}")
    return 1 if lacking else 0


def run_checks(purpose: str) -> list[Check]:
    """All checks, in the order in which they are shown; the slow ones run side by side."""
    needs = NEEDS[purpose]
    questions: list[Callable[[], Check]] = [
        probes.python,
        partial(probes.packages, "", True),
        *(partial(probes.packages, extra, extra in needs) for extra in _EXTRAS),
        partial(probes.torch, "worker" in needs),
        probes.cpu,
        probes.memory,
        probes.open_files,
        probes.gpu,
        probes.gpu_path,
        probes.ucx,
        probes.same_host_pages,
        partial(probes.redis_server, "embedded" in needs),
        probes.compiler,
    ]
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(lambda question: question(), questions))


def _line(check: Check) -> str:
    status = f"{check.status:<8}"
    if environ.use_colour(sys.stdout):
        status = f"\x1b[{_COLOURS[check.status]}m{status}\x1b[0m"
    mend = [f"-> {check.mend}"] if check.mend and check.status != "ok" else []
    width = max(40, shutil.get_terminal_size((110, 24)).columns - _INDENT)
    lines = [line for text in [check.detail, *mend] for line in textwrap.wrap(text, width, break_on_hyphens=False)]
    return f"{status} {check.name:<19} " + f"\n{'':<{_INDENT}}".join(lines)
