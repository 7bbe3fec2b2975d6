"""`BatonClient`: requests to any of several routers, with retries that the caller does not see.

A request whose router is lost goes to another one, or to the same when it is back, together with the tokens that have
come already: the caller gets every token once and in order.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

import grpc
import structlog

from baton.client import convert
from baton.client.api import (
    Completion,
    Event,
    FinishedEvent,
    Fleet,
    GenerateRequest,
    Model,
    Pooled,
    TokenLogprobs,
    TokensEvent,
    Usage,
)
from baton.client.link import RouterLink
from baton.core.errors import Cancelled, ConfigError, DeadlineExceeded, InternalError, Unavailable
from baton.rpc.convert import error_from_pb
from baton.rpc.status import from_rpc_error
from baton.rpc.tls import Tls
from baton.rpc.v1 import router_pb2 as pb

log = structlog.get_logger(__name__)

MAX_ROUTERS_TRIED = 8  # routers that one request may lose
ATTEMPTS_PER_ROUTER = 1 << 10  # apart, so that no worker takes a new placement for one by the lost router
_GRACE_S = 2.0  # a router ends requests in time by itself; this much later the client does
_UNARY_S = 10.0

T = TypeVar("T")


class BatonClient:
    """All methods on one event loop. Use as an async context manager.

    `addresses`: `host:port` or `unix:path` of routers; requests go to the one with the fewest of this client's in
    flight. `connect_s`: how long a request waits while no router can be reached; longer than a router's restart takes.
    `tls`: how this client shows who it is, and whom it believes; None = the routers speak no TLS.
    """

    def __init__(self, addresses: Sequence[str], *, connect_s: float = 60.0, tls: Tls | None = None) -> None:
        if not addresses:
            raise ConfigError("a client needs the address of at least one router")
        self._addresses = list(addresses)
        self._connect_s = connect_s
        self._tls = tls
        self._links: list[RouterLink] = []
        self._changed = asyncio.Event()
        self._turn = 0

    async def __aenter__(self) -> BatonClient:
        self._links = [RouterLink(address, self._changed.set, self._tls) for address in self._addresses]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections: the routers cancel what still runs."""
        links, self._links = self._links, []
        await asyncio.gather(*(link.close() for link in links))

    @property
    def connected(self) -> bool:
        """Whether some router can be reached now."""
        return any(link.connected for link in self._links)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Stream tokens, then one FinishedEvent.

        Closing the generator (`contextlib.aclosing`), or cancelling the task that reads it, cancels the request
        everywhere. Raises BatonError subclasses; Unavailable when no router can be reached, DeadlineExceeded.
        """
        run = _Generation(request)
        for lost in range(MAX_ROUTERS_TRIED):
            link = await self._pick(run)
            with link.submit(run.message(lost)) as inbox, run.alarm(inbox):
                while (event := await inbox.get()) is not None:
                    answer = run.take(event)
                    if answer is not None:
                        yield answer
                    if isinstance(answer, FinishedEvent):
                        return
            if run.is_over_time:
                raise run.over_time()
            if run.finish is not None:  # only the closing event was lost
                yield run.finish
                return
            log.info("router lost; the request goes on elsewhere", request_id=request.request_id, router=link.address)
        raise Unavailable(f"lost {MAX_ROUTERS_TRIED} routers while the request ran", retry_after_s=1.0)

    async def complete(self, request: GenerateRequest) -> Completion:
        """The same, collected."""
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        prompt_logprobs: list[TokenLogprobs] | None = None
        async with aclosing(self.generate(request)) as events:
            async for event in events:
                if isinstance(event, FinishedEvent):
                    return Completion(
                        request_id=request.request_id,
                        token_ids=token_ids,
                        reason=event.reason,
                        usage=event.usage,
                        stop_token_id=event.stop_token_id,
                        logprobs=logprobs or None,
                        prompt_logprobs=prompt_logprobs,
                    )
                token_ids += event.token_ids
                logprobs += event.logprobs or ()
                prompt_logprobs = event.prompt_logprobs or prompt_logprobs
        raise InternalError("the router ended the request without saying how")

    async def pool(self, request: GenerateRequest) -> Pooled:
        """The answer of a request that has `pooling`. Raises as `generate` does."""
        vector: list[float] = []
        async with aclosing(self.generate(request)) as events:
            async for event in events:
                if isinstance(event, FinishedEvent):
                    return Pooled(request.request_id, vector, event.usage)
                vector = event.vector or vector
        raise InternalError("the router ended the request without saying how")

    async def models(self) -> list[Model]:
        """What is served. Raises Unavailable when no router can be reached."""

        async def ask(link: RouterLink) -> list[Model]:
            return convert.models(await link.stub.ListModels(pb.ListModelsRequest(), timeout=_UNARY_S))

        return await self._unary(ask)

    async def fleet(self) -> Fleet:
        """One router's view of the workers. Raises Unavailable when no router can be reached."""

        async def ask(link: RouterLink) -> Fleet:
            return convert.fleet(await link.stub.Fleet(pb.FleetRequest(), timeout=_UNARY_S))

        return await self._unary(ask)

    async def _unary(self, ask: Callable[[RouterLink], Awaitable[T]]) -> T:
        link = await self._pick(None)
        try:
            return await ask(link)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def _pick(self, run: _Generation | None) -> RouterLink:
        """A connected router: one that does not drain, with the fewest requests of ours; waits for one."""
        patience_s = self._connect_s if run is not None else min(self._connect_s, _UNARY_S)
        give_up_at = asyncio.get_running_loop().time() + patience_s
        if run is not None and run.deadline_at is not None:
            give_up_at = min(give_up_at, run.deadline_at)
        while True:
            if not self._links:
                raise Cancelled("the client is closed")
            connected = [link for link in self._links if link.connected]
            if connected:
                self._turn += 1
                start = self._turn % len(connected)
                turned = connected[start:] + connected[:start]
                return min(turned, key=lambda link: (not link.serving, link.in_flight))
            self._changed.clear()
            try:
                async with asyncio.timeout_at(give_up_at):
                    await self._changed.wait()
            except TimeoutError:
                if run is not None and run.is_over_time:
                    raise run.over_time() from None
                problems = [link.problem for link in self._links if link.problem] or self._addresses
                message = f"no router can be reached: {', '.join(problems)}"
                raise Unavailable(message, retry_after_s=1.0) from None


