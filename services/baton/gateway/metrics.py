"""What the gateway measures, as Prometheus metrics `baton_gateway_*`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from baton.runtime.metrics import counter, gauge, histogram

if TYPE_CHECKING:
    from baton.gateway.generation import Choice

REQUESTS = counter("baton_gateway_requests_total", "HTTP requests answered", ("endpoint", "status"))
REQUEST_SECONDS = histogram("baton_gateway_request_seconds", "Time from request to end of response", ("endpoint",))
IN_FLIGHT = gauge("baton_gateway_requests_in_flight", "HTTP requests being answered")
TTFT_SECONDS = histogram("baton_gateway_time_to_first_token_seconds", "Time from request to a choice's first token")
INTER_TOKEN_SECONDS = histogram("baton_gateway_inter_token_seconds", "Time per token after a choice's first")
PROMPT_TOKENS = counter("baton_gateway_prompt_tokens_total", "Tokens of prompts that were run")
CACHED_TOKENS = counter("baton_gateway_cached_prompt_tokens_total", "Prompt tokens whose KV cache was reused")
OUTPUT_TOKENS = counter("baton_gateway_output_tokens_total", "Tokens generated")
TOOL_CALLS = counter("baton_gateway_tool_calls_total", "Tool calls in complete answers")
REASONING_TOKENS = counter("baton_gateway_reasoning_tokens_total", "Output tokens that were reasoning")
BACKGROUND_RESPONSES = gauge("baton_gateway_background_responses", "Background responses that are being generated")
RESPONSES_NOT_KEPT = counter("baton_gateway_responses_not_kept_total", "Responses that could not be kept as asked")
BATCHES = gauge("baton_gateway_batches", "Batches that this gateway runs")
BATCH_LINES = counter("baton_gateway_batch_lines_total", "Requests of batches that are over", ("outcome",))
TOKENIZE_SECONDS = counter("baton_gateway_tokenize_seconds_total", "Time spent on templates and tokenizing")
DETOKENIZE_SECONDS = counter("baton_gateway_detokenize_seconds_total", "Time spent from tokens to parsed text")
KEYS = gauge("baton_gateway_api_keys", "API keys that open this gateway", across="livemax")
REFUSED_KEYS = counter("baton_gateway_refused_api_keys_total", "Requests with an API key that is unknown or expired")
LIMITED = counter("baton_gateway_limited_requests_total", "Requests refused by a limit of their API key", ("limit",))
REFUSED_CONNECTIONS = counter(
    "baton_gateway_refused_connections_total", "Connections ended: too many, too large a head, too slow", ("limit",)
)
LIMITS_ALONE = counter("baton_gateway_limits_outages_total", "Times that the counts shared by Redis were out of reach")


def in_flight() -> int:
    """HTTP requests that are being answered now."""
    (sample,) = next(iter(IN_FLIGHT.collect())).samples
    return int(sample.value)


class TokenClock:
    """Times one choice's tokens, from the arrival of its HTTP request (`time.monotonic()`) on."""

    def __init__(self, started: float) -> None:
        self._last = started
        self._first = True

    def tick(self, tokens: int) -> None:
        now = time.monotonic()
        if self._first:
            TTFT_SECONDS.observe(now - self._last)
            self._first = False
        elif tokens:
            INTER_TOKEN_SECONDS.observe((now - self._last) / tokens)
        self._last = now


@contextmanager
def tokenizing() -> Iterator[None]:
    started = time.perf_counter()
    yield
    TOKENIZE_SECONDS.inc(time.perf_counter() - started)


def count_tokens(choices: Sequence[Choice]) -> None:
    """Add up the tokens of choices that have ended, however they ended."""
    for choice in choices:
        PROMPT_TOKENS.inc(len(choice.prompt_token_ids))
        CACHED_TOKENS.inc(choice.cached_tokens)
        OUTPUT_TOKENS.inc(choice.completion_tokens)
        REASONING_TOKENS.inc(choice.reasoning.count)
