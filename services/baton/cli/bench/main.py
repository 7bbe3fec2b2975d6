"""`baton bench engine|serve`: which measurement is meant; imports only what it needs."""

from __future__ import annotations

from collections.abc import Callable

from baton.cli.services import import_or_explain
from baton.core.errors import ConfigError
from baton.runtime.sources import nearest

_KINDS = {
    "serve": ("baton.cli.bench.serve", "bench", "load a running system over HTTP, and measure what its clients see"),
    "engine": ("baton.cli.bench.engine", "worker", "measure the engine alone, in this process, on a checkpoint"),
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] not in _KINDS:
        raise ConfigError(f"unknown benchmark {argv[0]!r}{nearest(argv[0], _KINDS)} (baton bench --help lists all)")
    module, extra, _ = _KINDS[argv[0]]
    run: Callable[[list[str]], int] = import_or_explain(module, extra).main
    return run(argv[1:])


def usage() -> str:
    lines = [f"  {name:<8} {summary}" for name, (_, _, summary) in _KINDS.items()]
    head = ["usage: baton bench KIND [flags]", "", "Measures, and says on what hardware and by which command.", ""]
    return "\n".join([*head, *lines, "", "baton bench KIND --help shows the flags; docs/benchmarks.md explains them."])
