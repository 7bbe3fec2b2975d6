"""Two prefill and two decode workers, steady greedy requests, and kill -9 of each kind of process in turn.

Every request that a client could still be connected to completes with exactly the tokens of an undisturbed run.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import httpx
import pytest

from baton.testing.checkpoints import make_checkpoint
from baton.testing.up_process import Up, up

PROMPTS = 8
NEW_TOKENS = 60
CLIENTS = 4
KILLS = ["prefill-0", "decode-1", "prefill-1-agent", "decode-0-agent", "router", "redis", "gateway"]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    checkpoint = make_checkpoint(
        tmp_path_factory.mktemp("ckpt") / "llama", "llama", layers=4, hidden=256, heads=8, kv_heads=4, max_position=8192
    )
    arguments = ["--prefill=2", "--decode=2", f"--model={checkpoint}", "--served-name=m", "--kv-memory-bytes=64MiB"]
    with up(tmp_path_factory.mktemp("up"), *arguments) as running:
        yield running


def bodies() -> list[dict]:
    rng = random.Random(5)
    lengths = [40, 3000, 300, 1500, 90, 4000, 700, 2500][:PROMPTS]
    prompts = [[rng.randrange(10, 300) for _ in range(length)] for length in lengths]
    common = {"model": "m", "max_tokens": NEW_TOKENS, "temperature": 0, "stream": True, "ignore_eos": True}
    return [{**common, "prompt": prompt, "stream_options": {"include_usage": True}} for prompt in prompts]


async def answer(client: httpx.AsyncClient, body: dict) -> str:
    """The text of one streamed completion; raises when the stream is not whole."""
    text, tokens, done = "", None, False
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise AssertionError(f"status {response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                text += "".join(choice["text"] for choice in event["choices"])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    assert done and tokens == NEW_TOKENS, (done, tokens)
    return text


@dataclass
class Load:
    """Clients that ask without pause, each salted so that prompts are computed, not found."""

    url: str
    expected: list[str]
    stop: bool = False
    answers: int = 0
    broken: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    async def client(self, seed: int) -> None:
        rng = random.Random(seed)
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as http:
            while not self.stop:
                index = rng.randrange(PROMPTS)
                try:
                    text = await answer(http, bodies()[index])
                except (httpx.TransportError, AssertionError) as error:
                    self.broken.append(f"{type(error).__name__}: {error}")
                    await asyncio.sleep(0.2)
                    continue
                self.answers += 1
                if text != self.expected[index]:
                    self.wrong.append(f"prompt {index}: {text!r} != {self.expected[index]!r}")


async def undisturbed(running: Up) -> list[str]:
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as http:
        return [await answer(http, body) for body in bodies()]


@pytest.mark.timeout(280)
async def test_kill_each_in_turn(running: Up, capsys):
    expected = await undisturbed(running)
    report = []
    for victim in KILLS:
        load = Load(running.url, expected)
        clients = [asyncio.create_task(load.client(seed)) for seed in range(CLIENTS)]
        while load.answers < 2:
            await asyncio.sleep(0.02)
        await asyncio.sleep(random.Random(victim).uniform(0.0, 0.3))
        starts = running.service(victim)["starts"]
        before = load.answers
        killed_at = running.kill(victim)
        recovered = await asyncio.to_thread(wait_recovered, running, victim, starts, killed_at)
        answers_then = load.answers
        while load.answers < answers_then + 3:
            await asyncio.sleep(0.02)
        load.stop = True
        await asyncio.gather(*clients)
        counts = f"{load.answers - before:3} answers, {len(load.broken)} broken"
        report.append(f"{victim:16} back in {recovered:5.2f} s, {counts}")
        assert not load.wrong, (victim, load.wrong)
        if victim != "gateway":
            assert not load.broken, (victim, load.broken)
        await asyncio.to_thread(running.wait_quiet)
    with capsys.disabled():
        print("\n" + "\n".join(report))


def wait_recovered(running: Up, victim: str, starts: int, killed_at: float) -> float:
    """Seconds until the killed process runs again and all workers and agents are placed on again."""

    def back() -> bool:
        service = running.service(victim)
        if service["starts"] <= starts or service["phase"] != "ready":
            return False
        with httpx.Client(timeout=5) as http:
            return http.get(f"{running.url}/ready").status_code == 200

    running.wait(back, f"{victim} is back", 60)
    return time.monotonic() - killed_at
