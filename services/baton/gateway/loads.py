"""`GET /v1/loads`: what every worker holds and does now, and has done since it started, for operators and for `/ui`.

Totals only grow while a worker's `epoch` stays the same: rates are differences of two answers, whoever gave them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from baton.client import Fleet, FleetWorker
from baton.core.version import VERSION
from baton.gateway import metrics
from baton.gateway.service import Service

_FRESH_S = 0.2  # so many viewers cost the router little more than one
_SILENT_S = 3.0  # reports come every second at least
_AVOIDED_S = 1.0
_SUMMED = ("running", "waiting", "pages", "free_pages", "evictable_pages", "lent_pages")


class LoadsEndpoint:
    """Answers from what a router says, asked at most every `_FRESH_S`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asked_at = 0.0
        self._asking: asyncio.Task[Fleet] | None = None

    async def get(self, request: Request) -> Response:
        """Raises Unavailable when no router answers."""
        fleet = await self._fleet()
        body = {
            "time": time.time(),
            "model": self._service.catalog.name,
            "gateway": {"version": VERSION, "in_flight": metrics.in_flight()},
            "router": {
                "version": fleet.version,
                "redis_connected": fleet.redis_connected,
                "index_blocks": fleet.index_blocks,
                "queued": fleet.queued,
                "in_flight": fleet.in_flight,
                "unreachable": fleet.unreachable,
            },
            "pools": _pools(fleet.workers),
            "workers": [_worker(worker) for worker in fleet.workers],
        }
        return Response(orjson.dumps(body), media_type="application/json", headers={"cache-control": "no-store"})

    async def _fleet(self) -> Fleet:
        now = time.monotonic()
        if self._asking is None or (self._asking.done() and now - self._asked_at > _FRESH_S):
            self._asked_at = now
            self._asking = asyncio.create_task(self._service.catalog.fleet())
            self._asking.add_done_callback(_take_notice)
        return await asyncio.shield(self._asking)


def _take_notice(task: asyncio.Task[Fleet]) -> None:
    """Whoever asked may be gone when the answer is an error."""
    if not task.cancelled():
        task.exception()


def _pools(workers: Iterable[FleetWorker]) -> dict[str, dict[str, int]]:
    pools: dict[str, dict[str, int]] = {}
    for worker in workers:
        pool = pools.setdefault(worker.role, dict.fromkeys(("workers", *_SUMMED), 0))
        pool["workers"] += 1
        for name in _SUMMED:
            pool[name] += getattr(worker, name)
    return pools


def _worker(worker: FleetWorker) -> dict[str, Any]:
    return {
        "worker": worker.worker_id,
        "role": worker.role,
        "state": _state(worker),
        "model": worker.model,
        "address": worker.address,
        "epoch": worker.epoch,
        "version": worker.version,
        "agent": {"version": worker.agent_version, "transport": worker.transport} if worker.has_agent else None,
        "silent_s": round(worker.silent_s, 2),
        "penalty_s": round(worker.penalty_s, 2),
        "running": worker.running,
        "waiting": worker.waiting,
        "max_running": worker.max_running,
        "waiting_extend_tokens": worker.waiting_extend_tokens,
        "pages": {
            "total": worker.pages,
            "free": worker.free_pages,
            "cached": worker.evictable_pages,
            "lent": worker.lent_pages,
            "page_bytes": worker.page_bytes,
        },
        "tier": {"blocks": worker.tier_blocks, "capacity_blocks": worker.tier_capacity_blocks},
        "rates": {
            "extend_tokens_per_s": round(worker.extend_tokens_per_s, 1),
            "decode_step_s": round(worker.decode_step_s, 6),
            "handoff_bytes_per_s": round(worker.handoff_bytes_per_s),
        },
        "totals": asdict(worker.totals),
    }


def _state(worker: FleetWorker) -> str:
    """ready | silent (reports have stopped) | no_agent (takes no handoff) | avoided (it has failed attempts lately)."""
    if not worker.connected or worker.silent_s > _SILENT_S:
        return "silent"
    if worker.role != "unified" and not worker.has_agent:
        return "no_agent"
    return "avoided" if worker.penalty_s > _AVOIDED_S else "ready"
