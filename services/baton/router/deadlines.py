"""How long a request, and each phase of it, may take; one timer per request."""

from __future__ import annotations

from collections.abc import Callable

from baton.router.request import Clock, Phase, Request
from baton.router.settings import RouterSettings

RECHECK_S = 0.5  # whether a model that nobody has named yet does exist
PREDICTION_SLACK = 4.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


class Deadlines:
    """Watches the phases of requests.

    `on_total(request)` is called when the request's whole time is over, `on_phase(request, waited_s)` when its phase
    has lasted too long. `knows_model(name)` says whether any worker has named the model.
    """

    def __init__(
        self,
        settings: RouterSettings,
        clock: Clock,
        knows_model: Callable[[str], bool],
        on_total: Callable[[Request], None],
        on_phase: Callable[[Request, float], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._knows_model = knows_model
        self._on_total = on_total
        self._on_phase = on_phase

    def enter(self, request: Request, phase: Phase) -> None:
        """The request is in a new phase from now on. OVER ends the watching."""
        request.phase = phase
        request.phase_since = self._clock.time()
        if phase is not Phase.OVER:
            self._arm(request)
        elif request.timer is not None:
            request.timer.cancel()

    def _arm(self, request: Request) -> None:
        """Tokens do not move the timer: when it fires too early, it is set again."""
        now = self._clock.time()
        due_at = self._due_at(request)
        due_at = min(request.deadline_at, due_at if due_at > now else now + RECHECK_S)
        if request.timer is not None:
            if request.timer.when() <= due_at:
                return
            request.timer.cancel()
        request.timer = self._clock.call_at(due_at, self._on_timer, request)

    def _on_timer(self, request: Request) -> None:
        request.timer = None
        now = self._clock.time()
        if now >= request.deadline_at:
            self._on_total(request)
        elif now >= self._due_at(request):
            self._on_phase(request, now - request.phase_since)
        if not request.is_over:
            self._arm(request)

    def _due_at(self, request: Request) -> float:
        settings, since = self._settings, request.phase_since
        match request.phase:
            case Phase.QUEUED:
                return since + (settings.queue_s if self._knows_model(request.asked.model) else RECHECK_S)
            case Phase.PAUSED:
                return since + min(_FIRST_PAUSE_S * 2 ** (request.usage.attempts - 2), _LONGEST_PAUSE_S)
            case Phase.PREFILL:
                predicted_s = request.run.placement.predicted_s if request.run else 0.0
                return since + settings.first_token_s + PREDICTION_SLACK * predicted_s
            case Phase.HANDOFF:
                return since + settings.handoff_s
            case _:
                return max(since, request.last_token_at or 0.0) + settings.stall_s
