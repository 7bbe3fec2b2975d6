"""Metrics of the router."""

from __future__ import annotations

from baton.runtime import metrics

TTFT_S = metrics.histogram("baton_router_ttft_seconds", "From a request's arrival to its first token")
INTER_TOKEN_S = metrics.histogram("baton_router_inter_token_seconds", "Between two events with tokens of a request")
QUEUE_S = metrics.histogram("baton_router_queue_seconds", "From arrival, or the loss of a worker, to a placement")
REQUESTS = metrics.counter("baton_router_requests_total", "Requests that ended, by how", ("outcome",))
ATTEMPTS = metrics.counter("baton_router_attempts_total", "Placements of requests")
RETRIES = metrics.counter("baton_router_retries_total", "Placements that failed and led to another", ("reason",))
PLACEMENTS = metrics.counter("baton_router_placements_total", "Placement decisions, by kind", ("reason",))
PULLS = metrics.counter("baton_router_pulls_total", "Placements that take a prefix from another worker's cache")
STALE_FRAMES = metrics.counter("baton_router_stale_frames_total", "Rows and events of attempts that were over: dropped")
IN_FLIGHT = metrics.gauge("baton_router_in_flight_requests", "Requests placed or waiting")
QUEUED = metrics.gauge("baton_router_queued_requests", "Requests that wait for a placement")
WORKERS_CONNECTED = metrics.gauge("baton_router_workers_connected", "Workers with an open stream", ("role",))
REDIS_CONNECTED = metrics.gauge("baton_router_redis_connected", "1 while Redis answers; 0 also when none is configured")
INDEX_BLOCKS = metrics.gauge("baton_router_index_blocks", "Entries of the mirror of the prefix index")
CACHED_TOKENS = metrics.counter("baton_router_cached_tokens_total", "Prompt tokens whose KV cache was reused")
PROMPT_TOKENS = metrics.counter("baton_router_prompt_tokens_total", "Prompt tokens of requests that ended well")
COMPLETION_TOKENS = metrics.counter("baton_router_completion_tokens_total", "Tokens sent to callers")
