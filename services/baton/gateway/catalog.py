"""What the routers say about the model and the fleet, remembered so that no request waits for it."""

from __future__ import annotations

import asyncio
import hashlib

import structlog

from baton.client import Fleet, Model
from baton.core.errors import BatonError, Unavailable
from baton.gateway.generation import RouterClient

log = structlog.get_logger(__name__)

_REFRESH_S = 5.0
_ASK_S = 2.0


class Catalog:
    """The model `name` as the routers know it. `run` keeps it fresh; a router that is away leaves the last answer."""

    def __init__(self, client: RouterClient, name: str) -> None:
        self.name = name
        self.model: Model | None = None
        self._client = client

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            try:
                await self.refresh()
            except BatonError as error:
                log.debug("routers do not answer", error=error.message)
            await asyncio.sleep(_REFRESH_S if self.model is not None else _ASK_S)

    async def refresh(self) -> Model | None:
        """Ask now. None: the routers do not know the model. Raises BatonError when no router answers in time."""
        models = {model.name: model for model in await self._ask_models()}
        found = models.get(self.name)
        if found is not None:
            self.model = found
        return found

    async def fleet(self) -> Fleet:
        """A router's view of its workers, asked now. Raises BatonError when no router answers in time."""
        try:
            async with asyncio.timeout(_ASK_S):
                return await self._client.fleet()
        except TimeoutError as error:
            raise Unavailable(f"no router answered within {_ASK_S:g} s") from error

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: changes with what is served under the name."""
        revision = self.model.revision if self.model is not None else ""
        return "fp_" + hashlib.sha256(f"{self.name}\0{revision}".encode()).hexdigest()[:10]

    async def _ask_models(self) -> list[Model]:
        try:
            async with asyncio.timeout(_ASK_S):
                return await self._client.models()
        except TimeoutError as error:
            raise Unavailable(f"no router answered within {_ASK_S:g} s") from error
