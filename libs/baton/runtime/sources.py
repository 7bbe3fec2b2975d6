"""Where settings come from: a TOML file, the environment, flags. Later ones win; unknown names are refused.

This module knows names, not types: it hands on raw values, each with a label that says where it was given.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.core.errors import ConfigError

SECTIONS = ("gateway", "router", "worker", "kv_agent", "operator", "up")
PREFIX = "BATON_"
CONFIG_VARIABLE = "BATON_CONFIG"
# Variables with our prefix that are no settings, and what reads them.
OTHER_VARIABLES = {
    CONFIG_VARIABLE: "path of the TOML file with settings, as --config",
    "BATON_CONFORMANCE_DIR": "tests: folder with recorded requests of other servers",
    "BATON_SYSTEM_PACKAGES": "make: 1 = use the system's packages, such as an image's own torch",
}
# A Service named `baton-router` makes Kubernetes set BATON_ROUTER_SERVICE_HOST, BATON_ROUTER_PORT=tcp://... and more.
_SERVICE_LINK = re.compile(r"BATON_.*(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Key:
    """The three names of one setting: in the file, in the environment, on the command line."""

    name: str
    env: str
    flag: str


@dataclass(frozen=True, slots=True)
class Given:
    """A raw value and where it was given, as a person would say it."""

    value: Any
    source: str


def gather(
    section: str,
    keys: Mapping[str, Key],
    *,
    flags: Mapping[str, Any],
    config: str | Path | None,
    environment: Mapping[str, str],
) -> dict[str, Given]:
    """All given values of `section` by setting name, the highest priority only. Raises ConfigError on unknown names."""
    path = config if config is not None else environment.get(CONFIG_VARIABLE) or None
    return {
        **(from_file(section, keys, Path(path)) if path is not None else {}),
        **from_environment(section, keys, environment),
        **from_flags(keys, flags),
    }


def from_file(section: str, keys: Mapping[str, Key], path: Path) -> dict[str, Given]:
    tables = read_file(path)
    table = tables.get(section, {})
    for name in table:
        if name not in keys:
            raise ConfigError(f"{path}: unknown key {name!r} in [{section}]{nearest(name, keys)}")
    return {name: Given(value, f"{path}: key {section}.{name}") for name, value in table.items()}


def read_file(path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a settings file, by section. Raises ConfigError when it cannot be read or has unknown sections."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for name, table in content.items():
        if name not in SECTIONS:
            raise ConfigError(
                f"{path}: unknown section [{name}]{nearest(name, SECTIONS)}; known: {', '.join(SECTIONS)}"
            )
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} must be a table, written as [{name}]")
    return content


def from_environment(section: str, keys: Mapping[str, Key], environment: Mapping[str, str]) -> dict[str, Given]:
    """Variables of `section`. Those of other sections are left to their services; what belongs to none is refused."""
    by_env = {key.env: key for key in keys.values()}
    given = {}
    for variable, value in environment.items():
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES or _is_service_link(variable, value):
            continue
        if variable in by_env:
            given[by_env[variable].name] = Given(value, f"environment variable {variable}")
        elif _section_of(variable) == section:
            raise ConfigError(f"unknown environment variable {variable}{nearest(variable, by_env)}")
        elif _section_of(variable) is None:
            raise ConfigError(
                f"unknown environment variable {variable}{nearest(variable, [*by_env, *OTHER_VARIABLES])}"
            )
    return given


def from_flags(keys: Mapping[str, Key], flags: Mapping[str, Any]) -> dict[str, Given]:
    """Flags by field name; those that are None were not given."""
    given = {}
    for name, value in flags.items():
        if name not in keys:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"unknown flag {flag}{nearest(flag, [key.flag for key in keys.values()])}")
        if value is not None:
            given[name] = Given(value, f"flag {keys[name].flag}")
    return given


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing when no known name resembles `name`."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]}?" if match else ""


def _section_of(variable: str) -> str | None:
    rest = variable.removeprefix(PREFIX)
    return next((section for section in SECTIONS if rest.startswith(section.upper() + "_")), None)


def _is_service_link(variable: str, value: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(variable) or (variable.endswith("_PORT") and _SERVICE_LINK_VALUE.match(value)))
