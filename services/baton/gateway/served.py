"""How a request was served: workers, attempts and handoff, for clients that ask with the header `X-Baton-Details`.

Told as an object `baton` beside the answer, which no API defines and clients pass over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from baton.client import Usage
from baton.gateway.generation import Choice
from baton.gateway.http.context import context_of
from baton.gateway.settings import GatewaySettings

HEADER = "x-baton-details"


def wants_details(request: Request, settings: GatewaySettings) -> bool:
    """Whether the client asks, and the operator allows that it is told."""
    return settings.ui and request.headers.get(HEADER, "") not in ("", "0", "false")


def details(request: Request, choices: Sequence[Choice]) -> dict[str, Any]:
    """The value of `baton`. Times are in seconds, those of the first token from the request's arrival."""
    started = context_of(request.scope).started
    return {"request_id": context_of(request.scope).id, "choices": [_choice(choice, started) for choice in choices]}


def _choice(choice: Choice, started: float) -> dict[str, Any]:
    served = choice.served
    told: dict[str, Any] = {
        "index": choice.index,
        "prefill_worker": served.prefill_worker or None,
        "decode_worker": served.decode_worker or None,
        "first_token_s": None if choice.first_token_at is None else round(choice.first_token_at - started, 4),
    }
    if choice.is_reported:
        told |= {"attempts": served.attempts, "queued_s": round(served.queued_s, 4), "handoff": _handoff(served)}
    return told


def _handoff(served: Usage) -> dict[str, Any] | None:
    """None: one worker did it all."""
    if not served.handoff_s and not served.handoff_bytes:
        return None
    hidden = 1 - min(1.0, served.handoff_exposed_s / served.handoff_s) if served.handoff_s else None
    return {
        "bytes": served.handoff_bytes,
        "seconds": round(served.handoff_s, 5),
        "exposed_seconds": round(served.handoff_exposed_s, 5),
        "overlap": None if hidden is None else round(hidden, 3),
    }
