"""What happened when in a handoff: both sides remember, within bounds, and tell whoever asks."""

from __future__ import annotations

import itertools

import grpc
import numpy as np
import pytest
from agent_harness import LAYOUT, attempts, expect_fetched, expect_pulled, page_range, pair

from baton.core.attempt import Attempt
from baton.kv.handoff import Announcement
from baton.kv.local import Produced
from baton.kv_agent import timelines as module
from baton.kv_agent.timelines import Timelines
from baton.rpc.v1 import kv_pb2 as pb
from baton.rpc.v1 import kv_pb2_grpc

IDS = np.array([5, 6], "<u4")


async def ask(address: str, request_id: str) -> pb.TimelinesReply:
    async with grpc.aio.insecure_channel(address) as channel:
        return await kv_pb2_grpc.KvAgentStub(channel).Timelines(pb.TimelinesRequest(request_id=request_id))


async def test_both_sides_tell_the_same_story(tmp_path):
    async with pair(tmp_path) as (source, reader):
        attempt, pages = next(attempts), page_range(10, 3)
        reader.fetch(attempt, source, source.hand_over(attempt, pages), pages)
        expect_fetched(await reader.answer(attempt), 3)
        assert (await source.answer(attempt)).outcome == "released"
        replies = [await ask(end.welcome.address, attempt.request_id) for end in (source, reader)]
        (offered,), (fetched,) = (reply.handoffs for reply in replies)
        assert replies[0].clock == replies[1].clock and replies[0].now <= replies[1].now
        assert (offered.side, offered.outcome, fetched.side, fetched.outcome) == (
            "source", "released", "reader", "fetched",
        )  # fmt: skip
        assert [(c.layer_start, c.layer_end, c.pages) for c in offered.computed] == [(n, n + 1, 3) for n in range(4)]
        assert sum(read.bytes for read in offered.reads) == LAYOUT.layers * 3 * LAYOUT.page_bytes
        for sent, heard in zip(offered.reads, fetched.reads, strict=True):
            assert (sent.seq, sent.layer_start, sent.bytes) == (heard.seq, heard.layer_start, heard.bytes)
            stamps = [sent.announced_at, heard.announced_at, heard.started_at, heard.arrived_at, heard.done_at]
            assert stamps[0] > 0 and sorted([*stamps, sent.done_at]) == [*stamps, sent.done_at]
        assert max(c.computed_at for c in offered.computed) <= offered.recorded_at <= fetched.recorded_at
        assert fetched.recorded_at <= fetched.ended_at <= offered.ended_at
        assert 0 < offered.committed_at <= offered.recorded_at
        assert bool(fetched.questioned_at) == bool(offered.questioned_at)
        if fetched.questioned_at:  # not when all reads had been answered before the record was sent
            assert fetched.recorded_at <= fetched.questioned_at <= offered.questioned_at <= fetched.ended_at
        assert fetched.began_at <= fetched.opened_at <= offered.opened_at
        nobody = await ask(source.welcome.address, "another-request")
        assert not nobody.handoffs and nobody.now


async def test_pulls_and_failures_are_told_too(tmp_path):
    async with pair(tmp_path) as (source, reader):
        pulled, failed, pages = next(attempts), next(attempts), page_range(10, 3)
        reader.pull(pulled, source, pages)
        await source.lend(pulled, pages)
        expect_pulled(await reader.answer(pulled), 12, 3)
        reader.fetch(failed, source, 12, pages, source_worker_epoch=1)
        await reader.answer(failed)
        (lent,) = (await ask(source.welcome.address, pulled.request_id)).handoffs
        assert 0 < lent.opened_at <= lent.began_at <= lent.recorded_at
        (story,) = (await ask(reader.welcome.address, failed.request_id)).handoffs
        assert story.outcome == "epoch" and story.ended_at and not story.reads


def announcement(seq: int) -> Announcement:
    return Announcement(seq, 0, 1, 0, IDS, IDS, 0, 0.0)


def produced(attempt: Attempt) -> Produced:
    return Produced(attempt, 0, 1, 0, IDS.tobytes(), IDS.tobytes(), 7.0)


def test_the_oldest_are_forgotten_and_a_long_one_is_cut(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_HANDOFFS", 3)
    monkeypatch.setattr(module, "MOST_RANGES", 6)
    kept = Timelines("source", 4, clock=itertools.count(1).__next__)
    one, two, three, four = (Attempt(name, 0) for name in ("one", "two", "three", "four"))
    for attempt in (one, two, three, four):
        kept.began(attempt)
    assert not kept.of_request("one") and kept.of_request("two")
    kept.computed(produced(one))  # not remembered: nothing happens
    for seq in range(2):
        kept.computed(produced(two))
        kept.announced(two, announcement(seq), 10)
    for seq in range(4):
        kept.announced(four, announcement(seq), 10)
    assert not kept.of_request("two") and kept.of_request("three")  # two made room, three was next
    kept.announced(four, announcement(4), 10)
    kept.announced(four, announcement(5), 10)
    kept.announced(four, announcement(6), 10)
    kept.done(four, 6)
    (long,) = kept.of_request("four")
    assert not kept.of_request("three") and len(long.reads) == 6 and long.left_out == 1
    kept.done(four, 0)
    kept.ended(four, "released")
    assert long.reads[0].done_at and not long.reads[1].done_at and long.outcome == "released"
    fresh = Attempt("fresh", 0)
    kept.began(fresh)
    kept.computed(produced(fresh))
    assert not kept.of_request("four") and len(kept.of_request("fresh")[0].computed) == 1
