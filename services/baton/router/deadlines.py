"""How long each phase of a request may take."""

from __future__ import annotations

from baton.router.request import Phase, Request
from baton.router.settings import RouterSettings

RECHECK_S = 0.5  # whether a model that nobody has named yet does exist
PREDICTION_SLACK = 4.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


def phase_due_at(request: Request, settings: RouterSettings, *, model_is_known: bool) -> float:
    """When the request's present phase has lasted too long, on the clock of `request.phase_since`."""
    since = request.phase_since
    match request.phase:
        case Phase.QUEUED:
            return since + (settings.queue_s if model_is_known else RECHECK_S)
        case Phase.PAUSED:
            return since + min(_FIRST_PAUSE_S * 2 ** (request.usage.attempts - 2), _LONGEST_PAUSE_S)
        case Phase.PREFILL:
            predicted_s = request.run.placement.predicted_s if request.run else 0.0
            return since + settings.first_token_s + PREDICTION_SLACK * predicted_s
        case Phase.HANDOFF:
            return since + settings.handoff_s
        case _:
            return max(since, request.last_token_at or 0.0) + settings.stall_s
