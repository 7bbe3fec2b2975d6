"""Baton beside vLLM's CPU build, transformers and llama.cpp: same checkpoints, same cores, in turns.

    python benchmarks/engine/compare.py                   everything; set-up once, then about half an hour
    python benchmarks/engine/compare.py --smoke           seconds, tiny sizes: does it all work here?
    python benchmarks/engine/compare.py --report          only print the table of what was measured
    python benchmarks/engine/compare.py --report --page README.md     and put it between the page's marks

A row is measured on all engines in turns, so that whatever else the machine does meets all of them alike; the figure
is the median. Results go to `--out` as they come: what was interrupted, or ran out of `--minutes`, goes on where it
was. An engine or row that cannot run is in the table with its reason.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import models
import roofline
from cases import FULL, SMOKE, Case, Sizes, cases
from link import Link, RunnerFailed
from peers import BY_NAME, DEFAULT_FOLDER, PEERS, Peer, SetUpError, set_up
from results import Results
from table import BEGIN, END, markdown, put_into

ROOT = Path(__file__).resolve().parents[2]
SOURCES = f"{ROOT / 'libs'}{os.pathsep}{ROOT / 'services'}"
DEFAULT_OUT = Path(__file__).resolve().parent / "results"


class OutOfTime(Exception):
    pass


class Comparison:
    """One run of the program."""

    def __init__(self, given: argparse.Namespace, sizes: Sizes, peers: list[Peer]) -> None:
        self._sizes = sizes
        self._peers = peers
        self._folder: Path = given.folder
        self._cores = sorted(os.sched_getaffinity(0))[: given.threads]
        self._deadline = time.monotonic() + given.minutes * 60
        self._results = Results(given.out)
        self._links: dict[str, Link] = {}

    def run(self, wanted: list[models.Model]) -> None:
        self._results.note_machine(_machine(len(self._cores), quick=self._sizes is SMOKE))
        broken = self._set_up()
        for model in wanted:
            missing = [peer for peer in self._peers if self._lacking(model, peer)]
            for peer in [peer for peer in missing if peer.name in broken]:
                self._fail_rest(model, peer, broken[peer.name])
            missing = [peer for peer in missing if peer.name not in broken]
            if not missing:
                continue
            path = models.make(model, self._folder / "models")
            try:
                for peer in missing:
                    self._start(model, peer, path)
                for case in cases(self._sizes):
                    self._measure(model, case)
                for name, link in self._links.items():
                    self._results.add(model.name, name, "memory", value=link.memory_bytes())
            finally:
                for link in self._links.values():
                    link.close()
                self._links.clear()

    def _set_up(self) -> dict[str, str]:
        """Install what is missing; why what could not be installed could not."""
        broken = {}
        for peer in self._peers:
            try:
                set_up(peer, self._folder, _say)
            except SetUpError as error:
                broken[peer.name] = str(error).replace("\n", " ")[:300]
                _say(f"{peer.title}: {error}")
        return broken

    def _lacking(self, model: models.Model, peer: Peer) -> list[str]:
        rows = ["start", *(case.name for case in cases(self._sizes)), "memory"]
        return [row for row in rows if not self._results.has(model.name, peer.name, row)]

    def _fail_rest(self, model: models.Model, peer: Peer, why: str) -> None:
        for row in self._lacking(model, peer):
            self._results.add(model.name, peer.name, row, error=why)

    def _start(self, model: models.Model, peer: Peer, path: Path) -> None:
        """Start the peer's process, which is then stopped until it is asked something."""
        self._check_time()
        _say(f"{model.title}: starting {peer.title}")
        options = {
            "model": str(path),
            "threads": len(self._cores),
            "cores": self._cores,
            "context": self._sizes.context,
            "pool_tokens": self._sizes.pool_tokens,
            "kv_token_bytes": model.kv_token_bytes,
            "seed": 0,
        }
        environment = {"OMP_NUM_THREADS": str(len(self._cores)), "PYTHONPATH": SOURCES if peer.install is None else ""}
        try:
            link = Link(peer.python(self._folder), peer.script(), options, environment)
        except RunnerFailed as error:
            _say(f"{peer.title} does not start: {error}")
            self._fail_rest(model, peer, str(error))
            return
        self._links[peer.name] = link
        self._results.add(model.name, peer.name, "start", value=link.start_s, load_s=link.load_s, about=link.about)

    def _measure(self, model: models.Model, case: Case) -> None:
        """One row on all engines that lack it, in turns."""
        self._check_time()
        running = [name for name in self._links if not self._results.has(model.name, name, case.name)]
        values: dict[str, list[float]] = {name: [] for name in running}
        spent = dict.fromkeys(running, 0.0)
        with contextlib.ExitStack() as stack:
            for name in list(values):
                with self._failing(model, name, case.name, values):
                    stack.enter_context(_forgiving(case.opened(self._links[name])))
                    if case.warm:
                        case.timed(self._links[name])
            for repeat in range(self._sizes.repeats):
                order = list(values)
                for name in order if repeat % 2 == 0 else reversed(order):
                    if spent[name] >= case.seconds:
                        continue
                    with self._failing(model, name, case.name, values):
                        rate, seconds = case.timed(self._links[name])
                        values[name].append(rate)
                        spent[name] += seconds
        for name, rates in values.items():
            self._results.add(model.name, name, case.name, values=rates)
        _say(f"{model.title}: {case.name}: " + ", ".join(f"{n} {sum(v) / len(v):.1f}" for n, v in values.items() if v))

    @contextlib.contextmanager
    def _failing(self, model: models.Model, name: str, row: str, values: dict[str, list[float]]) -> Any:
        """What fails in here is this engine's result for the row; an engine that died is out of the comparison."""
        try:
            yield
        except RunnerFailed as error:
            del values[name]
            self._results.add(model.name, name, row, error=str(error))
            _say(f"{model.title}: {row}: {name}: {error}")
            if error.fatal:
                self._links.pop(name).close()
                self._fail_rest(model, BY_NAME[name], f"it was gone after {row}: {error}"[:300])

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise OutOfTime


