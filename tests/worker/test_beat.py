"""Every router hears the load, also one that gets no frames because only another router's requests run."""

from __future__ import annotations

import asyncio

from test_worker_stream import Worker

from baton.core.sampling import SamplingParams
from baton.rpc.convert import sampling_to_pb
from baton.rpc.v1 import common_pb2
from baton.rpc.v1 import worker_pb2 as pb


async def test_an_idle_router_hears_of_anothers_load():
    worker = Worker()
    worker.dispatcher.start()
    busy, idle = (worker.dispatcher.open_session(name) for name in ("busy", "idle"))
    for _ in range(2):  # the description and the load that greet every router
        await idle.next_event()
    beat = asyncio.create_task(worker.dispatcher.beat(0.005))
    request = pb.Assign(
        ref=1,
        attempt=common_pb2.Attempt(request_id="q"),
        token_ids=[1, 2, 3],
        prompt_tokens=3,
        sampling=sampling_to_pb(SamplingParams(temperature=0.0, max_tokens=220)),
        run_all=pb.RunAll(),
    )
    worker.dispatcher.assign(busy, request)
    async with asyncio.timeout(20):
        while not (event := await idle.next_event()).step.load.running:
            pass
    assert not event.step.refs
    beat.cancel()
    await worker.dispatcher.stop(5.0)
