"""`baton gateway|router|prefill|decode|unified|kv-agent`: settings, logs, then the service until a signal ends it."""

from __future__ import annotations

from baton.cli import flags
from baton.cli.services import SERVICES, import_or_explain
from baton.runtime import cores, environ, logs, tracing
from baton.runtime.lifecycle import run_service
from baton.runtime.settings import ServiceSettings, load


def main(name: str, argv: list[str]) -> int:
    service = SERVICES[name]
    cls = settings_class(name)
    given = flags.parse(name, service.summary, cls, argv)
    settings = load(cls, flags=given.flags, config=given.config)
    # Before anything numeric is imported; services without a thread setting compute nothing that would need more.
    # A worker that chooses for itself, threads = 0, does so later, and takes no more than these.
    environ.limit_threads(settings.model_dump().get("threads", 1) or cores.available().count)
    environ.quiet_libraries()
    logs.configure(name, settings.log_level, settings.log_format)
    _trace(name, settings)
    run = import_or_explain(service.main, service.extra).run
    return run_service(lambda: run(settings))


def _trace(name: str, settings: ServiceSettings) -> None:
    """Record spans, where somebody wants them. Raises ConfigError when the extra `otel` is not installed."""
    if settings.trace_endpoint:
        otel = import_or_explain("baton.runtime.tracing_otel", "otel")
        provider = otel.provider(name, settings.trace_endpoint, settings.trace_ratio)
        tracing.install(otel.OtelTracer(provider.get_tracer("baton")))


def settings_class(name: str) -> type[ServiceSettings]:
    """The settings class of a service. Raises ConfigError when its requirements are not installed."""
    module, _, cls = SERVICES[name].settings.partition(":")
    found: type[ServiceSettings] = vars(import_or_explain(module, SERVICES[name].extra))[cls]
    return found
