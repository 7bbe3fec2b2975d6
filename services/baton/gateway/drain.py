"""`POST /drain` and `DELETE /drain`, on the operator's port.

While it drains, `/ready` says 503, so that load balancers send nothing new; what comes all the same is answered.
"""

from __future__ import annotations

from pathlib import Path

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response

log = structlog.get_logger(__name__)


class DrainFlag:
    """Whether the operator wants no new requests here. `marker`: a file that says it to several processes."""

    def __init__(self, marker: Path | None = None) -> None:
        self._marker = marker
        self._is_set = False

    @property
    def is_set(self) -> bool:
        return self._is_set if self._marker is None else self._marker.exists()

    def set(self, wanted: bool) -> None:
        self._is_set = wanted
        if self._marker is not None and wanted:
            self._marker.touch()
        elif self._marker is not None:
            self._marker.unlink(missing_ok=True)


class DrainEndpoint:
    def __init__(self, flag: DrainFlag) -> None:
        self._flag = flag

    async def start(self, request: Request) -> Response:
        return self._set(True)

    async def end(self, request: Request) -> Response:
        return self._set(False)

    def _set(self, draining: bool) -> Response:
        self._flag.set(draining)
        log.info("draining" if draining else "no longer draining")
        return Response(orjson.dumps({"draining": draining}), media_type="application/json")
