"""Flags of a command, made from its settings class: one per setting, plus `--config FILE`.

Flags carry text; `baton.runtime.settings.load` parses and validates it together with the file and the environment.
The help fits a screen; settings marked rare, or beyond the first eighteen, are only named there.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from dataclasses import dataclass
from typing import NoReturn

from baton.core.errors import ConfigError
from baton.runtime.settings import Settings, Spec, specs
from baton.runtime.sources import nearest

WIDTH, LINES = 100, 29
MOST_FLAGS = 18
_LEAST_MEANING = 20


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line said: field name -> text, and the settings file."""

    flags: dict[str, str]
    config: str | None


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} ({self.prog} --help shows all flags)")


def parse(command: str, summary: str, cls: type[Settings], argv: list[str]) -> Given:
    """Parse `argv`. Prints the help and exits when asked to; raises ConfigError on unknown flags."""
    shown = specs(cls)
    if any(argument in ("-h", "--help") for argument in argv):
        print(help_text(command, summary, list(shown.values())))
        sys.exit(0)
    parser = Parser(prog=f"baton {command}", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config")
    for name, spec in shown.items():
        optional_value = {"nargs": "?", "const": "true"} if spec.type_name == "bool" else {}
        parser.add_argument(spec.flag, dest=name, **optional_value)  # type: ignore[arg-type]
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].split("=", 1)[0]
        what = "flag" if flag.startswith("-") else "argument"
        raise ConfigError(f"unknown {what} {flag}{nearest(flag, ['--config', *(s.flag for s in shown.values())])}")
    values = vars(known)
    return Given({name: value for name, value in values.items() if name != "config"}, values.get("config"))


def help_text(command: str, summary: str, shown: list[Spec]) -> str:
    """As many flags as fit the screen with their meanings; the others are named."""
    texts = (_help_text(command, summary, shown, most) for most in range(MOST_FLAGS, 0, -1))
    return next((text for text in texts if text.count("\n") <= LINES), _help_text(command, summary, shown, 1))


def _help_text(command: str, summary: str, shown: list[Spec], most: int) -> str:
    common = [spec for spec in shown if not spec.rare][:most]
    others = [spec.flag for spec in shown if spec not in common]
    head = [f"usage: baton {command} [--config FILE] [flags]", "", f"{summary[0].upper()}{summary[1:]}.", ""]
    also = "also: " + " ".join(others) if others else ""
    tail = textwrap.wrap(also, WIDTH, initial_indent="  ", subsequent_indent="        ", break_on_hyphens=False)
    section = shown[0].section
    variable = f"BATON_{section.upper()}_<NAME>"
    tail += ["", f"Also keys of [{section}] in FILE (TOML) and variables {variable}: docs/configuration.md."]
    return "\n".join([*head, *_flag_lines(common, LINES - len(head) - len(tail)), *tail])


def _flag_lines(shown: list[Spec], most: int) -> list[str]:
    """The flags and their meanings, in at most `most` lines: where meanings do not fit, the last ones are cut short."""
    column = 2 + max(len(_usage_of(spec)) for spec in shown) + 2
    meanings = [textwrap.wrap(_meaning(spec), WIDTH - column, break_on_hyphens=False) for spec in shown]
    for number, spec in reversed(list(enumerate(shown))):
        if sum(map(len, meanings)) <= most:
            break
        tail = _meaning(spec).removeprefix(spec.description)
        if (width := WIDTH - column - len(tail)) >= _LEAST_MEANING:
            meanings[number] = [textwrap.shorten(spec.description, width, placeholder="…") + tail]
    return [
        f"  {_usage_of(spec) if number == 0 else ''}".ljust(column) + line
        for spec, lines in zip(shown, meanings, strict=True)
        for number, line in enumerate(lines)
    ]


def _usage_of(spec: Spec) -> str:
    if spec.choices:
        return f"{spec.flag} NAME"
    names = {"int": "N", "float": "X", "str": "TEXT", "path": "PATH", "bool": "true|false", "list of str": "A,B"}
    value = spec.unit.upper().replace(" ", "-") or names.get(spec.type_name, spec.type_name.replace(" ", "-"))
    return f"{spec.flag} {'SECONDS' if spec.unit == 's' else value}"


def _meaning(spec: Spec) -> str:
    default = default_text(spec)
    choices = ": " + "|".join(map(str, spec.choices)) if spec.choices else ""
    return spec.description + choices + (f" [{default}]" if default else "")


def default_text(spec: Spec) -> str:
    """The default as people write it; empty when there is none."""
    if spec.required:
        return "required"
    if spec.default is None or spec.default in ("", (), []):
        return ""
    if spec.unit == "bytes" and isinstance(spec.default, int):
        return _bytes_text(spec.default)
    if isinstance(spec.default, bool):
        return str(spec.default).lower()
    if isinstance(spec.default, list | tuple):
        return ",".join(map(str, spec.default))
    return f"{spec.default:g}" if isinstance(spec.default, float) else str(spec.default)


def _bytes_text(count: int) -> str:
    for shift, suffix in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift}{suffix}"
    return str(count)
