"""The scheduler: which tokens of which requests the next step computes. Pure planning: no tensors, no clock, no I/O.

One step carries, within `max_batch_tokens`:

    1. one token of every decoding request        their pages grow first, if need be by preempting the least important
    2. chunks of prompts that are under way       by rank
    3. first chunks of newly admitted requests    only when pages for all of their tokens can be had at once

It may plan a step while the one before is under way: then a request's last token may be one that nobody knows yet, and
a request that this token ends is planned once in vain. What it may not do then is to preempt, since the tokens under
way would be lost: it asks to be called again when they have landed.

A request that was admitted thus never waits for pages before its first token, and an OFFER never at all: once its
pages are announced they must not move. Rank (priority, then arrival) is total, and preemption only ever takes from
the end of it, so the first request always advances: preemption cannot go round in circles.
"""

from __future__ import annotations

from collections.abc import Iterable

from baton.core.attempt import Attempt
from baton.core.errors import InternalError
from baton.engine.api import Admitted, Reserved, Stage
from baton.engine.ledger import PageLedger
from baton.engine.plan import EngineConfig, PlannedRow, StepPlan
from baton.engine.request import Phase, RequestState
from baton.engine.waiting import Ranked, admission_order, shared_blocks

MAX_PASSES = 32  # admissions that may go ahead of a request that waits for pages; then all others wait for it


