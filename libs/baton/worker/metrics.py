"""Metrics of a worker, in any role."""

from __future__ import annotations

from baton.core.layout import KvLayout
from baton.core.structure import Structure
from baton.engine.api import EngineLoad, StepOutput
from baton.runtime import metrics

running = metrics.gauge("baton_worker_running_requests", "Requests that hold pages and compute")
waiting = metrics.gauge("baton_worker_waiting_requests", "Requests that wait for pages or for their turn")
model_info = metrics.gauge(
    "baton_worker_model_info", "1; labels say whose code runs the model: native or transformers", labels=("backend",)
)
pages = metrics.gauge("baton_worker_pages", "Pages of the KV pool by state", labels=("state",))
cached_pages = metrics.gauge(
    "baton_worker_cached_pages",
    "Pages of the prefix cache by the layers that they are of: full, window (chunks too), state",
    labels=("kind",),
)
window_pages_passed = metrics.counter(
    "baton_worker_window_pages_passed_total",
    "Pages of layers with windows that requests went past: cached until somebody needs them",
)
snapshots = metrics.gauge("baton_worker_snapshots", "States that are kept after a block, where prefixes can be reused")
snapshot_events = metrics.counter(
    "baton_worker_snapshot_events_total", "Snapshots of states: made, reused, evicted", labels=("event",)
)
step_s = metrics.histogram(
    "baton_worker_step_seconds", "Duration of one engine step", buckets=metrics.LATENCY_BUCKETS_S
)
queue_s = metrics.histogram(
    "baton_worker_queue_seconds", "Time from assignment to admission", buckets=metrics.LATENCY_BUCKETS_S
)
handoff_s = metrics.histogram(
    "baton_worker_handoff_seconds", "First read started to verified", buckets=metrics.LATENCY_BUCKETS_S
)
handoff_exposed_s = metrics.histogram(
    "baton_worker_handoff_exposed_seconds",
    "Part of a handoff after the source computed its last layer: not hidden behind compute",
    buckets=metrics.LATENCY_BUCKETS_S,
)
handoff_bytes = metrics.counter("baton_worker_handoff_bytes_total", "Bytes of KV cache received by handoff")
handoffs = metrics.counter("baton_worker_handoffs_total", "Handoffs by outcome", labels=("outcome",))
pulls = metrics.counter(
    "baton_worker_pulls_total",
    "Prefixes asked for at other workers: fetched, in_part, or the kind of failure",
    labels=("outcome",),
)
pulled_bytes = metrics.counter("baton_worker_pulled_bytes_total", "Bytes of KV cache received by pulls")
pulled_pages = metrics.counter("baton_worker_pulled_pages_total", "Pages received by pulls")
pulled_tokens = metrics.counter(
    "baton_worker_pulled_tokens_total", "Prompt tokens that were not computed because they were pulled or restored"
)
pull_s = metrics.histogram(
    "baton_worker_pull_seconds", "From asking for a prefix to verified", buckets=metrics.LATENCY_BUCKETS_S
)
restores = metrics.counter(
    "baton_worker_restores_total",
    "Prefixes asked for at the agent's memory and disk: fetched, in_part, slower (not all: computing is faster), "
    "or the kind of failure",
    labels=("outcome",),
)
restored_pages = metrics.counter(
    "baton_worker_restored_pages_total", "Pages that came back from the agent's memory or disk"
)
restore_s = metrics.histogram(
    "baton_worker_restore_seconds",
    "From asking the agent for its own blocks to verified",
    buckets=metrics.LATENCY_BUCKETS_S,
)
loans = metrics.counter(
    "baton_worker_loans_total", "Prefixes that other workers asked for, by outcome", labels=("outcome",)
)
extend_tokens = metrics.counter("baton_worker_extend_tokens_total", "Prompt tokens computed")
decode_tokens = metrics.counter("baton_worker_decode_tokens_total", "Output tokens produced")
cached_tokens = metrics.counter(
    "baton_worker_cached_tokens_total", "Prompt tokens found in the prefix cache, pulled ones too"
)
vectors = metrics.counter("baton_worker_vectors_total", "Answers of pooling requests")
preemptions = metrics.counter("baton_worker_preemptions_total", "Requests paused because pages ran out")
failures = metrics.counter(
    "baton_worker_failed_attempts_total", "Attempts that failed here, by error code", labels=("code",)
)
routers = metrics.gauge("baton_worker_routers_connected", "Open router streams")
pool_bytes = metrics.gauge("baton_worker_pool_bytes", "Size of the KV pool")
agent_connected = metrics.gauge("baton_worker_agent_connected", "1 while the KV agent is connected")

structures = metrics.counter(
    "baton_worker_structures_total",
    "Requests with structured output, by kind, and whether the structure was cached, compiled or refused",
    labels=("kind", "outcome"),
)
structure_compile_s = metrics.histogram(
    "baton_worker_structure_compile_seconds", "Compiling one structure", buckets=metrics.LATENCY_BUCKETS_S
)
mask_s = metrics.histogram(
    "baton_worker_mask_seconds",
    "Making the masks of one step's structured outputs, beside the model",
    buckets=metrics.LATENCY_BUCKETS_S,
)
forced_tokens = metrics.counter(
    "baton_worker_forced_tokens_total", "Output tokens that a structure left no choice for, appended without a step"
)
clipped = metrics.counter(
    "baton_worker_clipped_numbers_total", "Numbers of K and V that were more than a float8 cache holds; on CPUs"
)


def observe_step(output: StepOutput, load: EngineLoad) -> None:
    """Account one step and the state after it."""
    if output.duration_s:
        step_s.observe(output.duration_s)
    extend_tokens.inc(output.extend_tokens)
    decode_tokens.inc(sum(len(row.token_ids) for row in output.rows))
    vectors.inc(sum(row.vector is not None for row in output.rows))
    preemptions.inc(output.preempted)
    forced_tokens.inc(output.forced_tokens)
    window_pages_passed.inc(output.bounded.passed_pages)
    snapshot_events.labels(event="made").inc(output.bounded.snapshots_made)
    snapshot_events.labels(event="reused").inc(output.bounded.snapshots_reused)
    snapshot_events.labels(event="evicted").inc(output.bounded.snapshots_evicted)
    clipped.inc(output.clipped)
    if output.mask_s:
        mask_s.observe(output.mask_s)
    for admitted in output.admitted:
        queue_s.observe(admitted.queued_s)
        cached_tokens.inc(admitted.cached_tokens)
        pulled_tokens.inc(admitted.pulled_tokens)
    observe_load(load)


def observe_load(load: EngineLoad) -> None:
    running.set(load.running)
    waiting.set(load.waiting)
    pages.labels(state="free").set(load.free_pages)
    pages.labels(state="cached").set(load.evictable_pages)
    pages.labels(state="lent").set(load.lent_pages)
    for kind, count in load.cached_pages.items():
        cached_pages.labels(kind=kind).set(count)
    snapshots.set(load.snapshots)


def observe_pool(layout: KvLayout, pool_pages: int) -> None:
    pool_bytes.set(layout.pool_bytes(pool_pages))


def observe_structure(structure: Structure, outcome: str, seconds: float) -> None:
    """Account a structure that a request asks for; `seconds` were spent on compiling it."""
    structures.labels(kind=structure.kind, outcome=outcome).inc()
    if outcome != "cached":
        structure_compile_s.observe(seconds)
