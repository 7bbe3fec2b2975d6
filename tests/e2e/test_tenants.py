"""Tenants that share every worker, and nothing of what is cached on them unless they want to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from in_process import MODEL, Cluster, cluster, until
from test_equality import prompts
from test_pull import Placement, count
from test_pull import placement as placement  # a fixture

from baton.gateway.auth.key import KeyTerms, create
from baton.gateway.auth.key_file import KeyFile
from baton.testing.checkpoints import make_checkpoint
from baton.worker import metrics

PAGE = 16
PROMPT = 100
WHOLE_PAGES = 96  # of the prompt


@dataclass
class System:
    cluster: Cluster
    http: httpx.AsyncClient
    keys: dict[str, str]

    async def cached(self, who: str, prompt: list[int]) -> int:
        """Tokens of the prompt that were cached, as the client is told."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "temperature": 0}
        answer = await self.http.post(
            "/v1/completions", json=body, headers={"authorization": f"Bearer {self.keys[who]}"}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    torch.set_num_threads(1)
    checkpoint = make_checkpoint(tmp_path / "ckpt", "llama", max_position=4096)
    file, keys = KeyFile(tmp_path / "keys.json"), {}
    for who, group in (("ann", None), ("bob", None), ("cat", "friends"), ("dan", "friends")):
        key, keys[who] = create(KeyTerms(tenant=who, cache_group=group))
        file.add(key)
    async with (
        cluster(
            tmp_path, checkpoint, prefill=2, gateway=True, gateway_options={"api_keys": str(file.path)},
            worker={"pull_timeout_s": 60.0}, router={"local_extend_tokens": 0},
        ) as running,
        httpx.AsyncClient(base_url=running.gateway_url, timeout=60) as http,
    ):  # fmt: skip

        async def ready() -> bool:
            try:
                return (await http.get("/ready")).status_code == 200
            except httpx.TransportError:
                return False

        await until(ready, "the gateway answers")
        yield System(running, http, keys)


async def test_what_one_tenant_cached_no_other_one_finds(system: System, placement: Placement) -> None:
    [prompt] = prompts(500, [PROMPT])
    pulled = count(metrics.pulled_tokens)
    assert [await system.cached("ann", prompt) for _ in range(2)] == [0, WHOLE_PAGES]
    assert [await system.cached("bob", prompt) for _ in range(2)] == [0, WHOLE_PAGES]
    assert await system.cached("ann", prompt) == WHOLE_PAGES

    # The other prefill worker has neither: it pulls from the first what is the tenant's own, and nothing else.
    placement.prefill = "prefill-1"
    await indexed(system)
    assert await system.cached("cat", prompt) == 0 == pulled()
    assert await system.cached("ann", prompt) == WHOLE_PAGES == pulled()

    # Who shares on purpose does.
    assert await system.cached("dan", prompt) == WHOLE_PAGES
    assert await system.cached("bob", prompt) == WHOLE_PAGES == pulled() - WHOLE_PAGES


async def indexed(system: System) -> None:
    """Wait until the router knows all blocks of both tenants, on their prefill and their decode worker."""

    async def known() -> bool:
        return (await system.cluster.client.fleet()).index_blocks >= 2 * 2 * (PROMPT // PAGE)

    await until(known, "the index knows the blocks")
