"""One API key: what it allows, and how it is recognised without being stored.

    sk-baton-3f9a0c17e2-8d0f...                  "sk-baton-", the id (public), "-", the secret (192 random bits)

Stored is a keyed BLAKE2b of the secret, with a random salt as the key. A slow hash, as passwords need it, would protect
nothing here: nobody searches 192 random bits, and every request pays for the check.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from typing import Annotated

import msgspec

_PREFIX = "sk-baton-"
_ID_BYTES, _SECRET_BYTES, _SALT_BYTES = 5, 24, 16
_SHAPE = re.compile(rf"{_PREFIX}([0-9a-f]{{{2 * _ID_BYTES}}})-([0-9a-f]{{{2 * _SECRET_BYTES}}})")
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Count = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a key allows. Limits of 0 are none.

    `models`: names that it may ask for; empty = all. `cache_group`: tenants of one group find each other's cached
    prefixes; empty = a tenant finds its own only. Times are seconds since 1970; `expires_at` 0 = never.
    """

    tenant: Name
    label: str = ""
    models: tuple[str, ...] = ()
    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    concurrent: Count = 0
    monthly_tokens: Count = 0
    cache_group: Name | None = None
    expires_at: Count = 0

    @property
    def is_limited(self) -> bool:
        return any((self.requests_per_minute, self.tokens_per_minute, self.concurrent, self.monthly_tokens))


class ApiKey(KeyTerms, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is stored of a key."""

    id: str
    salt: str
    digest: str
    created_at: int

    def opens_with(self, secret: str) -> bool:
        """Whether `secret` is this key's; takes the same time whatever is wrong."""
        return hmac.compare_digest(_digest(secret, self.salt), self.digest)


def create(terms: KeyTerms) -> tuple[ApiKey, str]:
    """A new key, and its text, which nobody can find out again. Raises msgspec.ValidationError."""
    id, secret, salt = (secrets.token_hex(size) for size in (_ID_BYTES, _SECRET_BYTES, _SALT_BYTES))
    made = {"id": id, "salt": salt, "digest": _digest(secret, salt), "created_at": int(time.time())}
    return msgspec.convert({**msgspec.structs.asdict(terms), **made}, ApiKey), f"{_PREFIX}{id}-{secret}"


def split(text: str) -> tuple[str, str] | None:
    """(id, secret) of a key's text; None when it does not look like one of ours."""
    found = _SHAPE.fullmatch(text)
    return (found[1], found[2]) if found else None


def _digest(secret: str, salt: str) -> str:
    return hashlib.blake2b(
        secret.encode(), key=bytes.fromhex(salt), digest_size=32, person=b"baton-api-key"
    ).hexdigest()
