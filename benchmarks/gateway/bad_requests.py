"""Bad requests of many kinds, each an exchange on a socket of its own. What is sent is made here, unvalidated."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/api/chat", "/api/generate", "/tokenize",
         "/v1/responses", "/v1/embeddings")  # fmt: skip
FIELDS = ("model", "messages", "prompt", "max_tokens", "temperature", "stop", "n", "tools", "logit_bias", "stream",
          "response_format", "options", "format", "input", "seed", "top_p", "system")  # fmt: skip
ANSWER_S = 3.0

Address = tuple[str, int]
Attack = Callable[[Address, random.Random], Awaitable[int]]


def wrong_value(draw: random.Random) -> object:
    return draw.choice([None, True, -1, 1 << 63, 1e308, "x" * 2_000, [], {}, [[[]]], {"a": {"b": [1, "2"]}}, "\u0000",
                        [1] * 500, {"type": "object"}, -0.0, 0.1, "NaN"])  # fmt: skip


def good_body(draw: random.Random) -> dict[str, object]:
    return {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "prompt": "hello", "max_tokens": 4,
            "input": "hello"}  # fmt: skip


def head(path: str, length: int, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


async def exchange(address: Address, data: bytes, *, half_close: bool = False) -> int:
    """Send, read the whole answer, and return its status; 0: the connection was closed without one."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(ANSWER_S):
            writer.write(data)
            await writer.drain()
            if half_close:
                writer.write_eof()
            line = await reader.readline()
            while await reader.read(1 << 16):
                pass
        return int(line.split()[1]) if line else 0
    except (ConnectionError, TimeoutError, ValueError):
        return 0
    finally:
        writer.transport.abort()  # what was not taken would keep it open


async def wrong_types(address: Address, draw: random.Random) -> int:
    body = good_body(draw) | {draw.choice(FIELDS): wrong_value(draw) for _ in range(draw.randint(1, 4))}
    body = body | {"stream": False} if isinstance(body.get("stream"), bool) else body
    data = json.dumps(body, allow_nan=False).encode()
    return await exchange(address, head(draw.choice(PATHS), len(data), "connection: close") + data)


async def raw_body(address: Address, draw: random.Random, data: bytes) -> int:
    return await exchange(address, head(draw.choice(PATHS), len(data), "connection: close") + data)


async def deep_nesting(address: Address, draw: random.Random) -> int:
    depth = draw.choice([200, 1_000, 50_000])
    open, close = draw.choice([("[", "]"), ('{"a":', "}")])
    text = '{"model": "fake", "messages": ' + open * depth + "1" + close * depth + "}"
    return await raw_body(address, draw, text.encode())


async def huge_numbers(address: Address, draw: random.Random) -> int:
    number = draw.choice(["1e999", "9" * 5_000, "-" + "9" * 400, "0." + "1" * 5_000, "1E+" + "9" * 50])
    return await raw_body(address, draw, f'{{"model": "fake", "prompt": "x", "max_tokens": {number}}}'.encode())


async def invalid_utf8(address: Address, draw: random.Random) -> int:
    return await raw_body(address, draw, b'{"model": "\xff\xfe' + draw.randbytes(200) + b'"}')


async def no_json(address: Address, draw: random.Random) -> int:
    return await raw_body(address, draw, draw.choice([b"", b"null", b"{", b"[]", draw.randbytes(2_000)]))


async def no_http(address: Address, draw: random.Random) -> int:
    return await exchange(address, draw.choice([draw.randbytes(500), b"\x16\x03\x01" + draw.randbytes(200),
                                                b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n"]))  # fmt: skip


async def header_flood(address: Address, draw: random.Random) -> int:
    line = b"x-%d: " % draw.randrange(1 << 30) + b"y" * draw.choice([10, 4_000]) + b"\r\n"
    return await exchange(address, b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n" + line * 3_000 + b"\r\n")


async def unfinished_body(address: Address, draw: random.Random) -> int:
    _, writer = await asyncio.open_connection(*address)
    writer.write(head(draw.choice(PATHS), 10_000) + b'{"model": ')
    await asyncio.sleep(draw.random() * 0.2)
    writer.close()
    return 0


async def half_closed(address: Address, draw: random.Random) -> int:
    data = json.dumps(good_body(draw) | {"stream": True, "max_tokens": 500}).encode()
    return await exchange(address, head("/v1/completions", len(data)) + data, half_close=True)


async def large_body(address: Address, draw: random.Random) -> int:
    return await exchange(address, head("/v1/completions", 1 << 40) + b"x" * 100_000)


async def bad_chunks(address: Address, draw: random.Random) -> int:
    lines = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    return await exchange(address, lines.encode() + draw.choice([b"zz\r\n", b"fffffffffffffffff\r\nx", b"-1\r\n"]))


async def slow_reader(address: Address, draw: random.Random) -> int:
    """Asks for a long stream, takes none of it for a while, and leaves."""
    reader, writer = await asyncio.open_connection(*address, limit=1024)
    data = json.dumps(good_body(draw) | {"stream": True, "max_tokens": 3_000, "logprobs": 5}).encode()
    writer.write(head("/v1/completions", len(data)) + data)
    await asyncio.sleep(2 + draw.random())
    writer.transport.abort()
    del reader
    return 0


async def slow_head(address: Address, draw: random.Random) -> int:
    _, writer = await asyncio.open_connection(*address)
    with contextlib.suppress(ConnectionError):
        for byte in b"GET /health HTTP/1.1\r\nx":
            writer.write(bytes([byte]))
            await asyncio.sleep(0.1)
    writer.close()
    return 0


ATTACKS: dict[str, tuple[int, Attack]] = {  # weight
    "wrong types": (30, wrong_types),
    "deep nesting": (10, deep_nesting),
    "huge numbers": (10, huge_numbers),
    "invalid UTF-8": (10, invalid_utf8),
    "no JSON": (10, no_json),
    "no HTTP": (5, no_http),
    "header flood": (5, header_flood),
    "unfinished body": (5, unfinished_body),
    "half closed": (5, half_closed),
    "large body": (5, large_body),
    "bad chunks": (5, bad_chunks),
    "slow reader": (2, slow_reader),
    "slow head": (2, slow_head),
}
