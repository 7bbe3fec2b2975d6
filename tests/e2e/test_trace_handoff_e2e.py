"""A real handoff traced from outside: what the agents tell fits what the system did."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import MODEL, cluster

from baton.cli.trace_handoff import collect
from baton.core.errors import ConfigError, HandoffFailed
from baton.testing.checkpoints import make_checkpoint

LAYERS, KV_HEADS, HEAD_DIM, PAGE, TOKENS, CHUNK = 4, 2, 16, 16, 1000, 256


async def test_a_handoff_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make_checkpoint(
        tmp_path / "ckpt", "llama", layers=LAYERS, hidden=64, heads=4, kv_heads=KV_HEADS, max_position=2048
    )
    wishes = {"model": "", "tokens": TOKENS, "vocabulary": 300, "seed": 5, "warmup": 1}
    async with cluster(tmp_path, checkpoint, worker={"chunk_tokens": CHUNK}) as running:
        trace = await collect.trace(running.router, **wishes)
        pages = -(-TOKENS // PAGE)
        assert (trace.model, trace.prefill_worker, trace.decode_worker) == (MODEL, "prefill-0", "decode-0")
        assert trace.bytes == LAYERS * pages * 2 * PAGE * KV_HEADS * HEAD_DIM * 4
        computed = {(bar.layer_start, bar.page_start) for bar in trace.computed}
        assert computed == {(layer, first) for layer in range(LAYERS) for first in range(0, pages, CHUNK // PAGE)}
        assert not any(bar.cached for bar in trace.computed)
        read = {
            (layer, page)
            for one in trace.reads
            for layer in range(one.layer_start, one.layer_end)
            for page in range(one.page_start, one.page_start + one.pages)
        }
        assert read == {(layer, page) for layer in range(LAYERS) for page in range(pages)}
        for one in trace.reads:
            stamps = [one.announced_s, one.heard_s, one.started_s, one.arrived_s, one.verified_s]
            assert stamps == sorted(stamps)
            ready = max(
                bar.end_s
                for bar in trace.computed
                if bar.layer_start < one.layer_end and bar.page_start < one.page_start + one.pages
                and one.layer_start < bar.layer_end and one.page_start < bar.page_start + bar.pages
            )  # fmt: skip
            assert ready <= one.announced_s, "pages were announced before they were computed"
        order = ["request sent", "opened", "verified", "first decoded token"]
        assert [name for name in trace.marks if name in order] == order
        assert trace.clock_error_s == 0 and 0 < trace.hidden_share <= 1
        with pytest.raises(ConfigError, match="at most"):
            await collect.trace(running.router, **{**wishes, "tokens": 5000})
        with pytest.raises(ConfigError, match="not served"):
            await collect.trace(running.router, **{**wishes, "model": "another"})
        monkeypatch.setattr(collect, "NEW_TOKENS", 1)  # which prefill runs alone
        with pytest.raises(HandoffFailed, match="there was no handoff"):
            await collect.trace(running.router, **wishes)
