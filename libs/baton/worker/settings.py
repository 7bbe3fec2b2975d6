"""Settings of a worker, in any role."""

from __future__ import annotations

from typing import ClassVar

from baton.runtime.settings import ServiceSettings, setting


class WorkerSettings(ServiceSettings):
    section: ClassVar[str] = "worker"

    model: str = setting("", "checkpoint folder (config.json, *.safetensors)")
    served_name: str = setting("", "name that clients ask for; empty = the folder's name")
    listen: str = setting("127.0.0.1:0", "address of the Worker gRPC service; port 0 = any free one")
    advertise: str = setting("", "address that routers reach it at; empty = the listening one")
    worker_id: str = setting("", "name in the registry, stable over restarts; empty = role and address")
    agent_socket: str = setting("", "Unix socket of this worker's KV agent; empty = no handoff")
    page_size: int = setting(16, "token positions in a page; equal on all workers", unit="tokens", ge=1, le=1024)
    kv_memory_bytes: int = setting(256 << 20, "memory of the KV pool", unit="bytes", ge=1)
    max_running: int = setting(64, "requests decoded together", ge=1)
    max_batch_tokens: int = setting(2048, "new tokens in one step", unit="tokens", ge=1)
    chunk_tokens: int = setting(512, "longest piece of a prompt in one step", unit="tokens", ge=1)
    max_context_tokens: int = setting(0, "longest prompt + output; 0 = the model's", unit="tokens", ge=0)
    dtype: str = setting("auto", "computation and KV cache", choices=("auto", "float32", "bfloat16", "float16"))
    deterministic: bool = setting(False, "the same tokens to the last bit whatever the load and the cache; slower")
    threads: int = setting(1, "CPU threads of the model; more than 1 only where cores are otherwise idle", ge=1)
    lease_s: float = setting(5.0, "registry lease; a worker silent for longer is forgotten", unit="s", gt=0)
    drain_s: float = setting(1.0, "time that running requests get when the worker is stopped", unit="s", ge=0)
