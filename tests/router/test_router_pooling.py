"""Pooling requests at the router: where they may run, and what is refused before it costs anything."""

from __future__ import annotations

import pytest
from test_router_policy import worker

from baton.core.errors import InvalidRequest, PromptTooLong
from baton.core.pooling import Task
from baton.router import convert
from baton.router.fleet import Fleet
from baton.router.policy import Limits, NoPlacement, Placement, RequestFacts, place
from baton.router.settings import RouterSettings
from baton.router.validation import submission
from baton.rpc.v1 import common_pb2, router_pb2, worker_pb2
from baton.testing.fake_worker import LAYOUT

BOTH = frozenset({Task.GENERATE, Task.EMBED})
EMBED = RequestFacts("m", 100, 1, task=Task.EMBED)


def placed(request: RequestFacts, *fleet: object) -> Placement | NoPlacement:
    return place(request, list(fleet), {}, Limits(), 0)


def test_prefill_and_unified_workers_pool_whole() -> None:
    fleet = [worker("p", "prefill", tasks=BOTH), worker("d", "decode", tasks=BOTH)]
    chosen = placed(EMBED, *fleet)
    assert isinstance(chosen, Placement) and (chosen.prefill, chosen.decode) == ("p", None)
    idle = worker("u", "unified", tasks=BOTH)
    busy = worker("p", "prefill", tasks=BOTH, waiting_extend_tokens=3000)
    chosen = placed(EMBED, busy, idle)
    assert isinstance(chosen, Placement) and chosen.prefill == "u"


def test_only_workers_that_can_do_the_task_are_asked() -> None:
    old, new = worker("old", "unified"), worker("new", "unified", tasks=BOTH, waiting_extend_tokens=3000)
    chosen = placed(EMBED, old, new)
    assert isinstance(chosen, Placement) and chosen.prefill == "new"
    nobody = placed(EMBED, old)
    assert isinstance(nobody, NoPlacement) and not nobody.busy


def test_an_input_may_fill_the_context() -> None:
    full = worker("u", "unified", tasks=BOTH, token_limit=100)
    assert isinstance(placed(EMBED, full), Placement)
    assert isinstance(placed(RequestFacts("m", 100, 5), full), NoPlacement)
    assert isinstance(placed(RequestFacts("m", 101, 1, task=Task.EMBED), full), NoPlacement)


def described(tasks: list[str], pages: int = 100) -> worker_pb2.WorkerDescription:
    layout = common_pb2.KvLayout(model_revision="r", dtype=LAYOUT.dtype, layers=1, page_size=1, kv_heads=1, head_dim=8)
    return worker_pb2.WorkerDescription(
        worker_id="w", epoch=1, role="unified", model="m", layout=layout, pages=pages, max_context_tokens=64,
        max_running=8, tasks=tasks,
    )  # fmt: skip


class _Port:
    def assign(self, assignment: object, listener: object) -> int:
        raise AssertionError

    def cancel(self, ref: int) -> None: ...

    def forget(self, ref: int) -> None: ...


def fleet_of(*descriptions: worker_pb2.WorkerDescription) -> Fleet:
    fleet = Fleet(lambda: 0.0, 5.0)
    for description in descriptions:
        assert fleet.on_description(_Port(), convert.worker_info(description))
    return fleet


def asked(tokens: int, pooling: common_pb2.Pooling | None) -> router_pb2.GenerateRequest:
    sampling = common_pb2.Sampling(max_tokens=4)
    return router_pb2.GenerateRequest(model="m", prompt_token_ids=[7] * tokens, sampling=sampling, pooling=pooling)


def test_what_workers_tell() -> None:
    assert convert.worker_info(described([])).tasks == {Task.GENERATE}  # one that was built before there were tasks
    assert convert.worker_info(described(["embed", "dream"])).tasks == {Task.EMBED}
    assert convert.worker_info(described(["embed"], pages=0)).token_limit == 64  # no pages: it runs inputs whole


def test_refusals() -> None:
    settings, fleet = RouterSettings(), fleet_of(described(["embed"], pages=0))
    embed = common_pb2.Pooling(task="embed", dimensions=16)
    request = submission(asked(64, embed), settings, fleet)
    assert request.task is Task.EMBED and request.pooling is not None and request.pooling.dimensions == 16
    with pytest.raises(PromptTooLong, match="65 tokens; model 'm' takes at most 64"):
        submission(asked(65, embed), settings, fleet)
    with pytest.raises(InvalidRequest, match="model 'm' does not do task generate; it does: embed"):
        submission(asked(5, None), settings, fleet)
    with pytest.raises(InvalidRequest, match="does not do task classify"):
        submission(asked(5, common_pb2.Pooling(task="classify")), settings, fleet)
    with pytest.raises(InvalidRequest, match="'dream' is no pooling task"):
        submission(asked(5, common_pb2.Pooling(task="dream")), settings, fleet)
    with pytest.raises(InvalidRequest, match="of embeddings only"):
        submission(asked(5, common_pb2.Pooling(task="classify", dimensions=3)), settings, fleet_of())


def test_vectors_come_in_frames() -> None:
    frame = worker_pb2.StepFrame(
        refs=[1, 2], counts=[1, 0], token_ids=[9], finish=[common_pb2.FINISH_REASON_UNSPECIFIED, 1],
        vectors=[worker_pb2.RowVector(ref=2, values=[0.5, -1.0])],
    )  # fmt: skip
    (_, drawn), (_, pooled) = convert.rows(frame)
    assert list(drawn.token_ids) == [9] and not drawn.vector
    assert not pooled.token_ids and list(pooled.vector) == [0.5, -1.0] and pooled.finish is not None
