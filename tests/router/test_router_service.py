"""Router and client over real gRPC, with fake workers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from router_system import System, running, until

from baton.client import BatonClient, Event, FinishedEvent, GenerateRequest, SamplingParams, TokensEvent
from baton.core.errors import (
    BatonError,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    PromptTooLong,
    Unavailable,
)
from baton.router import outbox
from baton.rpc.channel import open_channel
from baton.rpc.status import from_rpc_error
from baton.rpc.v1 import common_pb2, router_pb2, router_pb2_grpc
from baton.testing.toy_engine import toy_logprob, toy_tokens

PROMPT = [1, 2, 3]


def request(count: int = 8, prompt: list[int] | None = None, **options: object) -> GenerateRequest:
    sampling = options.pop("sampling", SamplingParams(max_tokens=count))
    return GenerateRequest("toy", prompt or PROMPT, sampling, **options)  # type: ignore[arg-type]


async def tokens_of(system: System, asked: GenerateRequest) -> list[int]:
    return (await system.client.complete(asked)).token_ids


class TestClient:
    async def test_streams(self) -> None:
        async with running() as system:
            events = [event async for event in system.client.generate(request(8))]
            *tokens, last = events
            assert isinstance(last, FinishedEvent) and last.reason == "length" and last.stop_token_id is None
            assert [t for event in tokens if isinstance(event, TokensEvent) for t in event.token_ids] == toy_tokens(
                PROMPT, 8
            )
            usage = last.usage
            assert (usage.prompt_tokens, usage.completion_tokens, usage.attempts) == (3, 8, 1)
            assert (usage.prefill_worker, usage.decode_worker, usage.handoff_bytes) == ("p0", "d0", 1024)
            system.assert_quiet()

    async def test_logprobs_and_stop(self) -> None:
        async with running() as system:
            stop = toy_tokens(PROMPT, 4)[-1]
            sampling = SamplingParams(max_tokens=9, stop_token_ids=(stop,), top_logprobs=1, prompt_logprobs=0)
            answer = await system.client.complete(request(sampling=sampling))
            assert (answer.token_ids, answer.reason, answer.stop_token_id) == (toy_tokens(PROMPT, 4), "stop", stop)
            assert answer.logprobs is not None and answer.prompt_logprobs is not None
            assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
            assert answer.logprobs[1].logprob == pytest.approx(toy_logprob(answer.token_ids[1]))
            assert answer.logprobs[0].top[0][0] == answer.token_ids[0]
            assert [entry.token_id for entry in answer.prompt_logprobs] == PROMPT[1:]

    async def test_many_at_once(self) -> None:
        async with running("ppdd", routers=2) as system:
            prompts = [[n, n + 1] for n in range(100)]
            answers = await asyncio.gather(*(tokens_of(system, request(20, prompt)) for prompt in prompts))
            assert answers == [toy_tokens(prompt, 20) for prompt in prompts]
            for worker in system.workers.values():
                assert worker.engine.seen, "all workers take part"
            system.assert_quiet()

    @pytest.mark.parametrize("how", ["close", "task"])
    async def test_leaving_cancels_everywhere(self, how: str) -> None:
        async with running(worker={"step_s": 0.01}) as system:
            seen: list[Event] = []

            async def read() -> None:
                async with aclosing(system.client.generate(request(1000))) as events:
                    async for event in events:
                        seen.append(event)
                        if how == "close" and len(seen) == 3:
                            return

            task = asyncio.create_task(read())
            await until(lambda: len(seen) >= 3)
            if how == "task":
                task.cancel()
            await asyncio.wait([task])
            await until(lambda: not system["d0"].engine.requests)
            await until(lambda: system.routers[0].lifecycle.in_flight == 0)
            assert system["d0"].engine.cancelled

    @pytest.mark.parametrize(
        ("asked", "error", "words"),
        [
            (GenerateRequest("nope", [1]), ModelNotFound, "served: toy"),
            (GenerateRequest("toy", []), InvalidRequest, "empty"),
            (GenerateRequest("toy", [1] * 5000), PromptTooLong, "5000 tokens"),
            (GenerateRequest("", [1]), InvalidRequest, "model"),
            (GenerateRequest("toy", [1], request_id=""), InvalidRequest, "request_id"),
        ],
    )
    async def test_errors_are_typed(self, asked: GenerateRequest, error: type[BatonError], words: str) -> None:
        async with running() as system:
            with pytest.raises(error, match=words):
                await system.client.complete(asked)
            assert await tokens_of(system, request()) == toy_tokens(PROMPT, 8), "the stream lives on"

    async def test_an_id_in_use(self) -> None:
        async with (
            running(worker={"step_s": 0.01}) as system,
            aclosing(system.client.generate(request(1000, request_id="same"))) as events,
            BatonClient([system.routers[0].address]) as other,
        ):
            await anext(events)
            with pytest.raises(InvalidRequest, match="in use"):
                await other.complete(request(request_id="same"))

    async def test_deadline(self) -> None:
        async with running() as system:
            system["d0"].engine.stalled = True
            with pytest.raises(DeadlineExceeded):
                await system.client.complete(request(8, deadline_s=0.3))
            await until(lambda: not system["d0"].engine.requests)
            system.assert_quiet()

    async def test_a_router_that_does_not_answer_does_not_outlast_the_deadline(self) -> None:
        async with running() as system:
            system["d0"].engine.stalled = True
            system.routers[0].lifecycle._deadlines._on_timer = lambda request: None  # type: ignore[method-assign]
            with pytest.raises(DeadlineExceeded):
                await system.client.complete(request(8, deadline_s=0.2))

    async def test_models_and_fleet(self) -> None:
        async with running("pdu") as system:
            (model,) = await system.client.models()
            assert (model.name, model.max_context_tokens, model.revision) == ("toy", 4096, "toy-revision")
            assert model.ready
            fleet = await system.client.fleet()
            assert [(w.worker_id, w.role, w.has_agent, w.transport) for w in fleet.workers] == [
                ("d0", "decode", True, "toy"), ("p0", "prefill", True, "toy"), ("u0", "unified", True, "toy"),
            ]  # fmt: skip
            assert not fleet.redis_connected and fleet.in_flight == 0
            for name in ("d0", "u0"):
                await system[name].kill()
            await until(lambda: len(system.routers[0].fleet.workers) == 1)
            (model,) = await system.client.models()
            assert not model.ready

    async def test_no_router(self) -> None:
        with pytest.raises(ConfigError):
            BatonClient([])
        async with BatonClient(["127.0.0.1:1"], connect_s=0.1) as client:
            assert not client.connected
            with pytest.raises(Unavailable, match="no router"):
                await client.complete(request())
            with pytest.raises(DeadlineExceeded):
                await client.complete(request(deadline_s=0.05))
            with pytest.raises(Unavailable):
                await client.models()


class TestLostRouter:
    async def test_requests_go_on_at_another(self) -> None:
        """A router is cut off in mid-stream: its requests move with the tokens they have."""
        async with running("ppdd", routers=2, worker={"step_s": 0.002}) as system:
            prompts = [[n, 7] for n in range(24)]
            tasks = [asyncio.create_task(tokens_of(system, request(40, prompt))) for prompt in prompts]
            first = system.routers[0]
            await until(lambda: first.lifecycle.in_flight >= 12)
            await asyncio.sleep(0.03)
            await first.stop(0.0)
            assert await asyncio.gather(*tasks) == [toy_tokens(prompt, 40) for prompt in prompts]
            await until(lambda: all(not worker.engine.requests for worker in system.workers.values()))

    async def test_the_only_router_comes_back(self) -> None:
        async with running("pd", worker={"step_s": 0.002}) as system:
            router = system.routers[0]
            task = asyncio.create_task(tokens_of(system, request(60)))
            await until(lambda: len(system["d0"].engine.seen) == 1)
            await asyncio.sleep(0.03)
            await router.stop(0.0)
            await asyncio.sleep(0.05)
            await system.add_router(router.address)
            assert await task == toy_tokens(PROMPT, 60)
            attempts = [seen.attempt.n for seen in system["d0"].engine.seen]
            assert attempts[0] == 0 and attempts[-1] >= 1024, "no two attempts share a number"

    async def test_a_draining_router_gets_nothing_new(self) -> None:
        async with running("pd", routers=2, worker={"step_s": 0.01}) as system:
            leaving, staying = system.routers
            task = asyncio.create_task(tokens_of(system, request(30)))
            other = asyncio.create_task(tokens_of(system, request(30, [9])))
            await until(lambda: leaving.lifecycle.in_flight == staying.lifecycle.in_flight == 1)
            stopping = asyncio.create_task(leaving.stop(10.0))
            links = system.client._links
            await until(lambda: sum(link.serving for link in links) == 1)
            answers = await asyncio.gather(*(tokens_of(system, request(3, [n + 1])) for n in range(10)))
            assert answers == [toy_tokens([n + 1], 3) for n in range(10)]
            assert await task == toy_tokens(PROMPT, 30) and await other == toy_tokens([9], 30)
            await stopping
            placed = [seen.attempt for seen in system["p0"].engine.seen]
            assert {attempt.n for attempt in placed} == {0}, "nothing was cut off"

    async def test_the_last_event_may_be_lost(self) -> None:
        """Tokens say when they are the last: a stream that breaks right after them is no reason to go on."""
        async with running("u") as system:
            router = system.routers[0]
            sent = outbox.OutboxSink.on_finished
            try:
                outbox.OutboxSink.on_finished = lambda *_: None  # type: ignore[method-assign]
                task = asyncio.create_task(system.client.complete(request(5)))
                await until(lambda: bool(system["u0"].engine.seen) and not system["u0"].engine.requests)
                await asyncio.sleep(0.05)
                await router.stop(0.0)
                answer = await task
            finally:
                outbox.OutboxSink.on_finished = sent  # type: ignore[method-assign]
            assert (answer.token_ids, answer.reason) == (toy_tokens(PROMPT, 5), "length")
            assert answer.usage.completion_tokens == 5


class TestLostWorker:
    @pytest.mark.parametrize("role", ["p0", "d0"])
    async def test_is_noticed_at_once(self, role: str) -> None:
        async with running("ppdd", worker={"step_s": 0.002, "chunk_tokens": 4}) as system:
            prompts = [[n + 1] * 40 for n in range(16)]
            tasks = [asyncio.create_task(tokens_of(system, request(40, prompt))) for prompt in prompts]
            await until(lambda: len(system[role].engine.seen) >= 4)
            await asyncio.sleep(0.03)
            await system[role].kill()
            assert await asyncio.gather(*tasks) == [toy_tokens(prompt, 40) for prompt in prompts]
            await until(lambda: all(not worker.engine.requests for worker in system.workers.values()))

    async def test_comes_back_on_the_same_address(self) -> None:
        async with running("u", worker={"step_s": 0.002}) as system:
            task = asyncio.create_task(tokens_of(system, request(50)))
            await until(lambda: bool(system["u0"].engine.seen))
            await asyncio.sleep(0.02)
            epoch = system["u0"].epoch
            await system["u0"].kill()
            await asyncio.sleep(0.1)
            await system["u0"].start()
            assert await task == toy_tokens(PROMPT, 50)
            (worker,) = (await system.client.fleet()).workers
            assert worker.epoch > epoch

    async def test_random_kills_change_no_token(self) -> None:
        choose = random.Random(3)
        async with running("ppdd", routers=2, worker={"step_s": 0.001, "chunk_tokens": 8}, max_attempts=50) as system:
            prompts = [[choose.randrange(1000) for _ in range(choose.randrange(1, 30))] for _ in range(60)]

            async def later(prompt: list[int]) -> list[int]:
                await asyncio.sleep(choose.random() * 0.6)
                return await tokens_of(system, request(40, prompt))

            tasks = [asyncio.create_task(later(prompt)) for prompt in prompts]
            for _ in range(12):
                await asyncio.sleep(0.05)
                worker = choose.choice(list(system.workers.values()))
                await worker.kill()
                await asyncio.sleep(0.02)
                await worker.start()
            answers = await asyncio.gather(*tasks)
            assert answers == [toy_tokens(prompt, 40) for prompt in prompts]
            await until(lambda: all(not worker.engine.requests for worker in system.workers.values()))


class Context:
    async def send_initial_metadata(self, metadata: object) -> None:
        """Nobody listens."""


class TestPlainGrpc:
    """Callers without our client."""

    @staticmethod
    def message(**fields: object) -> router_pb2.GenerateRequest:
        defaults: dict[str, object] = {
            "model": "toy", "prompt_token_ids": PROMPT, "sampling": common_pb2.Sampling(max_tokens=6),
        }  # fmt: skip
        return router_pb2.GenerateRequest(**(defaults | fields))  # type: ignore[arg-type]

    async def test_generate_and_complete(self) -> None:
        async with running() as system, open_channel(system.routers[0].address) as channel:
            stub = router_pb2_grpc.RouterStub(channel)
            events = [event async for event in stub.Generate(self.message())]
            assert [t for e in events for t in e.tokens.token_ids] == toy_tokens(PROMPT, 6)
            assert events[-1].finished.reason == common_pb2.FINISH_REASON_LENGTH
            assert events[-2].tokens.finish == common_pb2.FINISH_REASON_LENGTH
            assert len({event.request_id for event in events}) == 1 and events[0].request_id
            answer = await stub.Complete(self.message(request_id="mine"))
            assert answer.request_id == "mine"
            assert list(answer.tokens.token_ids) == toy_tokens(PROMPT, 6)
            assert answer.finished.usage.completion_tokens == 6

    async def test_errors_are_statuses(self) -> None:
        async with running() as system, open_channel(system.routers[0].address) as channel:
            stub = router_pb2_grpc.RouterStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Complete(self.message(model="nope"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert isinstance(from_rpc_error(caught.value), ModelNotFound)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in stub.Generate(self.message(prompt_token_ids=[])):
                    pass
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    async def test_cancelling_the_call_cancels_the_request(self) -> None:
        async with running(worker={"step_s": 0.01}) as system, open_channel(system.routers[0].address) as channel:
            stub = router_pb2_grpc.RouterStub(channel)
            call = stub.Generate(self.message(sampling=common_pb2.Sampling(max_tokens=1000)))
            await call.read()
            call.cancel()
            await until(lambda: system.routers[0].lifecycle.in_flight == 0)
            await until(lambda: not system["d0"].engine.requests)

    async def test_a_stream_that_is_closed_for_sending_gets_its_answers(self) -> None:
        async with running() as system, open_channel(system.routers[0].address) as channel:
            call = router_pb2_grpc.RouterStub(channel).Stream()
            await call.write(router_pb2.StreamRequest(submit=self.message(request_id="a")))
            await call.write(router_pb2.StreamRequest(submit=self.message(request_id="a")))
            await call.write(router_pb2.StreamRequest(cancel=router_pb2.CancelRequest(request_id="unknown")))
            await call.done_writing()
            events = [event async for events in call for event in events.events]
            assert any(event.error.code == "invalid_request" for event in events)
            assert [t for e in events for t in e.tokens.token_ids] == toy_tokens(PROMPT, 6)

    async def test_a_caller_that_does_not_read_loses_its_stream(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outbox, "MAX_EVENTS", 50)
        async with running("u") as system:
            submit = self.message(request_id="a", sampling=common_pb2.Sampling(max_tokens=1000))

            async def requests() -> AsyncIterator[router_pb2.StreamRequest]:
                yield router_pb2.StreamRequest(submit=submit)
                await asyncio.Event().wait()

            async def blocked_caller() -> None:
                async with aclosing(system.routers[0].servicer.Stream(requests(), Context())) as events:  # type: ignore[arg-type]
                    async for _ in events:
                        await asyncio.Event().wait()

            task = asyncio.create_task(blocked_caller())
            await asyncio.wait([task], timeout=20)
            assert task.cancelled()
            await until(lambda: not system["u0"].engine.requests)
            system.assert_quiet()

    async def test_health(self) -> None:
        async with running() as system, open_channel(system.routers[0].address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service="baton.rpc.v1.Router"))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
