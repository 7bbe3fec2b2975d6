"""A toy engine: answers that can be worked out by hand, stages and handoffs like a real one's, and faults to order.

The next token is a function of all tokens before it (`toy_tokens`), so a request gives the same answer wherever and in
however many attempts it runs, and any lost, repeated or foreign token shows. No clock, no I/O, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from baton.core.attempt import Attempt
from baton.core.errors import BatonError, HandoffFailed

VOCABULARY = 1000


def toy_token(token_ids: Iterable[int], vocabulary: int = VOCABULARY) -> int:
    """The token that follows `token_ids`."""
    state = 17
    for token in token_ids:
        state = (state * 1_000_003 + token + 1) % 2_147_483_647
    return state % vocabulary


def toy_tokens(
    prompt: Sequence[int], count: int, *, vocabulary: int = VOCABULARY, stop_token_ids: Iterable[int] = ()
) -> list[int]:
    """What a toy engine answers: `count` tokens, or fewer when one of `stop_token_ids` comes, which is the last."""
    stops = frozenset(stop_token_ids)
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(toy_token(tokens, vocabulary))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


def toy_logprob(token_id: int) -> float:
    """Logprob that a toy engine states for a token."""
    return -(token_id % 50) / 10


@dataclass(slots=True)
class ToyRequest:
    """One attempt. `stage`: run_all | offer | fetch."""

    ref: int
    attempt: Attempt
    token_ids: list[int]
    prompt_tokens: int
    max_tokens: int
    stage: str
    stop_token_ids: frozenset[int] = frozenset()
    wants_logprobs: bool = False
    wants_prompt_logprobs: bool = False
    extended_tokens: int = 0
    emitted_here: int = 0
    is_admitted: bool = False
    is_decoding: bool = False


@dataclass(slots=True)
class ToyRow:
    """New tokens of one attempt; `finish`: "", stop or length."""

    request: ToyRequest
    token_ids: list[int]
    finish: str
    is_first: bool


@dataclass(slots=True)
class ToyStep:
    """What one step did."""

    rows: list[ToyRow] = field(default_factory=list)
    admitted: list[ToyRequest] = field(default_factory=list)
    handoffs: list[ToyRequest] = field(default_factory=list)
    failed: list[tuple[ToyRequest, BatonError]] = field(default_factory=list)


class ToyHandoffs:
    """The place where toy prefill and decode engines meet; instead of agents."""

    def __init__(self) -> None:
        self._first_tokens: dict[Attempt, int] = {}
        self._aborted: set[Attempt] = set()
        self.listeners: list[Callable[[], None]] = []

    def commit(self, attempt: Attempt, first_token: int) -> None:
        self._first_tokens[attempt] = first_token
        self._tell()

    def abort(self, attempt: Attempt) -> None:
        if attempt not in self._first_tokens:
            self._aborted.add(attempt)
            self._tell()

    def first_token(self, attempt: Attempt) -> int | None:
        """The committed first token; None while there is none. Raises HandoffFailed for an aborted handoff."""
        if attempt in self._aborted:
            raise HandoffFailed("the source has aborted the handoff")
        return self._first_tokens.get(attempt)

    def _tell(self) -> None:
        for listener in self.listeners:
            listener()


class ToyEngine:
    """One worker's engine. `chunk_tokens`: prompt tokens of one request extended in a step.

    Faults: `stalled` (no progress at all), `fail_handoffs` (so many fetches fail), `fail_next` (errors for the next
    attempts), `silent_handoffs` (fetches never end).
    """

    def __init__(
        self, handoffs: ToyHandoffs, *, vocabulary: int = VOCABULARY, eos_token_id: int | None = None,
        chunk_tokens: int = 1 << 30, max_running: int = 64,
    ) -> None:  # fmt: skip
        self._handoffs = handoffs
        self._vocabulary = vocabulary
        self._eos: frozenset[int] = frozenset() if eos_token_id is None else frozenset({eos_token_id})
        self._chunk_tokens = chunk_tokens
        self._max_running = max_running
        self.requests: dict[int, ToyRequest] = {}
        self.stalled = False
        self.silent_handoffs = False
        self.fail_handoffs = 0
        self.fail_next: list[BatonError] = []
        self.seen: list[ToyRequest] = []  # every attempt that was ever assigned
        self.cancelled: list[Attempt] = []

    @property
    def running(self) -> int:
        return sum(request.is_admitted for request in self.requests.values())

    @property
    def waiting_extend_tokens(self) -> int:
        return sum(
            len(request.token_ids) - request.extended_tokens
            for request in self.requests.values()
            if request.stage != "fetch" and not request.is_decoding
        )

    @property
    def has_work(self) -> bool:
        """False when a step would do nothing until something changes outside."""
        if self.stalled:
            return False
        return any(request.stage != "fetch" or self._can_fetch(request) for request in self.requests.values())

    def assign(self, request: ToyRequest) -> None:
        self.requests[request.ref] = request
        self.seen.append(request)

    def cancel(self, ref: int) -> None:
        request = self.requests.pop(ref, None)
        if request is not None:
            self.cancelled.append(request.attempt)
            if request.stage == "offer":
                self._handoffs.abort(request.attempt)

    def close(self) -> None:
        """The worker dies: what it has offered and not committed is aborted."""
        for ref in list(self.requests):
            self.cancel(ref)

    def step(self) -> ToyStep:
        """Move every running attempt by a chunk or by a token."""
        output = ToyStep()
        if self.stalled:
            return output
        for request in list(self.requests.values()):
            if not request.is_admitted and self.running < self._max_running:
                request.is_admitted = True
                output.admitted.append(request)
                if self.fail_next:
                    self._fail(request, self.fail_next.pop(0), output)
                    continue
            if request.is_admitted:
                self._move(request, output)
        return output

    def _move(self, request: ToyRequest, output: ToyStep) -> None:
        if request.is_decoding:
            self._emit(request, output)
        elif request.stage == "fetch":
            self._fetch(request, output)
        else:
            request.extended_tokens += self._chunk_tokens
            if request.extended_tokens >= len(request.token_ids):
                request.is_decoding = True
                self._emit(request, output)

    def _can_fetch(self, request: ToyRequest) -> bool:
        if self.silent_handoffs:
            return False
        if request.is_decoding or not request.is_admitted or self.fail_handoffs:
            return True
        try:
            return self._handoffs.first_token(request.attempt) is not None
        except HandoffFailed:
            return True

    def _fetch(self, request: ToyRequest, output: ToyStep) -> None:
        if self.silent_handoffs:
            return
        try:
            if self.fail_handoffs:
                self.fail_handoffs -= 1
                raise HandoffFailed("ordered to fail")
            first_token = self._handoffs.first_token(request.attempt)
        except HandoffFailed as error:
            self._fail(request, error, output)
            return
        if first_token is not None:
            request.token_ids.append(first_token)
            request.is_decoding = True
            output.handoffs.append(request)

    def _emit(self, request: ToyRequest, output: ToyStep) -> None:
        token = toy_token(request.token_ids, self._vocabulary)
        request.token_ids.append(token)
        is_stop = token in self._eos or token in request.stop_token_ids
        is_full = len(request.token_ids) - request.prompt_tokens >= request.max_tokens
        finish = "stop" if is_stop else "length" if is_full else ""
        output.rows.append(ToyRow(request, [token], finish, is_first=request.emitted_here == 0))
        request.emitted_here += 1
        if finish or request.stage == "offer":
            del self.requests[request.ref]
        if request.stage == "offer":
            self._handoffs.commit(request.attempt, token)

    def _fail(self, request: ToyRequest, error: BatonError, output: ToyStep) -> None:
        self.requests.pop(request.ref, None)
        if request.stage == "offer":
            self._handoffs.abort(request.attempt)
        output.failed.append((request, error))
