"""The handoff desk: the one thing in which the roles differ.

A desk stands between the engine and this worker's KV agent. It is told about step outputs and agent messages, and
drives the engine by posted commands. Its methods run on the asyncio loop, the engine's listener on the engine's
thread. Rule for both sides: pages that an agent may still touch are given back only when the agent has said so
(`Released`, `FetchFailed`), or, after the link broke, when the next `Welcome` shows that the agent is quiet or new
(an agent greets a worker only when nothing of an earlier session is in flight).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from baton.core.attempt import Attempt
from baton.core.errors import BatonError
from baton.engine.api import EngineRequest, HandoffListener, Stage, StepOutput
from baton.kv.local import AgentMessage, WorkerMessage
from baton.rpc.v1 import worker_pb2 as pb
from baton.worker.loop import Command


class CommitState(msgspec.Struct, frozen=True, array_like=True):
    """What decode must know besides the pages: the `state` of a commit record."""

    first_token: int


class Counter(Protocol):
    """The worker's surroundings as a desk sees them. All methods on the asyncio loop unless said otherwise."""

    def post(self, command: Command) -> None:
        """Run on the engine's thread. Any thread."""

    def send(self, message: WorkerMessage) -> bool:
        """Send to the agent; False when it is not connected. Any thread."""

    def fail(self, attempt: Attempt, error: BatonError) -> None:
        """Tell the router that the attempt is over here."""

    def report(self, attempt: Attempt, report: pb.HandoffReport) -> None:
        """Tell the router how a handoff went."""

    def traceparent(self, attempt: Attempt) -> str:
        """What the agent's spans of the attempt lie below; empty when it is not traced. Any thread."""

    def is_live(self, attempt: Attempt) -> bool:
        """Whether a router still waits for the attempt."""

    def done(self, attempt: Attempt) -> None:
        """Nothing more will be said about the attempt; forget it."""


class HandoffDesk(Protocol):
    """Handoffs of one worker, in one role."""

    stages: frozenset[Stage]  # of requests that this role takes

    @property
    def listener(self) -> HandoffListener | None:
        """What the engine tells about produced pages, on its own thread."""

    def assigned(self, request: EngineRequest, message: pb.Assign) -> None:
        """The attempt is about to be submitted. Raises BatonError when it cannot be taken now."""

    def on_step(self, output: StepOutput) -> None: ...

    def on_agent_message(self, message: AgentMessage) -> None: ...

    def on_agent_connected(self) -> None: ...

    def on_agent_lost(self) -> None: ...

    def cancelled(self, attempt: Attempt, pages_free: bool) -> None:
        """The engine has stopped computing the attempt. Unless `pages_free`, the desk must get its pages back."""


MakeDesk = Callable[[Counter], HandoffDesk]


class NoDesk:
    """Role unified: everything happens in one pool."""

    stages = frozenset({Stage.RUN_ALL})
    listener = None

    def __init__(self, counter: Counter) -> None:
        del counter

    def assigned(self, request: EngineRequest, message: pb.Assign) -> None:
        """Nothing to prepare."""

    def on_step(self, output: StepOutput) -> None:
        """Nothing to hand over."""

    def on_agent_message(self, message: AgentMessage) -> None:
        """No agent."""

    def on_agent_connected(self) -> None:
        """No agent."""

    def on_agent_lost(self) -> None:
        """No agent."""

    def cancelled(self, attempt: Attempt, pages_free: bool) -> None:
        """Nothing is ever lent."""
