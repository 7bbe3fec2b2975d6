"""`POST /drain` and `DELETE /drain`, on the operator's port.

While it drains, `/ready` says 503, so that load balancers send nothing new; what comes all the same is answered.
"""

from __future__ import annotations

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response

from baton.gateway.service import Service

log = structlog.get_logger(__name__)


class DrainEndpoint:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def start(self, request: Request) -> Response:
        return self._set(True)

    async def end(self, request: Request) -> Response:
        return self._set(False)

    def _set(self, draining: bool) -> Response:
        self._service.draining = draining
        log.info("draining" if draining else "no longer draining")
        return Response(orjson.dumps({"draining": draining}), media_type="application/json")
