"""The load of a chaos run: clients that ask without pause and keep every answer, with the times of its pieces.

Most speak HTTP to the gateway, as users do; one speaks gRPC to the router and sees token ids. A client asks again only
where the documentation says that clients must: when the gateway itself was lost.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import httpx

from baton.client import BatonClient, FinishedEvent, GenerateRequest, TokensEvent
from baton.core.errors import BatonError
from baton.core.sampling import SamplingParams

PROMPTS = 24
NEW_TOKENS = (8, 80)
PROMPT_TOKENS = (20, 3200)
ANSWER_TIMEOUT_S = 120.0
_AGAIN_S = 0.2
_GATEWAY_ENDS = "the gateway is shutting down"
_SALTED_SHARE = 0.5  # of the requests by gRPC: nobody's cache has their prefix


@dataclass(frozen=True, slots=True)
class Question:
    """One request whose answer is fixed: greedy, or drawn with a seed."""

    number: int
    prompt: list[int]
    max_tokens: int
    temperature: float

    @property
    def seed(self) -> int:
        return 1000 + self.number


@dataclass(slots=True)
class Answer:
    """One whole answer, or what came of it. `content`: the text, or the token ids. Times are monotonic seconds."""

    question: Question
    by: str
    asked_at: float
    content: str | list[int] = ""
    tokens: int = 0
    heard_at: list[float] = field(default_factory=list)
    error: str = ""
    lost_gateway: bool = False  # its connection broke, or it said that it ends: what a client must expect

    @property
    def ended_at(self) -> float:
        return self.heard_at[-1] if self.heard_at else self.asked_at

    def longest_silence(self, since: float, until: float) -> float:
        """Longest time without a piece, of those pauses that overlap [since, until]."""
        times = [self.asked_at, *self.heard_at]
        pauses = [(a, b) for a, b in pairwise(times) if b >= since and a <= until]
        return max((b - a for a, b in pauses), default=0.0)


def questions(seed: int) -> list[Question]:
    """Equal for equal seeds: short and long prompts, some with a common beginning, greedy and drawn answers."""
    rng = random.Random(f"questions-{seed}")
    common = [rng.randrange(10, 300) for _ in range(400)]
    found = []
    for number in range(PROMPTS):
        length = int(PROMPT_TOKENS[0] * (PROMPT_TOKENS[1] / PROMPT_TOKENS[0]) ** rng.random())
        start = common[: length // 2] if rng.random() < 0.3 else []
        prompt = [*start, *(rng.randrange(10, 300) for _ in range(length - len(start)))]
        found.append(Question(number, prompt, rng.randint(*NEW_TOKENS), rng.choice([0.0, 0.0, 0.8])))
    return found


class HttpAsker:
    """Streams completions from the gateway."""

    name = "http"

    def __init__(self, http: httpx.AsyncClient, model: str) -> None:
        self._http = http
        self._model = model

    async def ask(self, question: Question) -> Answer:
        body = {
            "model": self._model, "prompt": question.prompt, "max_tokens": question.max_tokens, "ignore_eos": True,
            "temperature": question.temperature, "seed": question.seed, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        answer = Answer(question, self.name, time.monotonic())
        try:
            async with (
                asyncio.timeout(ANSWER_TIMEOUT_S),
                self._http.stream("POST", "/v1/completions", json=body) as got,
            ):
                if got.status_code != 200:
                    answer.error = f"status {got.status_code}: {(await got.aread()).decode()[:300]}"
                    answer.lost_gateway = _GATEWAY_ENDS in answer.error
                    return answer
                await self._read(got, answer)
        except httpx.TransportError as error:
            answer.error, answer.lost_gateway = f"{type(error).__name__}: {error}", True
        except TimeoutError:
            answer.error = f"no whole answer in {ANSWER_TIMEOUT_S:g} s"
        return answer

    async def _read(self, got: httpx.Response, answer: Answer) -> None:
        text, is_done = "", False
        async for line in got.aiter_lines():
            if line == "data: [DONE]":
                is_done = True
            elif line.startswith("data: "):
                answer.heard_at.append(time.monotonic())
                event = json.loads(line[6:])
                if "error" in event:
                    answer.error = f"error in the stream: {json.dumps(event['error'])[:300]}"
                    answer.lost_gateway = _GATEWAY_ENDS in answer.error
                    return
                text += "".join(choice["text"] for choice in event["choices"])
                answer.tokens = (event.get("usage") or {}).get("completion_tokens", answer.tokens)
        answer.content = text
        if not is_done:
            answer.error, answer.lost_gateway = "the stream ended early", True


class GrpcAsker:
    """Streams token ids from the router; the client library survives a lost router."""

    name = "grpc"

    def __init__(self, client: BatonClient, model: str, seed: int) -> None:
        self._client = client
        self._model = model
        self._rng = random.Random(f"salts-{seed}")

    async def ask(self, question: Question) -> Answer:
        sampling = SamplingParams(
            temperature=question.temperature, max_tokens=question.max_tokens, seed=question.seed, ignore_eos=True
        )
        salt = f"{self._rng.random()}" if self._rng.random() < _SALTED_SHARE else ""
        request = GenerateRequest(self._model, question.prompt, sampling, cache_salt=salt)
        answer = Answer(question, self.name, time.monotonic())
        tokens: list[int] = []
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                async for event in self._client.generate(request):
                    answer.heard_at.append(time.monotonic())
                    if isinstance(event, TokensEvent):
                        tokens += event.token_ids
                    elif isinstance(event, FinishedEvent):
                        answer.content, answer.tokens = tokens, event.usage.completion_tokens
        except BatonError as error:
            answer.error = f"{type(error).__name__}: {error.message}"
        except TimeoutError:
            answer.error = f"no whole answer in {ANSWER_TIMEOUT_S:g} s"
        return answer


Asker = HttpAsker | GrpcAsker


class Load:
    """Clients in parallel until stopped; `keep` gets every answer, whole or not."""

    def __init__(self, askers: list[Asker], asked: list[Question], seed: int, keep: Callable[[Answer], None]) -> None:
        self._askers = askers
        self._asked = asked
        self._seed = seed
        self._keep = keep
        self._stopping = False
        self._clients: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._clients = [asyncio.create_task(self._client(n, asker)) for n, asker in enumerate(self._askers)]

    async def stop(self) -> None:
        """Let every client finish the question that it has asked."""
        self._stopping = True
        await asyncio.gather(*self._clients)

    async def _client(self, number: int, asker: Asker) -> None:
        rng = random.Random(f"client-{self._seed}-{number}")
        while not self._stopping:
            question = rng.choice(self._asked)
            while True:
                answer = await asker.ask(question)
                self._keep(answer)
                if not answer.error:
                    break
                await asyncio.sleep(_AGAIN_S)
