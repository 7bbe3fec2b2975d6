"""One streamed request of a load test, over the OpenAI API.

Why a client of our own: AIPerf and GuideLLM measure well, but are programs rather than libraries. AIPerf brings 137
packages, starts a group of processes joined by ZeroMQ and pins another huggingface_hub than transformers needs here;
Locust knows requests, not streams of tokens. What is left to write is small: aiohttp carries the bytes, numpy makes
the percentiles, and the client's own cost is measured in every run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec

from baton.cli.bench.outcome import Log, Outcome
from baton.cli.bench.workload import Content
from baton.core.errors import ConfigError, Unavailable

_decode = msgspec.json.Decoder().decode
_DETAIL_CHARACTERS = 200


class OpenAIClient:
    """Sends requests to one server. Make it, and use it, on one running loop; `close` it there.

    `chat` uses /v1/chat/completions. `ignore_eos` asks for answers of exactly the wanted length, an extension of the
    API that Baton, vLLM and SGLang share.
    """

    def __init__(
        self, url: str, *, model: str = "", api_key: str = "", chat: bool = False, ignore_eos: bool = True,
        timeout_s: float = 600.0,
    ) -> None:  # fmt: skip
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"the URL is {url!r}; it must begin with http:// or https://")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self.chat = chat
        self._ignore_eos = ignore_eos
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=30.0),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def find_model(self) -> str:
        """Use the first model that the server serves, unless one was named. Raises Unavailable when nobody answers."""
        if self.model:
            return self.model
        try:
            async with self._session.get(f"{self.url}/v1/models") as response:
                served = (await response.json())["data"] if response.status == 200 else []
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            raise Unavailable(f"nobody answers at {self.url}: {error or type(error).__name__}") from error
        if not served:
            raise Unavailable(f"{self.url} serves no model")
        self.model = str(served[0]["id"])
        return self.model

    def body(self, system: Content, turns: list[tuple[Content, str]], content: Content, output_tokens: int) -> bytes:
        """The request for the next answer. `turns` are the ones before: (what the user said, the answer)."""
        common = {
            "model": self.model,
            "max_tokens": output_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if self._ignore_eos else {}),
        }
        if self.chat:
            messages = [{"role": "system", "content": system}] if system else []
            for said, answer in turns:
                messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
            return msgspec.json.encode({**common, "messages": [*messages, {"role": "user", "content": content}]})
        if isinstance(content, str):
            before = [f"{said} {answer}" for said, answer in turns]
            parts = [part for part in [system, *before, content] if part]
            return msgspec.json.encode({**common, "prompt": " ".join(map(str, parts))})
        return msgspec.json.encode({**common, "prompt": [*system, *content]})

    async def ask(self, body: bytes, outcome: Outcome, log: Log, started: float) -> None:
        """Send `body` and fill `outcome`; `started` is the load's zero on the monotonic clock. Errors are its kind."""
        path = "/v1/chat/completions" if self.chat else "/v1/completions"
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(f"{self.url}{path}", data=body, headers=headers) as response:
                if response.status != 200:
                    outcome.error = f"HTTP {response.status}"
                    outcome.detail = (await response.text())[:_DETAIL_CHARACTERS]
                else:
                    await self._receive(response, outcome, log, started)
        except TimeoutError:
            outcome.error = "timeout"
        except aiohttp.ClientPayloadError as error:
            outcome.error, outcome.detail = "broken stream", str(error)[:_DETAIL_CHARACTERS]
        except (aiohttp.ClientError, OSError) as error:
            outcome.error, outcome.detail = "no connection", str(error)[:_DETAIL_CHARACTERS]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            outcome.error, outcome.detail = "unreadable answer", repr(error)[:_DETAIL_CHARACTERS]
        except asyncio.CancelledError:
            outcome.error = "unfinished"
            raise
        finally:
            outcome.end_s = time.monotonic() - started

    async def _receive(self, response: aiohttp.ClientResponse, outcome: Outcome, log: Log, started: float) -> None:
        texts: list[str] = []
        async for data, now in _events(response):
            if data == b"[DONE]":
                break
            chunk = _decode(data)
            if "error" in chunk:
                outcome.error, outcome.detail = "error in the stream", str(chunk["error"])[:_DETAIL_CHARACTERS]
                return
            if (text := self._output_of(chunk)) is not None:
                outcome.arrivals_s.append(now - started)
                texts.append(text)
                log.pieces += 1
            if usage := chunk.get("usage"):
                _note_usage(usage, outcome)
        else:
            outcome.error = "broken stream"
            return
        outcome.text = "".join(texts)
        outcome.output_tokens = outcome.output_tokens or len(outcome.arrivals_s)
        if not outcome.arrivals_s:
            outcome.error = "no output"

    def _output_of(self, chunk: dict[str, Any]) -> str | None:
        """Text of a piece that carries output; None for openings, closings and bare usage."""
        if not chunk.get("choices"):
            return None
        choice = chunk["choices"][0]
        if self.chat:
            delta = choice["delta"]
            return delta.get("content") or delta.get("reasoning_content") or ("" if delta.get("tool_calls") else None)
        # A token whose characters are still incomplete comes as a piece without text.
        text: str = choice["text"]
        return text if text or choice.get("finish_reason") is None else None


def _note_usage(usage: dict[str, Any], outcome: Outcome) -> None:
    outcome.prompt_tokens = usage["prompt_tokens"]
    outcome.output_tokens = usage["completion_tokens"]
    outcome.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[bytes, float]]:
    """Data of server-sent events, and when they arrived. Those of one read of the socket arrive together."""
    rest = b""
    async for data in response.content.iter_any():
        now = time.monotonic()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip(), now
