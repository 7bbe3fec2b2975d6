"""`BatonClient`: requests to any of several routers, with retries that the caller does not see."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from baton.client.api import Completion, Event, Fleet, GenerateRequest, Model


class BatonClient:
    """All methods on one event loop. Use as an async context manager."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = list(addresses)

    async def __aenter__(self) -> BatonClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is running and close all connections."""

    @property
    def connected(self) -> bool:
        """Whether some router can be reached now."""
        return bool(self._addresses)

    def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """Stream tokens and one FinishedEvent. Closing the iterator, or cancelling the task that reads it, cancels the
        request everywhere. Raises BatonError subclasses."""
        raise NotImplementedError

    async def complete(self, request: GenerateRequest) -> Completion:
        """The same, collected."""
        raise NotImplementedError

    async def models(self) -> list[Model]:
        raise NotImplementedError

    async def fleet(self) -> Fleet:
        raise NotImplementedError
