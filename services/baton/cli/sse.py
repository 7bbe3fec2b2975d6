"""Server-sent events of a chat completion, as `baton chat` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from baton.core.errors import BatonError, Unavailable

# Between two tokens there may be a long queue, but a dead server must be noticed at last.
_TIMEOUT = httpx.Timeout(connect=5.0, read=120.0, write=10.0, pool=5.0)


class ChatError(BatonError):
    """The gateway refused, or broke off. Its message is meant for people."""

    code = "chat"


def open_client(url: str, api_key: str = "") -> httpx.Client:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=_TIMEOUT, trust_env=False)


def first_model(client: httpx.Client) -> str:
    """The name of the first model that the server serves. Raises Unavailable or ChatError."""
    try:
        response = client.get("/v1/models")
    except httpx.HTTPError as error:
        raise Unavailable(f"nobody answers at {client.base_url}: {error}; is `baton up` running?") from error
    if response.status_code != httpx.codes.OK:
        raise ChatError(_message(response.status_code, response.content))
    models = response.json().get("data") or []
    if not models:
        raise Unavailable(f"{client.base_url} serves no model yet")
    return str(models[0]["id"])


def stream_chat(client: httpx.Client, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Chunks of one streamed answer, as the server sends them. Raises ChatError when it refuses or breaks off."""
    request = {**body, "stream": True, "stream_options": {"include_usage": True}}
    finished = False
    try:
        with client.stream("POST", "/v1/chat/completions", json=request) as response:
            if response.status_code != httpx.codes.OK:
                raise ChatError(_message(response.status_code, response.read()))
            for line in response.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    finished = True
                    break
                chunk = json.loads(data)
                if "error" in chunk:
                    raise ChatError(str(chunk["error"].get("message", chunk["error"])))
                yield chunk
    except httpx.HTTPError as error:
        raise ChatError(f"the connection to {client.base_url} broke: {error or type(error).__name__}") from error
    if not finished:
        raise ChatError("the answer ended before its end mark: the server went away")


def _message(status: int, content: bytes) -> str:
    try:
        return f"{json.loads(content)['error']['message']} (HTTP {status})"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}: {content[:200].decode(errors='replace')}"
