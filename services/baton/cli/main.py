"""Entry point of `baton`: finds the command, imports only what that command needs.

`baton --help` must come at once, so nothing heavy is imported here. A command is a function `main(argv) -> exit code`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from baton.cli.services import SERVICES, import_or_explain
from baton.core.errors import BatonError, ConfigError
from baton.runtime.sources import nearest

OWN_COMMANDS = {
    "up": ("baton.cli.up.main", "start a whole system on this machine"),
    "chat": ("baton.cli.chat", "talk to a running system in the terminal"),
    "bench": ("baton.cli.bench.main", "measure an engine, or a running system under load"),
    "trace-handoff": ("baton.cli.trace_handoff.main", "show when each layer of a handoff was computed and read"),
    "keys": ("baton.cli.keys", "make, list and revoke the gateways' API keys"),
    "check-env": ("baton.cli.check_env", "say what works on this machine and how to mend the rest"),
    "version": ("baton.cli.version", "versions of Baton and of what it runs on"),
}
SUMMARIES = {
    "up": OWN_COMMANDS["up"][1],
    **{name: service.summary for name, service in SERVICES.items()},
    **{name: summary for name, (_, summary) in OWN_COMMANDS.items() if name != "up"},
}


def main(argv: list[str] | None = None) -> int:
    """Run one command. Errors that people can mend are one line on stderr and exit code 2."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(usage())
            return 0
        if arguments[0] == "--version":
            arguments = ["version"]
        return find(arguments[0])(arguments[1:])
    except ConfigError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    except BatonError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left; the interpreter must not complain about it at exit
        return 141


def find(name: str) -> Callable[[list[str]], int]:
    """The function of a command. Raises ConfigError with the nearest name when there is none."""
    if name in SERVICES:
        from baton.cli import serve

        return functools.partial(serve.main, name)
    if name in OWN_COMMANDS:
        main: Callable[[list[str]], int] = import_or_explain(OWN_COMMANDS[name][0], "embedded").main
        return main
    raise ConfigError(f"unknown command {name!r}{nearest(name, SUMMARIES)} (baton --help lists all)")


def usage() -> str:
    lines = [f"  {name:<13} {summary}" for name, summary in SUMMARIES.items()]
    return "\n".join(
        [
            "usage: baton COMMAND [flags]",
            "",
            "Serves large language models with prefill and decode on separate workers.",
            "",
            *lines,
            "",
            "baton COMMAND --help shows the flags of a command, with units and defaults.",
            "Settings: flags, else BATON_<SECTION>_<NAME> variables, else --config FILE (TOML).",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
