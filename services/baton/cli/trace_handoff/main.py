"""`baton trace-handoff`: one request, and when each of its layers was computed, read and verified."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

from baton.cli.bench.plot import load_pyplot
from baton.cli.flags import Parser
from baton.cli.trace_handoff import collect, page, picture, report
from baton.cli.trace_handoff.system import own_system
from baton.cli.trace_handoff.timeline import Trace
from baton.core.errors import ConfigError
from baton.runtime import environ

_TRANSPORTS = ("auto", "ucx", "ucxx", "tcp")


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="baton trace-handoff",
        usage="baton trace-handoff [flags]",
        description="Send one prompt of random tokens through prefill and decode, and show how its KV cache moved. "
        "Without --router, a system is started for the occasion.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=24, width=100),
        add_help=False,
    )
    add = made.add_argument
    add("--router", default="", metavar="HOST:PORT", help="router of a running system")
    add("--model", default="", metavar="NAME", help="with --router: model to ask (the first one)")
    add("--tokens", type=int, default=1024, metavar="N", help="length of the prompt (%(default)s)")
    add("--vocab", type=int, default=2048, metavar="N", help="token ids are from 100 to this, exclusive (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="equal seeds, equal prompts (%(default)s)")
    add("--warmup", type=int, default=2, metavar="N", help="prompts before the traced one (%(default)s)")
    add("--checkpoint", type=Path, metavar="PATH", help="for the own system (the bundled model)")
    add("--transport", choices=_TRANSPORTS, metavar="NAME", help=f"of the own system: {'|'.join(_TRANSPORTS)}")
    add("--html", type=Path, metavar="FILE", help="write a page with the picture")
    add("--png", type=Path, metavar="FILE", help="write the picture (.png or .svg; needs matplotlib)")
    add("--json", type=Path, metavar="FILE", help="write all times")
    return made


def main(argv: list[str]) -> int:
    if any(argument in ("-h", "--help") for argument in argv):
        print(parser().format_help())
        return 0
    given = parser().parse_args(argv)
    _check(given)
    environ.quiet_libraries()
    trace = asyncio.run(_trace(given))
    print(report.text(trace))
    _write(given, trace)
    return 0


async def _trace(given: argparse.Namespace) -> Trace:
    async def of(router: str) -> Trace:
        return await collect.trace(
            router,
            model=given.model,
            tokens=given.tokens,
            vocabulary=given.vocab,
            seed=given.seed,
            warmup=given.warmup,
        )

    if given.router:
        return await of(given.router)
    flags = [f"--model={given.checkpoint}"] if given.checkpoint else []
    flags += [f"--transport={given.transport}"] if given.transport else []
    async with own_system(flags) as router:
        return await of(router)


def _check(given: argparse.Namespace) -> None:
    if given.tokens < 1 or given.warmup < 0:
        raise ConfigError(f"--tokens is {given.tokens}, --warmup {given.warmup}: at least 1, and 0")
    if given.vocab <= collect.FIRST_TOKEN_ID:
        raise ConfigError(f"--vocab is {given.vocab}; it must be more than {collect.FIRST_TOKEN_ID}")
    if given.router and (given.checkpoint or given.transport):
        raise ConfigError("--checkpoint and --transport are for the own system; with --router there is none")
    if given.model and not given.router:
        raise ConfigError("--model names a model of the system at --router; the own system takes --checkpoint PATH")
    if given.png:
        load_pyplot()


def _write(given: argparse.Namespace, trace: Trace) -> None:
    if given.png:
        picture.write(given.png, trace)
    try:
        if given.html:
            given.html.write_text(page.html(trace), encoding="utf-8")
        if given.json:
            given.json.write_text(json.dumps(trace.document(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written: {error.strerror}") from None
