from __future__ import annotations

import asyncio

import pytest

from baton.core.errors import ConfigError
from baton.runtime import metrics


async def fetch(port: int, request: bytes) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head, body


def test_making_twice_gives_the_same_metric() -> None:
    one = metrics.counter("baton_test_things_total", "things", ["kind"])
    assert metrics.counter("baton_test_things_total", "things", ("kind",)) is one
    with pytest.raises(ValueError, match="baton_test_things_total exists already"):
        metrics.gauge("baton_test_things_total", "things", ["kind"])
    with pytest.raises(ValueError, match="other labels"):
        metrics.counter("baton_test_things_total", "things", ["sort"])


def test_render() -> None:
    metrics.counter("baton_test_rendered_total", "rendered").inc(2)
    metrics.gauge("baton_test_level_bytes", "level").set(7)
    metrics.histogram("baton_test_wait_seconds", "wait", buckets=(0.1, 1.0)).observe(0.5)
    text = metrics.render().decode()
    assert "baton_test_rendered_total 2.0" in text
    assert "baton_test_level_bytes 7.0" in text
    assert 'baton_test_wait_seconds_bucket{le="1.0"} 1.0' in text
    assert "process_resident_memory_bytes" in text
    assert "_created" not in text


async def test_endpoint() -> None:
    metrics.gauge("baton_test_served", "served").set(1)
    async with metrics.serve("127.0.0.1", 0) as port:
        head, body = await fetch(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK") and b"text/plain" in head
        assert b"baton_test_served 1.0" in body
        assert f"Content-Length: {len(body)}".encode() in head
        assert (await fetch(port, b"HEAD /metrics?x=1 HTTP/1.1\r\n\r\n"))[1] == b""
        assert (await fetch(port, b"GET /other HTTP/1.1\r\n\r\n"))[0].startswith(b"HTTP/1.1 404")
        assert (await fetch(port, b"POST /metrics HTTP/1.1\r\n\r\n"))[0].startswith(b"HTTP/1.1 405")
        assert (await fetch(port, b"x" * (64 << 10) + b"\r\n\r\n"))[0] == b""
        assert (await fetch(port, b"GET /metrics HTTP/1.1\r\n\r\n"))[0].startswith(b"HTTP/1.1 200 OK")
        with pytest.raises(ConfigError, match=f"metrics: cannot listen on 127.0.0.1:{port}"):
            async with metrics.serve("127.0.0.1", port):
                pass
