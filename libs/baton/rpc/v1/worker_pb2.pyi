from baton.rpc.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeWorkerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerDescription(_message.Message):
    __slots__ = ("worker_id", "epoch", "role", "model", "layout", "pages", "max_context_tokens", "max_batch_tokens", "max_running", "agent", "address", "version", "tasks")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    role: str
    model: str
    layout: _common_pb2.KvLayout
    pages: int
    max_context_tokens: int
    max_batch_tokens: int
    max_running: int
    agent: AgentDescription
    address: str
    version: str
    tasks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[str] = ..., model: _Optional[str] = ..., layout: _Optional[_Union[_common_pb2.KvLayout, _Mapping]] = ..., pages: _Optional[int] = ..., max_context_tokens: _Optional[int] = ..., max_batch_tokens: _Optional[int] = ..., max_running: _Optional[int] = ..., agent: _Optional[_Union[AgentDescription, _Mapping]] = ..., address: _Optional[str] = ..., version: _Optional[str] = ..., tasks: _Optional[_Iterable[str]] = ...) -> None: ...

class AgentDescription(_message.Message):
    __slots__ = ("address", "epoch", "transport", "tier_blocks", "version")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    TIER_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    address: str
    epoch: int
    transport: str
    tier_blocks: int
    version: str
    def __init__(self, address: _Optional[str] = ..., epoch: _Optional[int] = ..., transport: _Optional[str] = ..., tier_blocks: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class WorkerRequest(_message.Message):
    __slots__ = ("hello", "assign", "cancel")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ASSIGN_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    hello: RouterHello
    assign: Assign
    cancel: Cancel
    def __init__(self, hello: _Optional[_Union[RouterHello, _Mapping]] = ..., assign: _Optional[_Union[Assign, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ...) -> None: ...

class RouterHello(_message.Message):
    __slots__ = ("router_id",)
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    def __init__(self, router_id: _Optional[str] = ...) -> None: ...

class Assign(_message.Message):
    __slots__ = ("ref", "attempt", "token_ids", "prompt_tokens", "sampling", "priority", "deadline_ms", "cache_salt", "lora", "run_all", "offer", "fetch", "pooling", "traceparent", "pull")
    REF_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    RUN_ALL_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    ref: int
    attempt: _common_pb2.Attempt
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_tokens: int
    sampling: _common_pb2.Sampling
    priority: int
    deadline_ms: int
    cache_salt: str
    lora: str
    run_all: RunAll
    offer: Offer
    fetch: Fetch
    pooling: _common_pb2.Pooling
    traceparent: str
    pull: Pull
    def __init__(self, ref: _Optional[int] = ..., attempt: _Optional[_Union[_common_pb2.Attempt, _Mapping]] = ..., token_ids: _Optional[_Iterable[int]] = ..., prompt_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_common_pb2.Sampling, _Mapping]] = ..., priority: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., cache_salt: _Optional[str] = ..., lora: _Optional[str] = ..., run_all: _Optional[_Union[RunAll, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., fetch: _Optional[_Union[Fetch, _Mapping]] = ..., pooling: _Optional[_Union[_common_pb2.Pooling, _Mapping]] = ..., traceparent: _Optional[str] = ..., pull: _Optional[_Union[Pull, _Mapping]] = ...) -> None: ...

class Pull(_message.Message):
    __slots__ = ("worker_id", "worker_epoch", "agent", "tokens")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    worker_epoch: int
    agent: AgentDescription
    tokens: int
    def __init__(self, worker_id: _Optional[str] = ..., worker_epoch: _Optional[int] = ..., agent: _Optional[_Union[AgentDescription, _Mapping]] = ..., tokens: _Optional[int] = ...) -> None: ...

class RunAll(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Offer(_message.Message):
    __slots__ = ("decode_worker_id",)
    DECODE_WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    decode_worker_id: str
    def __init__(self, decode_worker_id: _Optional[str] = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ("worker_id", "worker_epoch", "agent")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    worker_epoch: int
    agent: AgentDescription
    def __init__(self, worker_id: _Optional[str] = ..., worker_epoch: _Optional[int] = ..., agent: _Optional[_Union[AgentDescription, _Mapping]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("ref", "attempt")
    REF_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ref: int
    attempt: _common_pb2.Attempt
    def __init__(self, ref: _Optional[int] = ..., attempt: _Optional[_Union[_common_pb2.Attempt, _Mapping]] = ...) -> None: ...

class WorkerEvent(_message.Message):
    __slots__ = ("description", "step", "attempt")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    description: WorkerDescription
    step: StepFrame
    attempt: AttemptEvent
    def __init__(self, description: _Optional[_Union[WorkerDescription, _Mapping]] = ..., step: _Optional[_Union[StepFrame, _Mapping]] = ..., attempt: _Optional[_Union[AttemptEvent, _Mapping]] = ...) -> None: ...

class StepFrame(_message.Message):
    __slots__ = ("step", "refs", "counts", "token_ids", "finish", "logprobs", "vectors", "load")
    STEP_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    step: int
    refs: _containers.RepeatedScalarFieldContainer[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish: _containers.RepeatedScalarFieldContainer[_common_pb2.FinishReason]
    logprobs: _containers.RepeatedCompositeFieldContainer[RowLogprobs]
    vectors: _containers.RepeatedCompositeFieldContainer[RowVector]
    load: Load
    def __init__(self, step: _Optional[int] = ..., refs: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., finish: _Optional[_Iterable[_Union[_common_pb2.FinishReason, str]]] = ..., logprobs: _Optional[_Iterable[_Union[RowLogprobs, _Mapping]]] = ..., vectors: _Optional[_Iterable[_Union[RowVector, _Mapping]]] = ..., load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class RowVector(_message.Message):
    __slots__ = ("ref", "values")
    REF_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    ref: int
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, ref: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class RowLogprobs(_message.Message):
    __slots__ = ("ref", "tokens", "prompt")
    REF_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ref: int
    tokens: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    prompt: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    def __init__(self, ref: _Optional[int] = ..., tokens: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ..., prompt: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("running", "waiting", "free_pages", "evictable_pages", "waiting_extend_tokens", "extend_tokens_per_s", "decode_step_s", "handoff_bytes_per_s", "pull_bytes_per_s", "pull_wait_s", "host_restore_bytes_per_s", "host_restore_wait_s", "disk_restore_bytes_per_s", "disk_restore_wait_s", "lent_pages", "tier_blocks", "totals")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    FREE_PAGES_FIELD_NUMBER: _ClassVar[int]
    EVICTABLE_PAGES_FIELD_NUMBER: _ClassVar[int]
    WAITING_EXTEND_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXTEND_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_STEP_S_FIELD_NUMBER: _ClassVar[int]
    HANDOFF_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    PULL_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    PULL_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    HOST_RESTORE_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    HOST_RESTORE_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    DISK_RESTORE_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    DISK_RESTORE_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    LENT_PAGES_FIELD_NUMBER: _ClassVar[int]
    TIER_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    free_pages: int
    evictable_pages: int
    waiting_extend_tokens: int
    extend_tokens_per_s: float
    decode_step_s: float
    handoff_bytes_per_s: float
    pull_bytes_per_s: float
    pull_wait_s: float
    host_restore_bytes_per_s: float
    host_restore_wait_s: float
    disk_restore_bytes_per_s: float
    disk_restore_wait_s: float
    lent_pages: int
    tier_blocks: int
    totals: _common_pb2.WorkerTotals
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., free_pages: _Optional[int] = ..., evictable_pages: _Optional[int] = ..., waiting_extend_tokens: _Optional[int] = ..., extend_tokens_per_s: _Optional[float] = ..., decode_step_s: _Optional[float] = ..., handoff_bytes_per_s: _Optional[float] = ..., pull_bytes_per_s: _Optional[float] = ..., pull_wait_s: _Optional[float] = ..., host_restore_bytes_per_s: _Optional[float] = ..., host_restore_wait_s: _Optional[float] = ..., disk_restore_bytes_per_s: _Optional[float] = ..., disk_restore_wait_s: _Optional[float] = ..., lent_pages: _Optional[int] = ..., tier_blocks: _Optional[int] = ..., totals: _Optional[_Union[_common_pb2.WorkerTotals, _Mapping]] = ...) -> None: ...

class AttemptEvent(_message.Message):
    __slots__ = ("ref", "attempt", "admitted", "failed", "handoff")
    REF_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    HANDOFF_FIELD_NUMBER: _ClassVar[int]
    ref: int
    attempt: _common_pb2.Attempt
    admitted: Admitted
    failed: _common_pb2.Error
    handoff: HandoffReport
    def __init__(self, ref: _Optional[int] = ..., attempt: _Optional[_Union[_common_pb2.Attempt, _Mapping]] = ..., admitted: _Optional[_Union[Admitted, _Mapping]] = ..., failed: _Optional[_Union[_common_pb2.Error, _Mapping]] = ..., handoff: _Optional[_Union[HandoffReport, _Mapping]] = ...) -> None: ...

class Admitted(_message.Message):
    __slots__ = ("cached_tokens", "queued_s", "pulled_tokens")
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_S_FIELD_NUMBER: _ClassVar[int]
    PULLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    cached_tokens: int
    queued_s: float
    pulled_tokens: int
    def __init__(self, cached_tokens: _Optional[int] = ..., queued_s: _Optional[float] = ..., pulled_tokens: _Optional[int] = ...) -> None: ...

class HandoffReport(_message.Message):
    __slots__ = ("bytes", "pages", "total_s", "exposed_s")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_S_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    pages: int
    total_s: float
    exposed_s: float
    def __init__(self, bytes: _Optional[int] = ..., pages: _Optional[int] = ..., total_s: _Optional[float] = ..., exposed_s: _Optional[float] = ...) -> None: ...