@contextlib.contextmanager
def _forgiving(opened: contextlib.AbstractContextManager[None]) -> Any:
    """Closing a row on an engine that failed meanwhile is no second failure. Opening it is."""
    opened.__enter__()
    try:
        yield
    finally:
        with contextlib.suppress(RunnerFailed, KeyError):
            opened.__exit__(None, None, None)


def _machine(threads: int, *, quick: bool) -> dict[str, Any]:
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())  # fmt: skip
    git = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    limits = roofline.measure(threads, quick=quick)
    return {"cpu": cpu, "cores": threads, "commit": commit, "load_average": os.getloadavg()[0], **asdict(limits)}


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", default="llama-100m,qwen3-600m", help="which, separated by commas (%(default)s)")
    add("--engines", default=",".join(BY_NAME), help="which, separated by commas (%(default)s)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores for each engine (all: %(default)s)")
    add("--minutes", type=float, default=38.0, help="start nothing new after this, set-up included (%(default)s)")
    add("--folder", type=Path, default=DEFAULT_FOLDER, help="environments and checkpoints (%(default)s)")
    add("--out", type=Path, default=DEFAULT_OUT, help="results.jsonl, machine.json, table.md (%(default)s)")
    add("--fresh", action="store_true", help="forget earlier results in --out")
    add("--smoke", action="store_true", help="tiny model and sizes, results in OUT/smoke")
    add("--report", action="store_true", help="only write and print the table")
    add("--page", type=Path, help=f"also put the table into this file, between {BEGIN} and {END}")
    given = parser.parse_args()
    names = "tiny" if given.smoke else given.models
    unknown = (set(names.split(",")) - set(models.BY_NAME)) | (set(given.engines.split(",")) - set(BY_NAME))
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; models: {', '.join(models.BY_NAME)}; engines: "
                     f"{', '.join(BY_NAME)}")  # fmt: skip
    given.out = given.out / "smoke" if given.smoke else given.out
    if given.fresh or given.smoke:
        Results(given.out).forget()
    sizes = SMOKE if given.smoke else FULL
    wanted = [models.BY_NAME[name] for name in names.split(",")]
    code = 0
    if not given.report:
        peers = [peer for peer in PEERS if peer.name in given.engines.split(",")]
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            Comparison(given, sizes, peers).run(wanted)
        except OutOfTime:
            _say("the time is over; run it again to go on")
            code = 3
        except KeyboardInterrupt:
            _say("interrupted; run it again to go on")
            code = 130
    text = markdown(Results(given.out), wanted, cases(sizes))
    (given.out / "table.md").write_text(text, encoding="utf-8")
    if given.page is not None:
        put_into(given.page, text)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
