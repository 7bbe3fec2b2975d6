"""Vectors for callers in the same process (baton.engine.inprocess): texts in, lists of numbers out."""

from __future__ import annotations

import itertools
import json
import queue
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from baton.core.architecture import end_token
from baton.core.attempt import Attempt
from baton.core.pooling import PoolingParams, Task
from baton.core.sampling import SamplingParams
from baton.engine.api import EngineRequest
from baton.engine.driver import Driver, Progress

Text = str | tuple[str, str] | Sequence[int]


class Vectors:
    """Runs pooling requests on a driver. Methods may be called from any thread."""

    def __init__(self, driver: Driver, folder: Path, tokenizer: Callable[[], Tokenizer], root: bytes) -> None:
        """`tokenizer` is asked for only where there is text; it may raise ConfigError. `root`: of block hashes."""
        self._driver = driver
        self._folder = folder
        self._tokenizer = tokenizer
        self._root = root
        self._numbers = itertools.count(1)

    def of(self, texts: Sequence[Text], params: PoolingParams) -> list[list[float]]:
        """A vector for each text, pair of texts or list of token ids. Raises BatonError; the others are cancelled."""
        told: list[tuple[Attempt, queue.SimpleQueue[Progress]]] = []
        done = 0
        try:
            for text in texts:
                request = self._request(text, params)
                progress: queue.SimpleQueue[Progress] = queue.SimpleQueue()
                self._driver.submit(request, progress.put)
                told.append((request.attempt, progress))
            vectors = []
            for _, progress in told:
                vectors.append(_vector(progress))
                done += 1
            return vectors
        finally:
            for attempt, _ in told[done:]:
                self._driver.cancel(attempt)

    def _request(self, text: Text, params: PoolingParams) -> EngineRequest:
        token_ids, second_text_at = self._tokens(text, ends=params.task is not Task.SCORE)
        attempt = Attempt(f"local-vector-{next(self._numbers)}", 0)
        return EngineRequest(
            attempt,
            token_ids,
            len(token_ids),
            SamplingParams(max_tokens=1),
            self._root,
            pooling=replace(params, second_text_at=second_text_at),
        )

    def _tokens(self, text: Text, *, ends: bool) -> tuple[list[int], int]:
        """`ends`: with the end token, for models that want it; not where it is asked what comes next."""
        if not isinstance(text, (str, tuple)):
            return list(text), 0
        tokenizer = self._tokenizer()
        encoding = tokenizer.encode(text) if isinstance(text, str) else tokenizer.encode(*text)
        second_text_at = encoding.type_ids.index(1) if 1 in encoding.type_ids else 0
        end = self._end(tokenizer, encoding.ids) if ends else []
        return [*encoding.ids, *end], second_text_at

    def _end(self, tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[int]:
        """The end token, where tokenizer_config.json asks for it and tokenizer.json does not bring it."""
        file = self._folder / "tokenizer_config.json"
        name = end_token(json.loads(file.read_bytes())) if file.is_file() else None
        token = tokenizer.token_to_id(name) if name is not None else None
        return [] if token is None or list(token_ids[-1:]) == [token] else [token]


def _vector(progress: queue.SimpleQueue[Progress]) -> list[float]:
    while True:
        told = progress.get()
        if told.error is not None:
            raise told.error
        if told.row is not None and told.row.vector is not None:
            return told.row.vector