class Scheduler:
    """Owns the requests and their phases. `plan` decides a step; the engine reports with `computed` what was done."""

    def __init__(self, ledger: PageLedger, config: EngineConfig, logprob_chunk_tokens: int) -> None:
        """`logprob_chunk_tokens` is the chunk of a request that wants the logits of its whole prompt."""
        config.check(ledger.page_size)
        self._ledger = ledger
        self._config = config
        self._logprob_chunk_tokens = max(logprob_chunk_tokens, ledger.page_size)
        self._live: dict[Attempt, RequestState] = {}
        self._waiting = Ranked()
        self._running = Ranked()  # extending and decoding
        self._fetching: dict[Attempt, RequestState] = {}
        self._stuck = False  # the last plan was empty: nothing can change before another call
        self.owed_tokens = 0  # uncached prompt tokens still to be computed, of waiting and running requests

    @property
    def running(self) -> int:
        return len(self._running) + len(self._fetching)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return not self._stuck and (len(self._running) > 0 or len(self._waiting) > 0)

    @property
    def live(self) -> Iterable[RequestState]:
        return self._live.values()

    def find(self, attempt: Attempt) -> RequestState | None:
        return self._live.get(attempt)

    def submit(self, request: RequestState) -> None:
        self._live[request.attempt] = request
        self._enqueue(request)
        self._stuck = False

    def plan(self, now: float, under_way: bool = False) -> StepPlan | None:
        """Decide the next step. Pages are taken and phases change here already; nothing is computed.

        `under_way`: a planned step has not ended yet. None: it must end first, since a request must give way, or has
        been promised pages that the step may touch.
        """
        plan = StepPlan()
        if under_way and self._ledger.awaits_limbo:
            return None
        if not self._plan_decodes(plan, under_way):
            return None
        budget = self._plan_extends(plan, self._config.max_batch_tokens - len(plan.rows))
        if not plan.preempted:  # admitting now would take the very pages that were just given up
            self._admit(plan, budget, now)
        for row in plan.rows:
            self._advance(row)
        self._stuck = not (plan.rows or plan.begun or plan.reserved or plan.preempted or under_way)
        return plan

    def computed(self, row: PlannedRow) -> None:
        """The row's K and V are in its pages: share the blocks that became full. What it draws is known now."""
        request = row.request
        request.computed_len = row.end
        request.pending -= row.draws
        self._ledger.publish(request)
        if request.bands or request.state is not None:
            self._ledger.slide(request)

    def activate(self, request: RequestState, first_token: int) -> None:
        """A FETCH has its pages filled: it decodes from the next step on."""
        del self._fetching[request.attempt]
        self.filled(request)
        request.append(first_token)
        request.stage = Stage.RUN_ALL
        request.phase = Phase.DECODING
        self._running.add(request)
        self._stuck = False

    def pulled(self, request: RequestState, tokens: int) -> None:
        """A pull is over: what came goes to the cache, where the request finds it when it is its turn."""
        self._ledger.incoming.arrived(request, tokens // self._ledger.page_size)
        if request.phase is Phase.HELD:
            self.end(request)
            return
        request.pulled_tokens = max(0, tokens - request.usable_blocks * self._ledger.page_size)
        request.pull_blocks, request.pull_tried = 0, True
        self._leave(request)
        self._ledger.vacate(request)
        self._enqueue(request)
        self._stuck = False

    def filled(self, request: RequestState) -> None:
        """A FETCH's pages hold the K and V of all of its tokens."""
        request.computed_len = request.planned_len = len(request.tokens)
        self._ledger.publish(request)

    def take_back(self, attempt: Attempt) -> None:
        """A loan is over: its pages may be what somebody waits for."""
        self._ledger.outgoing.take_back(attempt)
        self._stuck = False

    def moved(self, batch: int) -> None:
        """Blocks are in the host tier: their pages may be what somebody waits for."""
        self._ledger.outgoing.moved(batch)
        self._stuck = False

    def hold(self, request: RequestState) -> None:
        """Compute no further, but leave the pages where they are until `end`."""
        self._leave(request)
        request.phase = Phase.HELD
        self._owe(request, 0)
        self._stuck = False

    def end(self, request: RequestState) -> None:
        """Forget the request; its pages are free, or cached and evictable."""
        self._leave(request)
        self._ledger.vacate(request)
        self._owe(request, 0)
        request.phase = Phase.OVER
        del self._live[request.attempt]
        self._stuck = False

    def audit(self) -> None:
        """Raise InternalError when a request is in the wrong place or counted wrongly. Walks all: for tests."""
        places = {Phase.WAITING: self._waiting, Phase.EXTENDING: self._running, Phase.DECODING: self._running}
        for request in self._live.values():
            place = places.get(request.phase)
            if place is not None and request not in list(place):
                raise InternalError(f"attempt {request.attempt} is {request.phase.value}, but not in its list")
            if request.phase is Phase.FETCHING and request.attempt not in self._fetching:
                raise InternalError(f"attempt {request.attempt} is fetching, but not in its list")
        listed = len(self._waiting) + len(self._running) + len(self._fetching)
        held = sum(request.phase is Phase.HELD for request in self._live.values())
        if listed + held != len(self._live):
            raise InternalError(f"{listed} requests are listed and {held} held, of {len(self._live)}")
        if self.owed_tokens != sum(request.owed_tokens for request in self._live.values()):
            raise InternalError("the tokens still to be computed are miscounted")

    def _plan_decodes(self, plan: StepPlan, under_way: bool) -> bool:
        """False: pages are short, and nobody may be preempted now. What has grown may keep its page."""
        grow = self._ledger.grow
        for request in list(self._running):
            if request.phase is not Phase.DECODING or request.ends_for_sure:
                continue  # extending, or preempted by a request before it
            if request.awaits_jump and request.pending:
                continue
            while not grow(request):
                if under_way:
                    return False
                self._preempt_last(plan)
                if request.phase is not Phase.DECODING:
                    break
            else:
                end = request.planned_tokens
                if end - request.planned_len > 1:
                    self._extend_by_jump(request)
                    continue
                plan.rows.append(PlannedRow(request, end - 1, end, end - 1, draws=True, late=request.pending > 0))
        plan.decode_rows = len(plan.rows)
        return True

    def _extend_by_jump(self, request: RequestState) -> None:
        """Tokens were appended that no step has drawn: the request extends by them, among those that extend."""
        request.phase = Phase.EXTENDING
        request.jumping = True
        self._owe(request, request.remaining)

    def _advance(self, row: PlannedRow) -> None:
        """What is planned from here on follows the row."""
        request = row.request
        self._ledger.advance(request, row.start, row.end)
        request.planned_len = row.end
        request.pending += row.draws
        if request.phase is Phase.EXTENDING:
            self._owe(request, request.remaining)
            if row.draws:
                request.phase = Phase.DECODING
                request.jumping = False

    def _preempt_last(self, plan: StepPlan) -> None:
        """Send the least important request that may be moved back to the queue; its full blocks stay cached."""
        victim = next(request for request in reversed(self._running) if not request.announced)
        self._leave(victim)
        self._ledger.vacate(victim)
        if victim.prompt_logprobs is not None:
            victim.prompt_logprobs = []
        self._enqueue(victim)
        plan.preempted += 1

    def _plan_extends(self, plan: StepPlan, budget: int) -> int:
        for request in self._running:
            if budget <= 0:
                break
            if request.phase is Phase.EXTENDING:
                budget -= self._plan_chunk(plan, request, budget)
        return budget

    def _plan_chunk(self, plan: StepPlan, request: RequestState, budget: int) -> int:
        """Plan the next tokens of a prompt. A chunk ends with a page, so that only the last leaves one unfinished.

        Where the model keeps states, chunks end where one is worth caching: before the prompt's unfinished page, and
        where it leaves what others have computed, since those who share that may come again.
        """
        start, page_size = request.planned_len, self._ledger.page_size
        limit = min(budget, self._chunk_limit(request))
        end = len(request.tokens)
        if end - start > limit:
            end = (start + limit) // page_size * page_size
        elif self._ledger.keeps_states and end // page_size * page_size > start:
            end = end // page_size * page_size
        if self._ledger.keeps_states and start < request.hint_blocks * page_size < end:
            end = request.hint_blocks * page_size
        if end <= start:
            return 0
        self._ledger.cover(request, end)
        reaches_end = end == len(request.tokens)
        draws = reaches_end and request.pooled is None
        logits_start = start if request.wants_all else end - reaches_end
        plan.rows.append(
            PlannedRow(request, start, end, logits_start, draws, completes=reaches_end and request.pooled is not None)
        )
        if request.jumping:
            plan.decode_rows += draws
        else:
            plan.extend_tokens += end - start
        return end - start

    def _chunk_limit(self, request: RequestState) -> int:
        if request.prompt_logprobs is None:
            return self._config.chunk_tokens
        return min(self._config.chunk_tokens, self._logprob_chunk_tokens)

    def _admit(self, plan: StepPlan, budget: int, now: float) -> None:
        """Admit waiting requests, best first. One that does not fit is passed over, but not more than MAX_PASSES times.

        Pages of one block are left for each request that decodes here, now or soon: else it would preempt the newcomer
        at once.
        """
        if not self._waiting or self.running >= self._config.max_running or self._ledger.available_pages <= 0:
            return
        extending = [request for request in self._running if self._is_to_share(request)]
        extending += [request for request in self._fetching.values() if request.pull_blocks]
        headroom = self.running - sum(not request.decodes_here for request in self._running)
        unfit: list[RequestState] = []
        for request in admission_order(self._waiting, self._ledger, now, self._config.patience_s):
            if not self._worth_starting(request, extending, budget):
                continue
            if not self._ledger.reserve(request, headroom):
                unfit.append(request)
                if request.passes >= MAX_PASSES:
                    return
                continue
            budget -= self._begin(plan, request, budget, now)
            for other in unfit:
                other.passes += 1
            if request.phase is Phase.EXTENDING or request.pull_blocks:
                extending.append(request)
            headroom += request.decodes_here
            if self.running >= self._config.max_running:
                return

    def _is_to_share(self, request: RequestState) -> bool:
        """It is computing blocks that are not in the cache yet."""
        if request.phase is Phase.EXTENDING:
            return True
        return request.held_blocks < request.planned_len // self._ledger.page_size

    def _worth_starting(self, request: RequestState, extending: list[RequestState], budget: int) -> bool:
        """Whether the request, were it admitted, would compute something in this step, and not mostly what
        another is about to put into the cache."""
        if request.stage is Stage.FETCH:
            return True
        blocks = self._ledger.cached_blocks(request)
        lacking = len(request.tokens) - blocks * self._ledger.page_size
        if budget < min(lacking, self._ledger.page_size) and not self._ledger.lacking_blocks(request):
            return False
        return not any(
            2 * self._ledger.page_size * (shared_blocks(request, other, blocks) - blocks) >= lacking
            for other in extending
            if not other.sealed and other.priority >= request.priority
        )

    def _begin(self, plan: StepPlan, request: RequestState, budget: int, now: float) -> int:
        """The request has its pages: it extends from this step on, or waits for its pull or handoff. Returns tokens
        planned."""
        self._waiting.remove(request)
        if request.pull_blocks:
            self._reserve(plan, request)
            return 0
        request.pull_tried = True
        cached_tokens = request.held_blocks * self._ledger.page_size
        plan.begun.append(request)
        if not request.admitted_before:
            request.admitted_before = True
            pulled_tokens = min(request.pulled_tokens, cached_tokens)
            plan.admitted.append(
                Admitted(request.attempt, cached_tokens, now - request.arrived_s, pulled_tokens=pulled_tokens)
            )
        if request.stage is Stage.FETCH:
            self._reserve(plan, request)
            return 0
        request.phase = Phase.EXTENDING
        request.computed_len = request.planned_len = cached_tokens
        self._owe(request, request.remaining)
        self._running.add(request)
        return self._plan_chunk(plan, request, budget)

    def _reserve(self, plan: StepPlan, request: RequestState) -> None:
        """Somebody fills the request's own pages: all of them, or those of the blocks that are pulled."""
        request.phase = Phase.FETCHING
        self._fetching[request.attempt] = request
        first_page, wanted = self._ledger.reserved(request)
        names = self._ledger.incoming.names(request) if request.pull_blocks else []
        tiers = self._ledger.tiers(names) if request.from_tier else []
        tokens, usable = (blocks * self._ledger.page_size for blocks in (request.pull_blocks, request.usable_blocks))
        plan.reserved.append(Reserved(request.attempt, first_page, wanted, names, tiers, tokens, usable))

    def _enqueue(self, request: RequestState) -> None:
        request.phase = Phase.WAITING
        request.jumping = False
        request.passes = 0
        self._waiting.add(request)
        spared = max(self._ledger.cached_blocks(request), self._ledger.lacking_blocks(request))
        uncached = len(request.tokens) - spared * self._ledger.page_size
        self._owe(request, 0 if request.stage is Stage.FETCH else uncached)

    def _leave(self, request: RequestState) -> None:
        if request.phase is Phase.WAITING:
            self._waiting.remove(request)
        elif request.phase in (Phase.EXTENDING, Phase.DECODING):
            self._running.remove(request)
        elif request.phase is Phase.FETCHING:
            del self._fetching[request.attempt]

    def _owe(self, request: RequestState, tokens: int) -> None:
        self.owed_tokens += tokens - request.owed_tokens
        request.owed_tokens = tokens
