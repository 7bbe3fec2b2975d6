"""Mirrored pools: all that agents read and write is in other memory than what the engine computes with. The copies are
between two tensors of the host here; what is copied when is the same as on a GPU."""

from __future__ import annotations

import pytest
import torch
from engine_harness import Baton, Harness, prompt

from baton.core.attempt import Attempt
from baton.engine.api import Stage
from baton.engine.cuda.mirror import MirroredEngine, MirroredListener, PoolMirror
from baton.testing.toy_model import TOY_LAYOUT, toy_reference

pytestmark = pytest.mark.usefixtures("loop")

PAGE = TOY_LAYOUT.page_size
PAGES = 48


class AuditedEngine(MirroredEngine):
    def audit(self) -> None:
        self._engine.audit()  # type: ignore[attr-defined]


class AgentsView:
    """What stands in a pool's place for those who only see its mirror."""

    def __init__(self, harness: Harness) -> None:
        pool = harness.pool
        self.layout, self.allocator = pool.layout, pool.allocator
        memory = bytearray(b"\xff" * pool.layout.pool_bytes(pool.allocator.pages))
        self.tensor = torch.frombuffer(memory, dtype=pool.tensor.dtype).view(pool.tensor.shape)
        self.mirror = PoolMirror(pool.tensor, memory)


class Mirrored(Harness):
    """An engine with a mirror. `agent` is the memory that others see."""

    def __init__(self) -> None:
        self.told = Baton()
        super().__init__(PAGES, listener=self)
        self.agent = AgentsView(self)
        self.told.pool = self.agent  # type: ignore[assignment]
        self.listener = MirroredListener(self.told, self.agent.mirror)
        self.engine = AuditedEngine(self.engine, self.agent.mirror, TOY_LAYOUT)

    def offered(self, attempt: Attempt, tokens: int) -> None:
        self.listener.offered(attempt, tokens)

    def produced(self, *announced) -> None:
        self.listener.produced(*announced)


def hand_over(source: Mirrored, target: Mirrored, attempt: Attempt) -> None:
    source.told.assert_whole(attempt)
    source.told.assert_unchanged(attempt)
    reserved = target.reserved[attempt]
    for index, page in enumerate(reserved.page_ids, start=reserved.first_page):
        for layer in range(TOY_LAYOUT.layers):
            target.agent.tensor[layer, page] = source.told.bytes[attempt][layer, index]
    target.engine.activate(attempt, source.outputs[attempt][0])
    source.engine.release(attempt, valid=True)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 50])
def test_a_handoff_between_mirrored_pools(length: int) -> None:
    source, target = Mirrored(), Mirrored()
    for turn in range(2):  # the second finds its prefix in both caches, and in the source's mirror
        tokens = prompt(length) + prompt(5 * turn, seed=1)
        source.submit(f"a{turn}", tokens, 8, stage=Stage.OFFER)
        attempt = target.submit(f"a{turn}", tokens, 8, stage=Stage.FETCH)
        source.run()
        target.run()
        hand_over(source, target, attempt)
        target.run()
        assert source.outputs[attempt] + target.outputs[attempt] == toy_reference(tokens, 8)
    source.run()
    source.assert_quiet()
    target.assert_quiet()


def test_pages_come_down_once_in_each_use_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Mirrored()
    downs: list[tuple[int, int, list[int]]] = []
    down = PoolMirror.down

    def count(mirror: PoolMirror, layer_start: int, layer_end: int, pages: list[int]) -> None:
        downs.append((layer_start, layer_end, list(pages)))
        down(mirror, layer_start, layer_end, pages)

    monkeypatch.setattr(PoolMirror, "down", count)
    tokens = prompt(32)
    for name in ("first", "again"):
        attempt = source.submit(name, tokens, 8, stage=Stage.OFFER)
        source.run()
        source.told.assert_whole(attempt)
        source.engine.release(attempt, valid=True)
        source.run()
    copied = [(layer, page) for start, end, pages in downs for layer in range(start, end) for page in pages]
    cached = source.cached[Attempt("again")] // PAGE
    assert cached > 0
    assert len(copied) == TOY_LAYOUT.layers * (2 * len(tokens) // PAGE - cached)


@pytest.mark.parametrize("came", [0, 1, 3])
def test_a_pull_of_which_some_pages_came(came: int) -> None:
    source, target = Mirrored(), Mirrored()
    tokens = prompt(4 * PAGE + 1)
    source.submit("earlier", tokens, 2)
    source.run()
    attempt = target.submit("now", tokens, 8, pull_tokens=4 * PAGE)
    target.run()
    reserved = target.reserved[attempt]
    loan = source.engine.lend(Attempt("reader"), reserved.block_hashes)
    assert len(loan.page_ids) == 4
    for theirs, own in list(zip(loan.page_ids, reserved.page_ids, strict=True))[:came]:
        target.agent.tensor[:, own] = source.agent.tensor[:, theirs]
    source.engine.take_back(Attempt("reader"))
    target.engine.pulled(attempt, came * PAGE)
    target.run()
    assert target.outputs[attempt] == toy_reference(tokens, 8)
    assert target.pulled[attempt] == came * PAGE
    target.assert_quiet()


def test_blocks_that_move_out_have_come_down_when_the_step_tells_of_them() -> None:
    harness = Mirrored()
    harness.engine.use_tier(8)
    seen = 0
    for seed in range(8):
        tokens = prompt(6 * PAGE, seed)
        attempt = harness.submit(f"r{seed}", tokens, 3)
        while harness.engine.has_work:
            for moved in harness.step().moved_out:
                pages = moved.page_ids
                seen += len(pages)
                assert torch.equal(harness.agent.tensor[:, pages], harness.pool.tensor[:, pages])
                harness.engine.moved(moved.number)
        assert harness.outputs[attempt] == toy_reference(tokens, 3)
    assert seen


def test_a_cancelled_fetch_leaves_nothing_behind() -> None:
    target = Mirrored()
    attempt = target.submit("a", prompt(20), 8, stage=Stage.FETCH)
    target.run()
    assert target.engine.cancel(attempt) is False
    target.engine.release(attempt, valid=False)
    target.run()
    target.assert_quiet()
    assert not target.engine._reserved
