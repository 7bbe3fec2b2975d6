"""`python -m tools.chaos --seed N --minutes M`, or `make chaos SEED=N MINUTES=M`. Exit code 1: violated."""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.chaos import network, report, run
from tools.chaos.plan import Kind

TRANSPORTS = ("auto", "ucx", "ucx-tcp", "tcp")


def main() -> int:
    options = _parse()
    if network.INSIDE not in os.environ and not options.no_namespace:
        inside = network.namespace_command([sys.executable, "-m", "tools.chaos", *sys.argv[1:]])
        if inside:
            return subprocess.run(inside, check=False).returncode
    left_out = {**network.missing(os.environ), **{Kind(kind): "as asked" for kind in options.without}}
    for kind, reason in left_out.items():
        print(f"left out: {kind} ({reason})", flush=True)
    kinds = [kind for kind in Kind if kind not in left_out]
    with tempfile.TemporaryDirectory(prefix="baton-chaos-") as folder:
        data = asyncio.run(run.chaos(options, kinds, left_out, Path(folder), _command(options)))
        if not data["passed"]:
            kept = options.report.parent / f"{options.report.stem}-{time.strftime('%H%M%S')}.log"
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes((Path(folder) / "up.log").read_bytes())
            print(f"log of the system: {kept}", flush=True)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.with_suffix(".json").write_text(report.as_json(data))
    options.report.with_suffix(".md").write_text(report.as_markdown(data))
    print(report.as_markdown(data), flush=True)
    if not data["passed"]:
        print(f"chaos: violated; once more: {data['command']}", flush=True)
    return 0 if data["passed"] else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=None, help="of faults and load; default: drawn and printed")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long faults strike (default 3)")
    parser.add_argument("--gap", type=float, default=1.8, help="mean time between two faults, s (default 1.8)")
    parser.add_argument("--clients", type=int, default=5, help="requests at once (default 5); one of them by gRPC")
    parser.add_argument("--transport", choices=TRANSPORTS, default="auto", help="how pages travel (default auto)")
    parser.add_argument("--without", nargs="*", default=[], choices=[k.value for k in Kind], help="faults to leave out")
    parser.add_argument("--no-namespace", action="store_true", help="no network namespace, hence no network faults")
    parser.add_argument("--report", type=Path, default=Path("build/chaos.md"), help="written as .json and .md")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(3))
    return options


def _command(options: argparse.Namespace) -> str:
    """What repeats the run: the same questions, faults, times and targets."""
    extra = {"transport": options.transport, "gap": options.gap, "clients": options.clients}
    without = f" --without {' '.join(options.without)}" if options.without else ""
    flags = " ".join(f"--{name}={value}" for name, value in extra.items()) + without
    return f'make chaos SEED={options.seed} MINUTES={options.minutes:g} ARGS="{flags}"'


if __name__ == "__main__":
    sys.exit(main())
