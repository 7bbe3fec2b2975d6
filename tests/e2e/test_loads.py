"""`/v1/loads` of a real cluster: what workers and agents say of themselves arrives, and adds up."""

from __future__ import annotations

from pathlib import Path

import httpx
from in_process import MODEL, cluster, until

from baton.core.version import VERSION
from baton.testing.checkpoints import make_checkpoint

PROMPT = [10 + n * 7 % 300 for n in range(200)]
PAGE_BYTES = 2 * 16 * 2 * 16 * 4  # K and V, positions, heads, head_dim, bytes of a float


async def test_totals_pages_and_versions(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "llama", "llama", layers=2, hidden=32, heads=2)
    tier = {"host_tier_bytes": 1 << 20}
    async with cluster(tmp_path, checkpoint, gateway=True, router={"local_extend_tokens": 0}, agent=tier) as running:
        async with httpx.AsyncClient(base_url=running.gateway_url, timeout=30) as http:
            body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 6, "ignore_eos": True, "temperature": 0}
            answer = await http.post("/v1/completions", json=body, headers={"X-Baton-Details": "1"})
            (told,) = answer.json()["baton"]["choices"]

            async def is_told() -> bool:
                """Workers report a moment after the answer, and once a second."""
                workers = (await http.get("/v1/loads")).json()["workers"]
                return all(one["pages"]["lent"] == 0 for one in workers) and workers[0]["totals"]["decode_tokens"] == 5

            await until(is_told, "the reports after the request")
            loads = (await http.get("/v1/loads")).json()
        decode, prefill = loads["workers"]
        assert (decode["worker"], prefill["worker"]) == (told["decode_worker"], told["prefill_worker"])
        assert prefill["totals"]["extend_tokens"] == 200 and prefill["totals"]["decode_tokens"] == 1
        totals = decode["totals"]
        assert totals["handoffs"] == 1 and totals["handoff_bytes"] == told["handoff"]["bytes"] == 2 * 13 * PAGE_BYTES
        assert 0 <= totals["handoff_hidden_s"] <= totals["handoff_s"]
        for worker in (decode, prefill):
            pages = worker["pages"]
            assert pages["free"] + pages["cached"] + pages["lent"] == pages["total"] - 2 and pages["cached"] > 0
            assert pages["page_bytes"] == 2 * PAGE_BYTES and worker["state"] == "ready"
            assert worker["version"] == worker["agent"]["version"] == loads["router"]["version"] == VERSION
            assert worker["tier"]["capacity_blocks"] > 0
        assert loads["router"]["unreachable"] == [] and loads["pools"]["decode"]["workers"] == 1
