from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from baton.runtime import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_json_lines_carry_service_and_request() -> None:
    out = io.StringIO()
    logs.configure("router", "info", "json", out)
    log = structlog.get_logger("baton.router")
    with structlog.contextvars.bound_contextvars(request_id="req-1"):
        log.info("placed", worker="prefill-0")
        logging.getLogger("uvicorn.error").warning("foreign %s", "line")
    log.debug("hidden")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first["event"] == "placed"
    assert (first["service"], first["request_id"], first["worker"]) == ("router", "req-1", "prefill-0")
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["level"], second["request_id"]) == ("foreign line", "warning", "req-1")


def test_console_is_one_line_without_colour_off_a_terminal() -> None:
    out = io.StringIO()
    logs.configure("gateway", "debug", "console", out)
    structlog.get_logger("x").debug("hello", size_bytes=3)
    text = out.getvalue()
    assert text.count("\n") == 1
    assert "hello" in text and "size_bytes=3" in text and "service=gateway" in text
    assert "\x1b[" not in text


def test_colour_can_be_forced_and_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    logs.configure("gateway", stream=out)
    structlog.get_logger("x").info("hello")
    assert "\x1b[" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    logs.configure("gateway", stream=out)
    structlog.get_logger("x").info("hello")
    assert "\x1b[" not in out.getvalue()


def test_exceptions_keep_their_trace() -> None:
    out = io.StringIO()
    logs.configure("decode", format="json", stream=out)
    try:
        raise ValueError("wrong")
    except ValueError:
        structlog.get_logger("x").exception("failed")
    record = json.loads(out.getvalue())
    assert "ValueError: wrong" in record["exception"]
    assert record["level"] == "error"
