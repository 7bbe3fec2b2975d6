"""Structured output through everything: OpenAI's client, gateway, router, prefill, handoff, decode."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import openai
import pytest
from in_process import MODEL, cluster
from pydantic import BaseModel

from baton.testing.checkpoints import make_checkpoint

HELLO = [{"role": "user", "content": "Say hello."}]
DEEP = '{"items": ' * 80 + "true" + "}" * 80


class Pick(BaseModel):
    color: Literal["red", "green"]
    sizes: list[Literal["small", "large"]]
    sure: bool


async def test_pydantic_parses_every_answer_and_bad_structures_are_a_400(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", vocab=600)
    async with (
        cluster(tmp_path, checkpoint, gateway=True) as running,
        openai.AsyncOpenAI(base_url=running.gateway_url + "/v1", api_key="x", max_retries=0) as client,
    ):

        async def parsed(seed: int) -> Pick | None:
            answer = await client.chat.completions.parse(
                model=MODEL, messages=HELLO, response_format=Pick, max_completion_tokens=400, seed=seed
            )
            return answer.choices[0].message.parsed

        async def refused(**fields: object) -> openai.BadRequestError:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(model=MODEL, messages=HELLO, extra_body=fields, max_tokens=8)
            return caught.value

        answers = await asyncio.gather(*(parsed(seed) for seed in range(4)))
        assert all(isinstance(answer, Pick) for answer in answers)
        one, other, again = await asyncio.gather(refused(regex="(a"), refused(guided_json=DEEP), parsed(0))
        assert "regex" in one.message and "nested" in other.message
        assert again == answers[0]
        choice = await client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=50, extra_body={"guided_choice": ["yes", "no"]}
        )
        assert choice.choices[0].message.content in ("yes", "no")
        await running.quiet()
