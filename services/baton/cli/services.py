"""The services that `baton` can start, by command: plain data, nothing of theirs is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Service:
    """`main` has `run(settings)`; `settings` is `module:class`; `extra` is the package extra with its requirements."""

    main: str
    settings: str
    extra: str
    summary: str


_WORKER = "baton.worker.settings:WorkerSettings"

SERVICES = {
    "gateway": Service(
        "baton.gateway.main",
        "baton.gateway.settings:GatewaySettings",
        "gateway",
        "HTTP: the OpenAI API in front of routers",
    ),
    "router": Service(
        "baton.router.main",
        "baton.router.settings:RouterSettings",
        "router",
        "places requests on workers, retries, migrates",
    ),
    "prefill": Service(
        "baton.prefill.main", _WORKER, "worker", "worker that runs prompts and hands their KV cache over"
    ),
    "decode": Service("baton.decode.main", _WORKER, "worker", "worker that takes KV caches and generates"),
    "unified": Service("baton.unified.main", _WORKER, "worker", "worker that does both on one device"),
    "kv-agent": Service(
        "baton.kv_agent.main",
        "baton.kv_agent.settings:KvAgentSettings",
        "kv-agent",
        "moves KV pages between workers' nodes",
    ),
}
