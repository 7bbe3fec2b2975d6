"""Ports of this machine, and one small HTTP request to see whether the gateway is ready."""

from __future__ import annotations

import asyncio
import errno
import random
import socket

from baton.core.errors import ConfigError

# Below the range from which systems take the ports of outgoing connections: a service that is started again finds its
# port free.
_INTERNAL_PORTS = range(20_000, 32_000)
_HTTP_TIMEOUT_S = 2.0


def pick_ports(count: int) -> list[int]:
    """`count` different loopback ports on which nobody listens."""
    held: list[socket.socket] = []
    try:
        for port in random.sample(_INTERNAL_PORTS, len(_INTERNAL_PORTS)):
            if len(held) == count:
                break
            candidate = _bind("127.0.0.1", port)
            if candidate is not None:
                held.append(candidate)
        if len(held) < count:
            raise ConfigError(f"no {count} free ports between {_INTERNAL_PORTS.start} and {_INTERNAL_PORTS.stop}")
        return [sock.getsockname()[1] for sock in held]
    finally:
        for sock in held:
            sock.close()


def check_port(host: str, port: int) -> None:
    """Raise ConfigError when nothing of ours could listen on `host:port`."""
    try:
        found = _bind(host, port)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    if found is None:
        other = "choose another one with --port, or 0 for any free one"
        raise ConfigError(f"port {port} on {host} is in use{_owner(port)}; {other}")
    found.close()


def free_port(host: str) -> int:
    """Any port that is free on `host`."""
    with _listener(host) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def _listener(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


def _bind(host: str, port: int) -> socket.socket | None:
    """A bound socket, or None when the port is taken."""
    sock = _listener(host)
    try:
        sock.bind((host, port))
        sock.listen(1)  # with SO_REUSEADDR a port that somebody listens on is refused only here, on some systems
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return sock


def _owner(port: int) -> str:
    """` by NAME (pid N)`, where the system tells."""
    try:
        import psutil

        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})" if connection.pid else ""
    except Exception:  # the name only makes the message nicer; psutil raises its own errors where it may not look
        return ""
    return ""


async def http_status(host: str, port: int, path: str) -> int:
    """Status code of `GET path`; 0 when nobody answers."""
    try:
        async with asyncio.timeout(_HTTP_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                status_line = await reader.readline()
            finally:
                writer.close()
        words = status_line.split()
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    except (OSError, TimeoutError):
        return 0
