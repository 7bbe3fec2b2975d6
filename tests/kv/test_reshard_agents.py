"""Handoffs between agents whose workers' pools are laid out differently."""

from __future__ import annotations

import asyncio
import json
import re
import socket as socket_module
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from agent_harness import FakeWorker, agent, attempts, expect_failed, has_ucx, page_range, worker
from reshard_model import cache, lay_out, layout

from baton.core.attempt import Attempt
from baton.core.layout import KvLayout
from baton.kv.faults import Fault, orders_path
from baton.kv.local import CancelFetch, Fetched, Offer, Produced, Released, SourceRank
from baton.kv.reshard import converter
from baton.kv.reshard.landing import elements
from baton.runtime import metrics

TOKENS = 45
LAYOUTS = [
    pytest.param({"page_size": 32}, {}, id="larger to smaller pages"),
    pytest.param({}, {"page_size": 16}, id="smaller to larger pages"),
    pytest.param({"dtype": "float32"}, {"dtype": "bfloat16"}, id="float32 to bfloat16"),
    pytest.param({"dtype": "bfloat16"}, {"dtype": "float32", "page_size": 32}, id="bfloat16 to float32"),
    pytest.param({"dtype": "bfloat16"}, {"dtype": "float8_e4m3", "scale": 0.5}, id="bfloat16 to float8"),
    pytest.param({"kind": "latent", "heads": 1, "page_size": 16}, {"kind": "latent", "heads": 1}, id="latent"),
]


class Half:
    """A worker, the cache of one request in its layout, and where its pages are."""

    def __init__(self, fake: FakeWorker, first_page: int) -> None:
        self.fake = fake
        self.elements = elements(fake.pool)
        self.pages = page_range(first_page, fake.layout.pages_for(TOKENS))

    def produce(self, attempt: Attempt, values: np.ndarray, layers: range, tokens: range) -> None:
        """Write whole pages of these tokens, and say so."""
        shape = self.fake.layout
        first, end = tokens.start // shape.page_size, shape.pages_for(tokens.stop)
        pages = self.pages[first:end]
        lay_out(values[layers.start : layers.stop], shape, self.elements[layers.start : layers.stop], pages, tokens)
        ids, generations = np.array(pages, "<u4").tobytes(), np.ones(len(pages), "<u4").tobytes()
        produced = Produced(attempt, layers.start, layers.stop, first, ids, generations, time.time())
        assert self.fake.link.send(produced)

    def hand_over(self, attempt: Attempt, values: np.ndarray, chunk: int = 32, reader_ranks: int = 1) -> None:
        """Offer, produce in chunks layer by layer, commit."""
        assert self.fake.link.send(Offer(attempt, TOKENS, reader_ranks=reader_ranks))
        for start in range(0, TOKENS, chunk):
            for layer in range(self.fake.layout.layers):
                self.produce(attempt, values, range(layer, layer + 1), range(start, min(start + chunk, TOKENS)))
        self.fake.commit(attempt, TOKENS)

    def expected(self, values: np.ndarray, first_page: int = 0) -> np.ndarray:
        """The whole pool, when it holds nothing but the request's tokens from `first_page` on, and the canaries."""
        pool = np.zeros_like(self.elements)
        pool[:, :2] = self.elements[:, :2]
        shape = self.fake.layout
        lay_out(values, shape, pool, self.pages[first_page:], range(first_page * shape.page_size, TOKENS))
        return pool


@asynccontextmanager
async def two(folder: Path, source: KvLayout, own: KvLayout, **settings: object) -> AsyncIterator[tuple[Half, Half]]:
    async with (
        agent(folder / "s.sock", **settings),
        agent(folder / "r.sock", **settings),
        worker(folder / "s.sock", "source", source) as sending,
        worker(folder / "r.sock", "reader", own) as reading,
    ):
        yield Half(sending, 20), Half(reading, 30)


