"""The services that `baton` can start, by command: plain data, nothing of theirs is imported before it is needed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from baton.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Service:
    """`main` has `run(settings)`; `settings` is `module:class`; `extra` is the package extra with its requirements."""

    main: str
    settings: str
    extra: str
    summary: str


def _service(package: str, settings: str, extra: str, summary: str) -> Service:
    return Service(f"baton.{package}.main", settings, extra, summary)


_WORKER = "baton.worker.settings:WorkerSettings"
_GATEWAY = "baton.gateway.settings:GatewaySettings"
_ROUTER = "baton.router.settings:RouterSettings"
_KV_AGENT = "baton.kv_agent.settings:KvAgentSettings"

SERVICES = {
    "gateway": _service("gateway", _GATEWAY, "gateway", "HTTP: the OpenAI API in front of routers"),
    "router": _service("router", _ROUTER, "router", "places requests on workers, retries, migrates"),
    "prefill": _service("prefill", _WORKER, "worker", "worker that runs prompts and hands their KV cache over"),
    "decode": _service("decode", _WORKER, "worker", "worker that takes KV caches and generates"),
    "unified": _service("unified", _WORKER, "worker", "worker that does both on one device"),
    "kv-agent": _service("kv_agent", _KV_AGENT, "kv-agent", "moves KV pages between the workers of different nodes"),
}


def import_or_explain(module: str, extra: str) -> Any:
    """Import a module of ours. Raises ConfigError when a requirement that comes with `extra` is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing == "baton":
            raise  # a defect of ours, not of the installation
        raise ConfigError(f"{missing} is not installed; it comes with: pip install 'baton-serving[{extra}]'") from error
