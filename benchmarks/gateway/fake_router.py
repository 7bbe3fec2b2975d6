"""A router without workers: every `--step-s` seconds each request gets a token that was drawn beforehand.

What the gateway has behind it when only its own cost is asked for. Prints its address, runs until its stdin ends.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import AsyncIterator
from typing import Any

from baton.rpc.server import RpcServer
from baton.rpc.v1 import common_pb2, router_pb2, router_pb2_grpc
from baton.runtime import logs

FIRST_TOKEN = 300  # below are special tokens and single bytes


class FakeRouter(router_pb2_grpc.RouterServicer):
    def __init__(self, model: str, step_s: float, vocabulary: int) -> None:
        draw = random.Random(7)
        self._model = model
        self._step_s = step_s
        self._tokens = [draw.randrange(FIRST_TOKEN, vocabulary) for _ in range(1 << 14)]

    async def ListModels(self, request: Any, context: Any) -> router_pb2.ListModelsResponse:
        model = router_pb2.Model(name=self._model, max_context_tokens=4096, revision="fake", ready=True)
        return router_pb2.ListModelsResponse(models=[model])

    async def Fleet(self, request: Any, context: Any) -> router_pb2.FleetResponse:
        return router_pb2.FleetResponse(redis_connected=True)

    async def Stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[router_pb2.GenerateEvents]:
        live: dict[str, list[int]] = {}  # tokens given, tokens wanted
        prompts: dict[str, int] = {}
        await context.send_initial_metadata(())
        reading = asyncio.create_task(self._read(requests, live, prompts))
        try:
            while not reading.done():
                await asyncio.sleep(self._step_s)
                if live:
                    yield router_pb2.GenerateEvents(events=self._step(live, prompts))
        finally:
            reading.cancel()

    async def _read(self, requests: AsyncIterator[Any], live: dict[str, list[int]], prompts: dict[str, int]) -> None:
        async for request in requests:
            if request.WhichOneof("message") == "submit":
                asked = request.submit
                prompts[asked.request_id] = len(asked.prompt_token_ids)
                live[asked.request_id] = [0, asked.sampling.max_tokens]
            else:
                live.pop(request.cancel.request_id, None)

    def _step(self, live: dict[str, list[int]], prompts: dict[str, int]) -> list[router_pb2.GenerateEvent]:
        events = []
        for id, progress in list(live.items()):
            given, wanted = progress
            tokens = router_pb2.Tokens(token_ids=[self._tokens[(given + len(id)) % len(self._tokens)]])
            if given == 0:
                tokens.cached_tokens = 0
            events.append(router_pb2.GenerateEvent(request_id=id, tokens=tokens))
            progress[0] += 1
            if progress[0] == wanted:
                del live[id]
                usage = router_pb2.Usage(prompt_tokens=prompts.pop(id), completion_tokens=wanted, attempts=1)
                finished = router_pb2.Finished(reason=common_pb2.FINISH_REASON_LENGTH, usage=usage)
                events.append(router_pb2.GenerateEvent(request_id=id, finished=finished))
        return events


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--step-s", type=float, required=True)
    parser.add_argument("--vocabulary", type=int, required=True)
    arguments = parser.parse_args()
    logs.configure("bench", level="warning")
    servicer = FakeRouter(arguments.model, arguments.step_s, arguments.vocabulary)
    server = RpcServer(
        "127.0.0.1:0",
        [("baton.rpc.v1.Router", lambda grpc: router_pb2_grpc.add_RouterServicer_to_server(servicer, grpc))],
    )
    await server.start()
    await server.set_ready(True)
    print(f"127.0.0.1:{server.port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0.0)


if __name__ == "__main__":
    asyncio.run(main())
