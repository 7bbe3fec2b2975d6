"""A server that speaks just enough of the OpenAI API, with latencies that a test knows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeServer:
    """`first_s(n)` before the first token of request n, `gap_s` before each other; `fault(n)` says what goes wrong.

    No answer begins before `together` requests have been there at once.
    """

    first_s: Callable[[int], float] = lambda n: 0.0
    gap_s: float = 0.0
    fault: Callable[[int], str] = lambda n: ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    cached: int = 0
    running: int = 0
    most_running: int = 0
    url: str = ""
    together: int = 1
    _begin: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        number = len(self.bodies)
        body = await request.json()
        self.bodies.append(body)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if self.running >= self.together:
            self._begin.set()
        try:
            await self._begin.wait()
            return await self._answer(request, body, self.fault(number), self.first_s(number))
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any], fault: str, first_s: float) -> Any:
        if fault.isdigit():
            return web.json_response({"error": {"message": "no"}}, status=int(fault))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        tokens = body["max_tokens"]
        for token in range(tokens):
            delay_s = self.gap_s if token else first_s
            if delay_s:
                await asyncio.sleep(delay_s)
            if fault == "error" and token == 1:
                await _send(response, {"error": {"message": "the worker went away"}})
                return response
            if fault == "cut" and token == 1:
                request.transport.close()
                return response
            await _send(response, {"choices": [self._piece(body, f" w{token}")]})
        await _send(response, {"choices": [{"index": 0, "text": "", "delta": {}, "finish_reason": "length"}]})
        prompt_tokens = _prompt_tokens(body)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
        if self.cached:
            usage["prompt_tokens_details"] = {"cached_tokens": min(self.cached, prompt_tokens)}
        await _send(response, {"choices": [], "usage": usage})
        if fault != "no end":
            await response.write(b"data: [DONE]\n\n")
        return response

    @staticmethod
    def _piece(body: dict[str, Any], text: str) -> dict[str, Any]:
        shape = {"delta": {"content": text}} if "messages" in body else {"text": text}
        return {"index": 0, "finish_reason": None, **shape}


def _prompt_tokens(body: dict[str, Any]) -> int:
    if "messages" in body:
        return sum(len(message["content"].split()) for message in body["messages"])
    prompt = body["prompt"]
    return len(prompt) if isinstance(prompt, list) else len(prompt.split())


async def _send(response: web.StreamResponse, body: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")


async def _models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "fake-model"}]})


def _application(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.Application:
    application = web.Application(client_max_size=64 << 20)
    application.add_routes([
        web.get("/v1/models", _models),
        web.post("/v1/completions", answer),
        web.post("/v1/chat/completions", answer),
    ])  # fmt: skip
    return application


@asynccontextmanager
async def serving(server: FakeServer) -> AsyncIterator[FakeServer]:
    """Run the server on a free loopback port."""
    runner = web.AppRunner(_application(server.answer), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()
