"""Settings of `baton up`. What is not here is set per service: sections of the same file, or their variables."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import model_validator

from baton.core.layout import KV_DTYPES
from baton.runtime.settings import Settings, setting


class UpSettings(Settings):
    section: ClassVar[str] = "up"

    model: Path | None = setting(
        None, "checkpoint folder, GGUF file, or org/name of a hub; none = the bundled baton-tiny"
    )
    revision: str = setting("", "branch, tag or commit of a model on a hub; empty = its main branch")
    served_name: str = setting("", "name that clients ask for; empty = the folder's name")
    prefill: int = setting(1, "prefill workers", ge=0, le=64)
    decode: int = setting(1, "decode workers", ge=0, le=64)
    unified: int = setting(0, "workers that do both", ge=0, le=64)
    host: str = setting("127.0.0.1", "address of the HTTP API; 0.0.0.0 = all interfaces")
    port: int = setting(8000, "port of the HTTP API; 0 = any free one", ge=0, le=65535)
    kv_memory_bytes: int | None = setting(
        None, "KV pool of each worker; none = up to 256MiB, or eight states", unit="bytes", ge=1
    )
    page_size: int | None = setting(None, "token positions in a KV page; none = 16", unit="tokens", ge=1)
    dtype: str | None = setting(None, "of computation and KV cache", choices=("auto", "float32", "bfloat16", "float16"))
    kv_cache_dtype: str | None = setting(None, "KV cache alone; none = as computation", choices=KV_DTYPES)
    quantization: str | None = setting(None, "bits of the weights", choices=("none", "int8", "int4", "fp8"))
    threads: int | None = setting(None, "CPU threads of each worker; none or 0 = its share of the cores", ge=0)
    transport: str | None = setting(None, "how KV pages travel; none = auto", choices=("auto", "ucx", "ucxx", "tcp"))
    redis_url: str = setting("", "Redis to use; empty = an own one, private and in memory", unit="URL")
    runtime_dir: Path | None = setting(None, "folder for sockets and status.json; none = a temporary one")
    trace_endpoint: str = setting("", "OpenTelemetry collector that gets traces of all services", unit="URL")
    log_level: str = setting("info", "least severe level shown", choices=("debug", "info", "warning", "error"))
    log_format: str = setting("console", "for people or for collectors", choices=("console", "json"))

    @model_validator(mode="after")
    def _can_serve(self) -> UpSettings:
        if not self.unified and not (self.prefill and self.decode):
            raise ValueError(
                f"prefill = {self.prefill}, decode = {self.decode}, unified = 0 cannot answer requests: "
                "at least one of each of prefill and decode is needed, or one unified worker"
            )
        return self
