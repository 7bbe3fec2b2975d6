"""`baton keys create|list|revoke`: the API keys of the gateways, in a file or in Redis.

Where they are is the gateway's setting `api_keys`, taken from the same places: flag, variable, settings file. Gateways
that run see every change within a second.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec

from baton.cli.flags import Parser
from baton.core.errors import ConfigError
from baton.gateway.auth.key import ApiKey, KeyTerms, create
from baton.gateway.auth.key_file import KeyFile
from baton.gateway.auth.ring import IN_REDIS
from baton.gateway.settings import GatewaySettings
from baton.runtime.settings import load

_DAY_S = 86_400
_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent", "monthly_tokens")


class Keys(Protocol):
    """Where keys are kept. Raises BatonError."""

    async def read(self) -> Sequence[ApiKey]: ...

    async def add(self, key: ApiKey) -> None: ...

    async def remove(self, id: str) -> bool: ...


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    given = {"api_keys": arguments.api_keys, "redis_url": arguments.redis_url}
    settings = load(GatewaySettings, flags=given, config=arguments.config)
    return asyncio.run(_run(arguments, settings))


async def _run(arguments: argparse.Namespace, settings: GatewaySettings) -> int:
    async with _keys(settings) as keys:
        if arguments.action == "create":
            await _create(keys, arguments)
        elif arguments.action == "list":
            _show(await keys.read())
        elif not await keys.remove(arguments.id):
            raise ConfigError(f"there is no API key {arguments.id!r} (baton keys list shows all)")
    return 0


async def _create(keys: Keys, arguments: argparse.Namespace) -> None:
    terms = KeyTerms(
        tenant=arguments.tenant,
        label=arguments.label,
        models=tuple(name for name in arguments.models.split(",") if name),
        cache_group=arguments.cache_group,
        expires_at=int(time.time() + arguments.days * _DAY_S) if arguments.days else 0,
        **{limit: getattr(arguments, limit) for limit in _LIMITS},
    )
    try:
        key, text = create(terms)
    except msgspec.ValidationError as error:
        raise ConfigError(f"such a key cannot be: {error}") from error
    await keys.add(key)
    print(text)


def _show(keys: Sequence[ApiKey]) -> None:
    rows = [("ID", "TENANT", "LABEL", "MODELS", "LIMITS", "CACHE", "CREATED", "EXPIRES"), *map(_row, keys)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(key: ApiKey) -> tuple[str, ...]:
    units = dict(zip(_LIMITS, ("requests/min", "tokens/min", "at once", "tokens/month"), strict=True))
    limits = [f"{getattr(key, limit)} {unit}" for limit, unit in units.items() if getattr(key, limit)]
    return (
        key.id,
        key.tenant,
        key.label or "-",
        ",".join(key.models) or "all",
        ", ".join(limits) or "none",
        key.cache_group or "own",
        _day(key.created_at),
        _day(key.expires_at) if key.expires_at else "never",
    )


def _day(when: int) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d")


@asynccontextmanager
async def _keys(settings: GatewaySettings) -> AsyncIterator[Keys]:
    if not settings.api_keys:
        raise ConfigError("where are the keys? --api-keys FILE, --api-keys redis, or BATON_GATEWAY_API_KEYS")
    if settings.api_keys != IN_REDIS:
        yield _InFile(Path(settings.api_keys))
        return
    if not settings.redis_url:
        raise ConfigError("keys in Redis need --redis-url or BATON_GATEWAY_REDIS_URL")
    from baton.gateway.auth.key_store import KeyStore

    store = KeyStore(settings.redis_url)
    try:
        yield store
    finally:
        await store.close()


class _InFile:
    def __init__(self, path: Path) -> None:
        self._file = KeyFile(path)

    async def read(self) -> Sequence[ApiKey]:
        return self._file.read()

    async def add(self, key: ApiKey) -> None:
        self._file.add(key)

    async def remove(self, id: str) -> bool:
        return self._file.remove(id)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="baton keys", allow_abbrev=False, description="API keys of the gateways.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="create|list|revoke", parser_class=Parser)
    made = actions.add_parser("create", help="make a key and print it: it cannot be shown again", allow_abbrev=False)
    made.add_argument("--tenant", required=True, metavar="NAME", help="whose requests these are")
    made.add_argument("--label", default="", metavar="TEXT", help="what it is for, in lists")
    made.add_argument("--models", default="", metavar="A,B", help="models that it may ask for [all]")
    for limit, meaning in zip(
        _LIMITS,
        ("requests in a minute", "tokens in a minute, prompts and answers", "requests at once",
         "tokens in a calendar month (UTC)"),
        strict=True,
    ):  # fmt: skip
        made.add_argument(
            f"--{limit.replace('_', '-')}", type=int, default=0, metavar="N", help=f"{meaning} [no limit]"
        )
    made.add_argument("--cache-group", metavar="NAME", help="tenants of a group share cached prefixes [its own only]")
    made.add_argument("--days", type=float, default=0, metavar="N", help="days until it expires [never]")
    listed = actions.add_parser("list", help="show all keys, without their secrets", allow_abbrev=False)
    revoked = actions.add_parser("revoke", help="remove a key: it opens nothing any more", allow_abbrev=False)
    revoked.add_argument("id", metavar="ID", help="the key's id: the first part of the key, and in the list")
    for action in (made, listed, revoked):
        action.add_argument("--api-keys", metavar="FILE|redis", help="as the gateway's setting")
        action.add_argument("--redis-url", metavar="URL", help="as the gateway's setting")
        action.add_argument("--config", metavar="FILE", help="settings file (TOML)")
    return parser
