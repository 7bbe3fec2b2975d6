"""From what was asked for to the children that do it: one per service, each with its address and command.

    client -> gateway -> router -> prefill-0 ~ prefill-0-agent      ~  Unix socket in the runtime folder
                             \\--> decode-0  ~ decode-0-agent       agents reach each other over loopback

Addresses are chosen once, so a child that is started again is where it was. Each worker has an agent of its own, as a
pod has a sidecar: pages really travel. The settings of every child are validated here, before anything starts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.cli.serve import settings_class
from baton.cli.up.child import ChildSpec
from baton.cli.up.network import pick_ports
from baton.cli.up.settings import UpSettings
from baton.runtime.redis_binary import find_redis_server, private_server_command
from baton.runtime.settings import load

REDIS_SOCKET = "redis.sock"
LARGEST_DEFAULT_POOL_BYTES = 256 << 20
_SHARE_OF_MEMORY = 8  # default pools together take at most this part of what is available
_DRAIN_S = 1.0  # Ctrl-C ends everything within 5 s, busy or not


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint folder and the name under which it is served."""

    path: Path
    name: str


class Planner:
    """Makes the children of one `baton up`. `config` is the settings file, handed on to every service."""

    def __init__(self, settings: UpSettings, config: str | None, folder: Path, model: Model, port: int) -> None:
        self._settings = settings
        self._config = str(Path(config).absolute()) if config else None
        self._folder = folder
        self._model = model
        self._port = port
        self._redis_url = settings.redis_url or f"unix://{folder / REDIS_SOCKET}"
        workers = settings.prefill + settings.decode + settings.unified
        self._ports = iter(pick_ports(2 + 2 * workers + 2 * (settings.prefill + settings.decode)))

    def children(self) -> list[ChildSpec]:
        """All children, in the order in which they are shown. Raises ConfigError when settings of one cannot work."""
        roles = {"prefill": self._settings.prefill, "decode": self._settings.decode, "unified": self._settings.unified}
        workers = [child for role, count in roles.items() for n in range(count) for child in self._worker(role, n)]
        redis = [] if self._settings.redis_url else [self._redis()]
        router = self._router()
        return [*redis, router, self._gateway(router.address), *workers]

    def _redis(self) -> ChildSpec:
        socket = self._folder / REDIS_SOCKET
        command = private_server_command(find_redis_server(), socket)
        return ChildSpec("redis", "redis", command, f"unix:{socket}", quiet=True, last=True)

    def _gateway(self, router: str) -> ChildSpec:
        settings = self._settings
        flags = {
            "host": settings.host, "port": self._port, "routers": router,
            "model": self._model.path, "served_name": self._model.name, "drain_s": _DRAIN_S,
        }  # fmt: skip
        own = load(settings_class("gateway"), config=self._config)
        if "files_dir" not in own.model_fields_set:
            flags["files_dir"] = self._folder / "files"
        address = f"{settings.host}:{self._port}"
        return self._service("gateway", "gateway", flags, address=address, metrics=address)

    def _router(self) -> ChildSpec:
        return self._measured("router", "router", {"drain_s": _DRAIN_S}, next(self._ports))

    def _worker(self, role: str, number: int) -> list[ChildSpec]:
        name = f"{role}-{number}"
        flags: dict[str, Any] = {
            "model": self._model.path, "served_name": self._model.name, "worker_id": name, "drain_s": _DRAIN_S,
            **self._worker_sizes(),
        }  # fmt: skip
        if role == "unified":
            return [self._measured(name, role, flags, next(self._ports))]
        socket = self._folder / f"{name}.sock"
        agent_flags = {"socket": socket, "transport": self._settings.transport}
        return [
            self._measured(name, role, {**flags, "agent_socket": socket}, next(self._ports)),
            self._measured(f"{name}-agent", "kv-agent", agent_flags, next(self._ports)),
        ]

    def _worker_sizes(self) -> dict[str, Any]:
        """What was asked of `up` itself, else what the section [worker] says, else what suits this machine."""
        settings = self._settings
        own = load(settings_class("prefill"), config=self._config)
        count = settings.prefill + settings.decode + settings.unified
        suggested: dict[str, Any] = {"host_workers": count}
        pool_bytes = default_pool_bytes(available_bytes(), count)
        if pool_bytes < LARGEST_DEFAULT_POOL_BYTES:  # else what a worker takes by itself, which knows the model
            suggested["kv_memory_bytes"] = pool_bytes
        asked = {
            "kv_memory_bytes": settings.kv_memory_bytes,
            "threads": settings.threads,
            "page_size": settings.page_size,
            "dtype": settings.dtype,
            "kv_cache_dtype": settings.kv_cache_dtype,
            "quantization": settings.quantization,
        }
        return {**{k: v for k, v in suggested.items() if k not in own.model_fields_set}, **_given(asked)}

    def _measured(self, name: str, command: str, flags: Mapping[str, Any], port: int) -> ChildSpec:
        """A service with a gRPC server and a metrics endpoint on loopback."""
        metrics_port = next(self._ports)
        address = f"127.0.0.1:{port}"
        all_flags = {**flags, "listen": address, "metrics_port": metrics_port}
        return self._service(name, command, all_flags, address=address, metrics=f"127.0.0.1:{metrics_port}")

    def _service(self, name: str, command: str, flags: Mapping[str, Any], *, address: str, metrics: str) -> ChildSpec:
        common = {
            "log_format": "json", "log_level": self._settings.log_level, "redis_url": self._redis_url,
            "trace_endpoint": self._settings.trace_endpoint or None,
        }  # fmt: skip
        texts = {key: str(value) for key, value in _given({**flags, **common}).items()}
        load(settings_class(command), flags=texts, config=self._config)
        arguments = [f"--{key.replace('_', '-')}={value}" for key, value in texts.items()]
        config = [f"--config={self._config}"] if self._config else []
        return ChildSpec(name, command, (*baton_command(), command, *config, *arguments), address, metrics)


def baton_command() -> tuple[str, ...]:
    """This very `baton`, whatever the PATH and the current folder hold."""
    return (sys.executable, "-P", "-m", "baton.cli.main")


def default_pool_bytes(available: int, workers: int) -> int:
    """Pool of each worker when none was asked for: modest, so that the system starts beside other programs."""
    return min(LARGEST_DEFAULT_POOL_BYTES, available // (_SHARE_OF_MEMORY * max(1, workers)))


def available_bytes() -> int:
    """Memory that can be had without swapping; twice that of the largest default where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 2 * _SHARE_OF_MEMORY * LARGEST_DEFAULT_POOL_BYTES


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
