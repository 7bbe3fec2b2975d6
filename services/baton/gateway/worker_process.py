"""One of several gateway processes (`baton.gateway.processes`), which gets its settings on stdin."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from baton.gateway.main import serve_one
from baton.gateway.processes import Order
from baton.gateway.settings import GatewaySettings
from baton.runtime import logs
from baton.runtime.lifecycle import run_service


def main() -> int:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    settings = GatewaySettings.model_validate_json(order.settings)
    logs.configure("gateway", settings.log_level, settings.log_format)
    return run_service(lambda: serve_one(settings, Path(order.drain_marker)))


if __name__ == "__main__":
    sys.exit(main())
