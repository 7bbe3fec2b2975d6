"""Settings of a service: frozen once validated, each with a unit, a default and a reason.

    class RouterSettings(ServiceSettings):
        section = "router"
        listen: str = setting("127.0.0.1:7000", "address of the gRPC server", unit="host:port")

    settings = load(RouterSettings, flags={"listen": "0.0.0.0:7000"})

Values come from a TOML file (table `[router]`), the environment (`BATON_ROUTER_LISTEN`) and flags (`--listen`), in
rising priority. Where they come from and how unknown names are refused is in `baton.runtime.sources`; this module knows
how settings are declared and validated.
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from baton.core.errors import ConfigError
from baton.runtime import environ, sources
from baton.runtime.sources import SECTIONS, Given, Key

_BYTE_SUFFIXES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Settings(BaseModel):
    """Base of all settings. A subclass names its `section` and declares every field with `setting`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    section: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        section = getattr(cls, "section", None)
        if section is not None and section not in SECTIONS:
            raise TypeError(f"{cls.__name__}.section is {section!r}; it must be one of {', '.join(SECTIONS)}")

    @field_validator("*", mode="before")
    @classmethod
    def _parse(cls, value: Any, info: ValidationInfo) -> Any:
        spec = spec_of(cls, str(info.field_name))
        if isinstance(value, str) and spec.unit == "bytes":
            return parse_bytes(value)
        if isinstance(value, str) and spec.is_list:
            return [item.strip() for item in value.split(",") if item.strip()]
        if isinstance(value, bool) and spec.type_name != "bool":
            raise ValueError(f"a value of type {spec.type_name} is expected, not a boolean")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _choose(cls, value: Any, info: ValidationInfo) -> Any:
        choices = spec_of(cls, str(info.field_name)).choices
        for item in value if isinstance(value, list | tuple) else [value]:
            if choices and item not in choices:
                raise ValueError(f"it must be one of {', '.join(map(str, choices))}")
        return value


def setting(
    default: Any,
    description: str,
    *,
    unit: str = "",
    ge: float | None = None,
    le: float | None = None,
    gt: float | None = None,
    choices: Sequence[Any] = (),
    rare: bool = False,
) -> Any:
    """Declare one setting.

    `default`: its value when nothing is given; `...` makes it required. `unit`: "s", "tokens", "host:port", ...;
    with "bytes", text such as 256MiB is understood too. `ge`, `le`, `gt` bound numbers. `choices`: all allowed values.
    `rare`: left out of `--help`, still a flag and in docs/configuration.md.
    """
    extra: dict[str, Any] = {"unit": unit, "choices": list(choices), "rare": rare}
    return Field(default, description=description, ge=ge, le=le, gt=gt, json_schema_extra=extra)


class ServiceSettings(Settings):
    """What every service has."""

    log_level: str = setting("info", "least severe level that is logged", choices=("debug", "info", "warning", "error"))
    log_format: str = setting("console", "console for people, json for log collectors", choices=("console", "json"))
    metrics_host: str = setting("127.0.0.1", "address of the Prometheus endpoint", rare=True)
    metrics_port: int = setting(0, "port of the Prometheus endpoint /metrics; 0 = none", ge=0, le=65535)
    tls_cert: str = setting("", "certificate shown to other services (PEM); empty = no TLS between them", rare=True)
    tls_key: str = setting("", "its key (PEM)", rare=True)
    tls_ca: str = setting("", "CA that certificates of other services must be of (PEM)", rare=True)
    tls_server_name: str = setting("", "name that they must carry; empty = the host of their address", rare=True)
    trace_endpoint: str = setting(
        "", "OpenTelemetry collector that gets traces (OTLP over HTTP), such as http://127.0.0.1:4318; empty = none",
        unit="URL", rare=True,
    )  # fmt: skip
    trace_ratio: float = setting(
        1.0, "share of requests that is traced, of those whose caller has not decided it", ge=0, le=1, rare=True
    )
    redis_url: str = setting("", "Redis or Valkey: redis://host:6379/0 or unix:///path; empty = none", unit="URL")


@dataclass(frozen=True, slots=True)
class Spec:
    """One declared setting, for flags, documentation and messages. `default` is None when `required`."""

    name: str
    section: str
    type_name: str
    unit: str
    default: Any
    required: bool
    description: str
    choices: tuple[Any, ...]
    rare: bool
    is_list: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        return f"BATON_{self.section}_{self.name}".upper()


_specs: dict[type[Settings], dict[str, Spec]] = {}


def specs(cls: type[Settings]) -> dict[str, Spec]:
    """All settings of a class by field name, in order of declaration, those of its own class first."""
    if cls not in _specs:
        own = inspect.get_annotations(cls)
        order = sorted(cls.model_fields, key=lambda name: name not in own)
        _specs[cls] = {name: _describe(cls, name) for name in order}
    return _specs[cls]


def spec_of(cls: type[Settings], name: str) -> Spec:
    return specs(cls)[name]


def _describe(cls: type[Settings], name: str) -> Spec:
    field = cls.model_fields[name]
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    kind, is_list = _type_name(field.annotation)
    return Spec(
        name=name,
        section=getattr(cls, "section", ""),
        type_name=kind,
        unit=str(extra.get("unit", "")),
        default=None if field.is_required() else field.get_default(call_default_factory=True),
        required=field.is_required(),
        description=field.description or "",
        choices=tuple(typing.cast("list[Any]", extra.get("choices", []))),
        rare=bool(extra.get("rare", False)),
        is_list=is_list,
    )


def _type_name(annotation: Any) -> tuple[str, bool]:
    """What people call a type, and whether it is a list: (`int`, False) for `int | None`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _type_name(next(arg for arg in args if arg is not type(None)))
    if origin in (list, tuple, set, frozenset):
        return f"list of {_type_name(args[0])[0]}", True
    if annotation is Path:
        return "path", False
    return getattr(annotation, "__name__", str(annotation)), False


T = TypeVar("T", bound=Settings)


def load(
    cls: type[T],
    *,
    flags: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> T:
    """Read, merge and validate the settings of one section.

    `flags`: field name -> value or its text; None values count as not given. `config`: a TOML file, by default the one
    that BATON_CONFIG names. `environment`: the process's by default. Raises ConfigError, which names the source of each
    bad value.
    """
    env = environ.variables() if environment is None else environment
    keys = {spec.name: Key(spec.name, spec.env, spec.flag) for spec in specs(cls).values()}
    given = sources.gather(cls.section, keys, flags=flags or {}, config=config, environment=env)
    try:
        return cls(**{name: item.value for name, item in given.items()})
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(cls, given, problem) for problem in error.errors())) from None


def _explain(cls: type[Settings], given: Mapping[str, Given], problem: Any) -> str:
    """One line: where the value came from, what it was, what would be right."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not problem["loc"]:
        return f"section [{cls.section}]: {message}"
    spec = spec_of(cls, str(problem["loc"][0]))
    if spec.name not in given:
        return f"{spec.flag} ({spec.env}) is required: {spec.description}"
    item = given[spec.name]
    unit = f" ({spec.unit})" if spec.unit else ""
    nearest = difflib.get_close_matches(str(item.value), [str(choice) for choice in spec.choices], n=1)
    guess = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{item.source}: bad value {item.value!r}: {message}{unit}{guess}"


def parse_bytes(text: str) -> int:
    """`268435456`, `256MiB`, `256M` or `0.25GiB` in bytes; suffixes are powers of 1024. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError("a number of bytes is expected, such as 268435456 or 256MiB")
    return int(float(match[1]) * _BYTE_SUFFIXES[match[2].lower()])