class _Generation:
    """What one request has got so far, over all routers."""

    def __init__(self, request: GenerateRequest) -> None:
        self._loop = asyncio.get_running_loop()
        self._request = request
        # A seed from here, so that another router draws the same tokens.
        self._sampling = (
            request.sampling if request.sampling.seed else replace(request.sampling, seed=secrets.randbits(63) or 1)
        )
        self._emitted: list[int] = []
        self.deadline_at = None if request.deadline_s is None else self._loop.time() + request.deadline_s
        self.finish: FinishedEvent | None = None  # known with the last tokens, before the closing event comes

    @property
    def is_over_time(self) -> bool:
        return self.deadline_at is not None and self._loop.time() >= self.deadline_at

    def over_time(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the request's time, {self._request.deadline_s:g} s, is over")

    def message(self, lost_routers: int) -> pb.GenerateRequest:
        remaining_s = None if self.deadline_at is None else self.deadline_at - self._loop.time()
        return convert.generate_message(
            self._request,
            self._sampling,
            emitted=self._emitted,
            remaining_s=remaining_s,
            first_attempt=lost_routers * ATTEMPTS_PER_ROUTER,
        )

    def alarm(self, inbox: asyncio.Queue[pb.GenerateEvent | None]) -> _Alarm:
        """Wakes the reader when a router does not end the request in time."""
        return _Alarm(self._loop, self.deadline_at, inbox)

    def take(self, event: pb.GenerateEvent) -> Event | None:
        """The caller's event. Raises the request's error."""
        match event.WhichOneof("event"):
            case "tokens":
                return self._tokens(event.tokens)
            case "finished":
                return convert.finished_event(event.finished)
            case "error":
                raise error_from_pb(event.error)
        return None

    def _tokens(self, message: pb.Tokens) -> TokensEvent:
        tokens = convert.tokens_event(message)
        self._emitted += tokens.token_ids
        if tokens.prompt_logprobs is not None:
            self._sampling = replace(self._sampling, prompt_logprobs=None)  # they come once
        if message.finish:
            reason = convert.FINISH[message.finish]
            usage = Usage(prompt_tokens=len(self._request.prompt_token_ids), completion_tokens=len(self._emitted))
            stop_token_id = tokens.token_ids[-1] if reason == "stop" and tokens.token_ids else None
            self.finish = FinishedEvent(reason, usage, stop_token_id)
        return tokens


class _Alarm:
    """While entered: puts None into an inbox a while after the deadline."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, deadline_at: float | None, inbox: asyncio.Queue[pb.GenerateEvent | None]
    ) -> None:
        self._loop = loop
        self._deadline_at = deadline_at
        self._inbox = inbox
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._deadline_at is not None:
            self._timer = self._loop.call_at(self._deadline_at + _GRACE_S, self._inbox.put_nowait, None)

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