@pytest.fixture(params=["ucx", "auto", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    if request.param == "ucx" and (reason := has_ucx()):
        pytest.skip(f"UCX cannot be used here: {reason}")
    return request.param


def numbers(shape: KvLayout) -> np.ndarray:
    """The cache of a request in the elements of its layout: some number everywhere."""
    size = cache(shape, TOKENS).shape
    values = np.random.default_rng(5).normal(scale=30.0, size=size).astype(np.float32)
    return converter(layout(dtype="float32"), shape)(values.view(np.uint32))


@pytest.mark.parametrize(("source", "own"), LAYOUTS)
async def test_pages_arrive_in_the_readers_layout(tmp_path, source, own):
    source, own = layout(**source), layout(**own)
    async with two(tmp_path, source, own) as (sending, reading):
        attempt, values = next(attempts), numbers(source)
        reading.fake.fetch(attempt, sending.fake, TOKENS, reading.pages)
        sending.hand_over(attempt, values)
        fetched = await reading.fake.answer(attempt)
        assert isinstance(fetched, Fetched), fetched
        assert (fetched.tokens, fetched.state) == (TOKENS, b"state")
        assert fetched.bytes_read == values.nbytes, "of each token what the source has, and no more"
        np.testing.assert_array_equal(reading.elements, reading.expected(converter(source, own)(values)))
        assert await sending.fake.answer(attempt) == Released(attempt, "released", "")


async def test_by_every_transport_layers_travel_while_others_are_computed(tmp_path, transport):
    """Also the delta of a reader that holds a part, and pages in several pieces of staging memory."""
    source, own = layout(page_size=8), layout(page_size=16, dtype="bfloat16")
    async with two(tmp_path, source, own, transport=transport, staging_bytes=2 * source.page_bytes) as halves:
        sending, reading = halves
        attempt, values = next(attempts), numbers(source)
        reading.fake.fetch(attempt, sending.fake, TOKENS, reading.pages[1:], first_page=1)
        sending.fake.offer(attempt, TOKENS)
        sending.produce(attempt, values, range(2), range(32))
        expected = reading.expected(converter(source, own)(values), first_page=1)
        async with asyncio.timeout(20):
            while not (reading.elements[:2, reading.pages[1]] == expected[:2, reading.pages[1]]).all():
                await asyncio.sleep(0.001)
        assert reading.fake.unanswered(attempt)
        sending.produce(attempt, values, range(2, 3), range(32))
        sending.produce(attempt, values, range(3), range(32, TOKENS))
        sending.fake.commit(attempt, TOKENS)
        fetched = await reading.fake.answer(attempt)
        assert isinstance(fetched, Fetched), fetched
        assert fetched.bytes_read == values[:, :, 16:].nbytes
        np.testing.assert_array_equal(reading.elements, expected)


async def test_a_reader_that_holds_everything_reads_nothing(tmp_path):
    async with two(tmp_path, layout(page_size=32), layout()) as (sending, reading):
        attempt = next(attempts)
        reading.fake.fetch(attempt, sending.fake, TOKENS, [], first_page=len(reading.pages))
        sending.hand_over(attempt, numbers(sending.fake.layout))
        fetched = await reading.fake.answer(attempt)
        assert isinstance(fetched, Fetched) and fetched.bytes_read == 0, fetched
        assert not reading.elements[:, 2:].any()


@pytest.mark.parametrize("fault", [Fault.FLIP, Fault.TRUNCATE])
@pytest.mark.parametrize("own", [{"page_size": 16}, {"dtype": "bfloat16"}])
async def test_wrong_bytes_are_noticed(tmp_path, own, fault):
    """Whether they land directly or by staging memory; afterwards, the pair works as before."""
    async with two(tmp_path, layout(), layout(**own), fault_injection=True) as (sending, reading):
        values = numbers(sending.fake.layout)
        for is_faulty in (False, True, False):
            attempt = next(attempts)
            if is_faulty:
                await order(tmp_path / "r.sock", fault)
            sending.hand_over(attempt, values)
            reading.fake.fetch(attempt, sending.fake, TOKENS, reading.pages)
            answer = await reading.fake.answer(attempt)
            assert (await sending.fake.answer(attempt)).outcome == ("aborted" if is_faulty else "released")
            if is_faulty:
                expect_failed(answer, "checksum")
            else:
                assert isinstance(answer, Fetched), answer


async def test_a_cancelled_fetch_gives_its_pages_and_its_staging_memory_back(tmp_path):
    """Each is cancelled while its read is held up: were a slot lost with one, the last fetch would wait for ever."""
    async with two(tmp_path, layout(), layout(dtype="bfloat16"), fault_injection=True) as (sending, reading):
        values = numbers(sending.fake.layout)
        for is_wanted in (True, False, False, False, True):
            attempt = next(attempts)
            if not is_wanted:
                await order(tmp_path / "r.sock", Fault.SLOW, 0.05)
            sending.hand_over(attempt, values)
            reading.fake.fetch(attempt, sending.fake, TOKENS, reading.pages)
            if is_wanted:
                assert isinstance(await reading.fake.answer(attempt), Fetched)
                continue
            await asyncio.sleep(0.02)
            assert reading.fake.link.send(CancelFetch(attempt, "not wanted"))
            expect_failed(await reading.fake.answer(attempt), "cancelled")
            assert (await sending.fake.answer(attempt)).outcome == "aborted"


async def test_a_source_that_is_lost_in_the_middle(tmp_path):
    """The fetch fails, its staging memory is given back, and the next source of that layout is read from."""
    own, theirs = layout(dtype="bfloat16"), layout(page_size=16)
    async with agent(tmp_path / "r.sock"), worker(tmp_path / "r.sock", "reader", own) as fake:
        reading, values = Half(fake, 30), numbers(theirs)
        for ends_well in (False, True):
            attempt = next(attempts)
            async with agent(tmp_path / "s.sock"), worker(tmp_path / "s.sock", "source", theirs) as other:
                sending = Half(other, 20)
                reading.elements[:, 2:] = 0
                fake.fetch(attempt, other, TOKENS, reading.pages)
                if ends_well:
                    sending.hand_over(attempt, values)
                    assert isinstance(await fake.answer(attempt), Fetched)
                    continue
                other.offer(attempt, TOKENS)
                sending.produce(attempt, values, range(2), range(32))
                async with asyncio.timeout(20):
                    while not reading.elements[1, reading.pages[3]].any():
                        await asyncio.sleep(0.001)
            expect_failed(await fake.answer(attempt), "peer_lost")
            async with asyncio.timeout(20):
                while resharded(metrics.render())["staging_bytes"]:
                    await asyncio.sleep(0.001)
        np.testing.assert_array_equal(reading.elements, reading.expected(converter(theirs, own)(values)))


async def order(socket: Path, fault: Fault, seconds: float = 0.0) -> None:
    """Have the agent's next read go wrong."""
    with socket_module.socket(socket_module.AF_UNIX, socket_module.SOCK_DGRAM) as sock:
        sock.sendto(json.dumps({"fault": fault.value, "seconds": seconds}).encode(), str(orders_path(socket)))
    await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("own", "settings", "kind", "complaint"),
    [
        ({"heads": 8}, {}, "model", "total_kv_heads=8"),
        ({"model_revision": "other"}, {}, "model", "'other'"),
        ({"kind": "latent", "heads": 1}, {}, "model", "latent"),
        ({"heads": 4, "ranks": 2, "kv_heads": 4}, {}, "layout", "holds 4 of 4 KV heads"),
        ({"page_size": 16}, {"staging_bytes": 100}, "layout", "need a staging_bytes of at least 2048; it is 100"),
    ],
)
async def test_what_cannot_pass_is_refused_by_name(tmp_path, own, settings, kind, complaint):
    async with two(tmp_path, layout(), layout(**own), **settings) as (sending, reading):
        attempt = next(attempts)
        reading.fake.fetch(attempt, sending.fake, TOKENS, reading.pages)
        answer = await reading.fake.answer(attempt)
        expect_failed(answer, kind)
        assert complaint in answer.reason


async def test_blocks_are_not_pulled_from_another_layout(tmp_path):
    """They have other names there."""
    async with two(tmp_path, layout(), layout(page_size=16)) as (sending, reading):
        attempt = next(attempts)
        reading.fake.pull(attempt, sending.fake, reading.pages)
        answer = await reading.fake.answer(attempt)
        expect_failed(answer, "layout")
        assert "blocks have other names in other layouts" in answer.reason


async def test_equal_layouts_take_whole_pages_as_ever(tmp_path):
    before = metrics.render()
    async with two(tmp_path, layout(), layout()) as (sending, reading):
        attempt, values = next(attempts), numbers(sending.fake.layout)
        reading.fake.fetch(attempt, sending.fake, TOKENS, reading.pages)
        sending.hand_over(attempt, values)
        fetched = await reading.fake.answer(attempt)
        assert isinstance(fetched, Fetched), fetched
        assert fetched.bytes_read == 3 * len(reading.pages) * layout().page_bytes
        assert resharded(metrics.render()) == resharded(before)


async def test_what_was_resharded_is_counted(tmp_path):
    before = resharded(metrics.render())
    async with two(tmp_path, layout(), layout(dtype="bfloat16")) as (sending, reading):
        attempt, values = next(attempts), numbers(sending.fake.layout)
        reading.fake.fetch(attempt, sending.fake, TOKENS, reading.pages)
        sending.hand_over(attempt, values)
        assert isinstance(await reading.fake.answer(attempt), Fetched)
        now = resharded(metrics.render())
        assert now["resharded_bytes_total"] - before["resharded_bytes_total"] == values.nbytes
        assert now["staged_bytes_total"] - before["staged_bytes_total"] == values.nbytes
        assert now["staging_bytes"] == 8 << 20
    assert resharded(metrics.render())["staging_bytes"] == 0


def resharded(text: bytes) -> dict[str, float]:
    lines = (line.split() for line in text.decode().splitlines() if re.match("baton_kv_agent_(reshard|stag)", line))
    return {name.removeprefix("baton_kv_agent_"): float(value) for name, value in lines}


def ranks_of(heads: int, ranks: int) -> list[KvLayout]:
    return [layout(heads, ranks, rank) for rank in range(ranks)]


@asynccontextmanager
async def workers(folder: Path, side: str, shapes: list[KvLayout]) -> AsyncIterator[list[Half]]:
    """The ranks of one worker, each with an agent of its own."""
    async with AsyncExitStack() as stack:
        halves = []
        for rank, shape in enumerate(shapes):
            socket = folder / f"{side}{rank}.sock"
            await stack.enter_async_context(agent(socket))
            fake = await stack.enter_async_context(worker(socket, f"{side}-{rank}", shape))
            halves.append(Half(fake, 20 + rank))
        yield halves


def fetch_from(attempt: Attempt, reading: Half, sending: list[Half]) -> None:
    first, *more = sending
    ranks = tuple(
        SourceRank(half.fake.welcome.address, half.fake.welcome.agent_epoch, half.fake.epoch) for half in more
    )
    reading.fake.fetch(attempt, first.fake, TOKENS, reading.pages, more_ranks=ranks)


SPLITS = [(4, 2, 1), (4, 1, 2), (4, 4, 2), (4, 2, 4), (2, 4, 1), (2, 1, 4), (2, 4, 2), (1, 2, 2)]


@pytest.mark.parametrize(("heads", "sources", "owns"), SPLITS)
async def test_heads_come_from_all_ranks_and_go_to_all_ranks(tmp_path, heads, sources, owns):
    """Including copies of heads, those too that nobody reads: all leases end by release."""
    async with (
        workers(tmp_path, "s", ranks_of(heads, sources)) as sending,
        workers(tmp_path, "r", ranks_of(heads, owns)) as reading,
    ):
        attempt, values = next(attempts), cache(layout(heads), TOKENS)
        for half in reading:
            fetch_from(attempt, half, sending)
        for half in sending:
            half.hand_over(attempt, values, reader_ranks=owns)
        for half in reading:
            fetched = await half.fake.answer(attempt)
            assert isinstance(fetched, Fetched), fetched
            assert fetched.bytes_read >= values.nbytes * half.fake.layout.kv_heads // heads
            np.testing.assert_array_equal(half.elements, half.expected(values))
        for half in sending:
            assert await half.fake.answer(attempt) == Released(attempt, "released", "")


async def begin(attempt: Attempt, values: np.ndarray, sending: list[Half], reading: list[Half]) -> None:
    """All ranks have opened the attempt, and read some of it."""
    for half in reading:
        fetch_from(attempt, half, sending)
    for half in sending:
        assert half.fake.link.send(Offer(attempt, TOKENS, reader_ranks=len(reading)))
        half.produce(attempt, values, range(2), range(32))
    async with asyncio.timeout(20):
        while not all(half.elements[1, half.pages[3]].all() for half in reading):
            await asyncio.sleep(0.001)


async def test_when_a_rank_of_the_source_gives_up_all_do(tmp_path):
    async with (
        workers(tmp_path, "s", ranks_of(4, 2)) as sending,
        workers(tmp_path, "r", [layout(4)]) as reading,
    ):
        attempt = next(attempts)
        await begin(attempt, cache(layout(4), TOKENS), sending, reading)
        sending[1].fake.abort(attempt)
        expect_failed(await reading[0].fake.answer(attempt), "cancelled")
        assert [(await half.fake.answer(attempt)).outcome for half in sending] == ["aborted", "aborted"]


async def test_a_rank_of_the_reader_that_gives_up_ends_what_it_shares(tmp_path):
    """Ranks 0 and 1 read from rank 0, which gets its pages back once, when both are done with them."""
    async with (
        workers(tmp_path, "s", ranks_of(4, 2)) as sending,
        workers(tmp_path, "r", ranks_of(4, 4)) as reading,
    ):
        attempt, values = next(attempts), cache(layout(4), TOKENS)
        await begin(attempt, values, sending, reading)
        reading[1].fake.link.send(CancelFetch(attempt, "not wanted"))
        for half in reading[:2]:
            expect_failed(await half.fake.answer(attempt), "cancelled")
        assert (await sending[0].fake.answer(attempt)).outcome == "aborted"
        sending[1].produce(attempt, values, range(2, 3), range(32))
        sending[1].produce(attempt, values, range(3), range(32, TOKENS))
        sending[1].fake.commit(attempt, TOKENS)
        for half in reading[2:]:
            assert isinstance(await half.fake.answer(attempt), Fetched)
        assert (await sending[1].fake.answer(attempt)).outcome == "released"
        assert all(half.fake.unanswered(attempt) for half in [*sending, *reading])


async def test_ranks_must_be_those_that_were_named(tmp_path):
    """Two of them exchanged would put heads where others belong, or twice the same."""
    async with (
        workers(tmp_path, "s", ranks_of(4, 2)) as sending,
        workers(tmp_path, "r", [layout(4)]) as (reading,),
    ):
        for named in (sending[::-1], [sending[0], sending[0]], sending[:1]):
            attempt = next(attempts)
            fetch_from(attempt, reading, named)
            answer = await reading.fake.answer(attempt)
            expect_failed(answer, "layout")
            assert "was due" in answer.reason
