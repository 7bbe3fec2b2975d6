"""What all APIs of the gateway share: the model, its names and limits, and the way to the routers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from baton.core.errors import InvalidRequest, ModelNotFound, PromptTooLong, Unavailable
from baton.gateway.catalog import Catalog
from baton.gateway.drain import DrainFlag
from baton.gateway.generation import Generator, RouterClient
from baton.gateway.http.context import note
from baton.gateway.jobs import Jobs
from baton.gateway.parsers.registry import Parsers
from baton.gateway.settings import GatewaySettings
from baton.gateway.store import open_records
from baton.gateway.tenants import current_caller
from baton.gateway.text_model import TextModel
from baton.gateway.traces import understanding

_INLINE_BYTES = 16 << 10  # parsing and tokenizing this much keeps the event loop for some 10 ms
_THREADS = 2

T = TypeVar("T")


class Service:
    """One served model behind any number of APIs."""

    def __init__(
        self,
        client: RouterClient,
        model: TextModel,
        name: str,
        settings: GatewaySettings,
        drain: DrainFlag | None = None,
    ) -> None:
        self.settings = settings
        self.client = client
        self.model = model
        template = model.template.source if model.template is not None else ""
        self.parsers = Parsers.choose(settings.tool_parser, settings.reasoning_parser, template)
        self.catalog = Catalog(client, name)
        self.generator = Generator(client, model, name, settings.request_timeout_s)
        self._names = (name, *(alias for alias in settings.aliases if alias != name))
        self.started_at = int(time.time())
        self.drain = drain or DrainFlag()
        self.records = open_records(settings.redis_url, settings.responses_memory_bytes)
        self.jobs = Jobs()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="requests")

    async def close(self) -> None:
        """End what goes on without a request."""
        await self.jobs.stop()
        await self.records.close()
        self._threads.shutdown(wait=False)

    async def prepare(self, body: bytes, work: Callable[[bytes], T]) -> T:
        """`work(body)`: parsing, templates, tokenizing. Large bodies go to a thread; few of them run at a time."""
        with understanding():
            return await self.run(len(body), lambda: work(body))

    async def run(self, size_bytes: int, work: Callable[[], T]) -> T:
        """`work()`, which computes with `size_bytes` of text: as `prepare`."""
        if size_bytes <= _INLINE_BYTES:
            return work()
        context = copy_context()  # whose request it is
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: context.run(work))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model that whoever asks may use."""
        return tuple(name for name in self._names if current_caller().may_use(name))

    def check_model(self, name: str) -> None:
        """Raises ModelNotFound when `name` is not served here, and Forbidden when it is not for whoever asks."""
        if name not in self._names:
            known = ", ".join(f"'{known}'" for known in self.names) or "none for this API key"
            raise ModelNotFound(f"The model '{name[:200]}' does not exist; this server has {known}.", param="model")
        note(model=name)
        current_caller().check_model(name)

    def context_tokens(self) -> int:
        """Longest prompt + output. Raises Unavailable while neither the checkpoint nor a router has said it."""
        reported = self.catalog.model.max_context_tokens if self.catalog.model is not None else 0
        limits = [limit for limit in (self.model.context_tokens, reported) if limit]
        if not limits:
            raise Unavailable("no router has reported the model's context length yet", retry_after_s=1.0)
        return min(limits)

    def room(self, prompt_token_ids: Sequence[int], param: str) -> int:
        """Tokens that the context leaves for the output; at least 1. Raises InvalidRequest, PromptTooLong."""
        length = len(prompt_token_ids)
        if length == 0:
            raise InvalidRequest("The prompt is empty: it must have at least one token.", param=param)
        limit = self.context_tokens()
        if length >= limit:
            raise PromptTooLong(
                f"The prompt has {length} tokens, but this model's maximum context length is {limit} tokens, "
                "of which the output needs at least one.",
                param=param,
            )
        return limit - length
