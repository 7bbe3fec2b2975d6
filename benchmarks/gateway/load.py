"""Clients of a gateway, in a process of their own: `--streams` chats at a time, each a stream of `--tokens` tokens.

Prints one JSON object: the times to the first chunk, and to the end, of each chat in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import aiohttp

WORDS = "The quick brown fox jumps over the lazy dog. "


async def chat(session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> tuple[float, float]:
    """Seconds to the first chunk, and to the end."""
    started, first = time.perf_counter(), 0.0
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise SystemExit(f"HTTP {response.status}: {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - started
    return first, time.perf_counter() - started


async def run(url: str, model: str, streams: int, chats: int, tokens: int) -> dict[str, list[float]]:
    firsts: list[float] = []
    wholes: list[float] = []
    left = chats

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            messages = [{"role": "user", "content": f"{number} {left} {WORDS * 3}"}]
            body = {
                "model": model, "messages": messages, "max_tokens": tokens, "stream": True, "ignore_eos": True,
                "temperature": 1.0, "seed": 1,
            }  # fmt: skip
            first, whole = await chat(session, url, body)
            firsts.append(first)
            wholes.append(whole)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(600)) as session:
        await chat(session, url, {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2,
                                  "stream": True, "ignore_eos": True})  # fmt: skip
        await asyncio.gather(*(client(session, number) for number in range(streams)))
    return {"first_chunk_s": firsts, "whole_s": wholes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--chats", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    print(json.dumps(asyncio.run(run(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
