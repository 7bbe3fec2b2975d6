"""Settings of a worker, in any role."""

from __future__ import annotations

from typing import ClassVar

from baton.core.layout import KV_DTYPES
from baton.runtime.settings import ServiceSettings, setting


class WorkerSettings(ServiceSettings):
    section: ClassVar[str] = "worker"

    model: str = setting("", "checkpoint folder, GGUF file, or org/name of a hub, @revision if need be")
    revision: str = setting("", "branch, tag or commit of a model on a hub; empty = its main branch")
    served_name: str = setting("", "name that clients ask for; empty = the folder's name")
    listen: str = setting("127.0.0.1:0", "address of the Worker gRPC service; port 0 = any free one")
    advertise: str = setting("", "address that routers reach it at; empty = the listening one")
    worker_id: str = setting("", "name in the registry, stable over restarts; empty = role and address")
    agent_socket: str = setting("", "Unix socket of this worker's KV agent; empty = no handoff")
    page_size: int = setting(
        16, "token positions in a page; a handoff reshards between sizes", unit="tokens", ge=1, le=1024
    )
    model_backend: str = setting(
        "auto", "whose code runs the model; auto = native if it knows it", choices=("auto", "native", "transformers")
    )
    trust_remote_code: bool = setting(False, "code that comes with a checkpoint may run, through transformers")
    device: str = setting(
        "auto", "where the model runs; auto = a GPU if it can be used", choices=("auto", "cpu", "cuda")
    )
    kv_memory_bytes: int = setting(
        0,
        "memory of the KV pool; 0 = 256MiB, or eight states if these need more; on a GPU what memory_fraction leaves",
        unit="bytes",
        ge=0,
    )
    memory_fraction: float = setting(0.85, "share of the GPU's memory for weights, steps and KV pool", gt=0, le=1)
    cuda_graphs: bool = setting(True, "on a GPU: decode steps are launched whole, which takes memory and start-up time")
    max_running: int = setting(64, "requests decoded together", ge=1)
    max_batch_tokens: int = setting(2048, "new tokens in one step", unit="tokens", ge=1)
    chunk_tokens: int = setting(512, "longest piece of a prompt in one step", unit="tokens", ge=1)
    max_context_tokens: int = setting(0, "longest prompt + output; 0 = the model's", unit="tokens", ge=0)
    dtype: str = setting("auto", "computation and KV cache", choices=("auto", "float32", "bfloat16", "float16"))
    kv_cache_dtype: str = setting(
        "auto", "KV cache alone; auto = dtype; float8_e4m3 = a byte for each number, less exact", choices=KV_DTYPES
    )
    deterministic: bool = setting(False, "the same tokens to the last bit whatever the load and the cache; slower")
    quantization: str = setting("none", "bits of the weights; less exact", choices=("none", "int8", "int4", "fp8"))
    threads: int = setting(0, "CPU threads of the model; 0 = chosen from this host's cores", ge=0)
    host_workers: int = setting(1, "workers that share this host's cores, for threads = 0", ge=1, rare=True)
    pull_timeout_s: float = setting(
        2.0, "longest wait for a prefix that another worker holds, before it is computed here", unit="s", gt=0
    )
    structure_bytes: int = setting(64 << 10, "longest schema, regex or grammar of a request", unit="bytes", ge=1)
    structure_compile_s: float = setting(
        5.0, "longest wait for a structure to be compiled, before the request is refused", unit="s", gt=0
    )
    structures_cached: int = setting(128, "compiled structures kept; some megabytes each", ge=1, rare=True)
    lease_s: float = setting(5.0, "registry lease; a worker silent for longer is forgotten", unit="s", gt=0)
    drain_s: float = setting(1.0, "time that running requests get when the worker is stopped", unit="s", ge=0)
