"""A fake engine behind vLLM's API server: vLLM's own scheduler and processes, and an executor that draws no tokens.

Imported by vLLM itself (`--distributed-executor-backend vllm_fake.FakeExecutor`), in its own environment. It loads the
checkpoint, which is tiny, because vLLM's scheduler wants to know its KV cache; it never runs it.
"""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import Future
from typing import Any

from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import ModelRunnerOutput

FIRST_TOKEN = 300


class FakeExecutor(UniProcExecutor):
    def _init_executor(self) -> None:
        super()._init_executor()
        draw = random.Random(7)
        vocabulary = self.model_config.get_vocab_size()
        self._tokens = [draw.randrange(FIRST_TOKEN, vocabulary) for _ in range(1 << 14)]
        self._step_s = float(os.environ["FAKE_STEP_S"])
        self._left: dict[str, int] = {}  # prompt tokens that have not been scheduled yet
        self._given: dict[str, int] = {}
        self._next_at = 0.0

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        for new in scheduler_output.scheduled_new_reqs:
            self._left[new.req_id] = len(new.prompt_token_ids) - new.num_computed_tokens
            self._given[new.req_id] = len(new.req_id)
        for id in scheduler_output.finished_req_ids:
            self._left.pop(id, None)
            self._given.pop(id, None)
        ids = list(scheduler_output.num_scheduled_tokens)
        sampled = [self._sample(id, scheduler_output.num_scheduled_tokens[id]) for id in ids]
        if ids:
            time.sleep(max(0.0, self._next_at - time.monotonic()))
            self._next_at = max(time.monotonic(), self._next_at) + self._step_s
        output = ModelRunnerOutput(ids, {id: index for index, id in enumerate(ids)}, sampled)
        if not non_block:
            return output
        future: Future[ModelRunnerOutput] = Future()
        future.set_result(output)
        return future

    def _sample(self, id: str, scheduled: int) -> list[int]:
        self._left[id] -= scheduled
        if self._left[id] > 0:
            return []  # a chunk of the prompt
        self._left[id] = 0
        self._given[id] += 1
        return [self._tokens[self._given[id] % len(self._tokens)]]
