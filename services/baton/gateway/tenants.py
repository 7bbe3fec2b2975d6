"""Who is asking: the tenant of the request that is being answered, known to everything that its task runs.

It comes from the API key; where none is asked for, everybody is one tenant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from baton.core.errors import Forbidden
from baton.gateway.auth.key import ApiKey


@dataclass(frozen=True, slots=True)
class Caller:
    """`tenant`: whose fair share the request uses. `cache_salt`: goes into the names of all blocks of its prompt, so
    that cached prefixes are found only by requests of equal salt. `key`: None where no key is asked for. `priority`:
    what is higher runs first."""

    tenant: str = ""
    cache_salt: str = ""
    key: ApiKey | None = None
    priority: int = 0

    @classmethod
    def of(cls, key: ApiKey) -> Caller:
        salt = f"group:{key.cache_group}" if key.cache_group else f"tenant:{key.tenant}"
        return cls(key.tenant, salt, key)

    def may_use(self, model: str) -> bool:
        return self.key is None or not self.key.models or model in self.key.models

    def check_model(self, model: str) -> None:
        """Raises Forbidden."""
        if not self.may_use(model):
            raise Forbidden(f"This API key does not have access to the model '{model}'.", param="model")


ANYBODY = Caller()
_current: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)


def current_caller() -> Caller:
    """Who asked for what this task does."""
    return _current.get()


@contextmanager
def acting_for(caller: Caller) -> Iterator[None]:
    """What runs inside, tasks that are started there included, is done for `caller`."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
