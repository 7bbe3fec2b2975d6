"""Links to measure on: this host, and two network namespaces joined by a veth pair whose rate is shaped.

Namespaces need root; shaping needs `tc` with the tbf scheduler; a delay needs its netem scheduler, which many kernels
come without. What cannot be made is reported, not skipped in silence.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator

from pairs import Link

_SEGMENTS = {"UCX_TCP_TX_SEG_SIZE": "512K", "UCX_TCP_RX_SEG_SIZE": "512K"}
_QUIET = {"UCX_LOG_LEVEL": "fatal", "OMP_NUM_THREADS": "1"}
_ENDS = ("baton-reader", "baton-source")
_DEVICE = "baton0"  # at both ends
_ADDRESSES = ("10.177.0.1", "10.177.0.2")


class CannotMake(Exception):
    """This machine cannot have such a link; the message says why."""


def same_host(name: str, tls: str) -> Link:
    device = {"UCX_NET_DEVICES": "lo", "UCX_CMA_MEMORY_INVALIDATE": "y"}
    return Link(name, environment={**_SEGMENTS, **_QUIET, **device, "UCX_TLS": tls})


@contextlib.contextmanager
def veth(gbit_s: float, delay_ms: float) -> Iterator[Link]:
    """Two namespaces; each end sends at `gbit_s` at most, `delay_ms` later."""
    if os.geteuid() != 0:
        raise CannotMake("network namespaces need root")
    name = f"veth {gbit_s:g} Gbit/s" + (f", {delay_ms:g} ms" if delay_ms else "")
    _remove()
    try:
        for end in _ENDS:
            _ip("netns", "add", end)
            _ip("-n", end, "link", "set", "lo", "up")
        _ip("link", "add", _DEVICE, "netns", _ENDS[0], "type", "veth", "peer", "name", _DEVICE, "netns", _ENDS[1])
        for end, address in zip(_ENDS, _ADDRESSES, strict=True):
            _ip("-n", end, "addr", "add", f"{address}/24", "dev", _DEVICE)
            _ip("-n", end, "link", "set", _DEVICE, "up")
            _shape(end, gbit_s, delay_ms)
        for end in _ENDS:
            _await_carrier(end)
        device = {"UCX_NET_DEVICES": _DEVICE, "UCX_TLS": "tcp"}
        prefixes = [("ip", "netns", "exec", end) for end in _ENDS]
        yield Link(name, *_ADDRESSES, *prefixes, environment={**_SEGMENTS, **_QUIET, **device})
    finally:
        _remove()


def _shape(end: str, gbit_s: float, delay_ms: float) -> None:
    qdisc = ("tc", "-n", end, "qdisc", "add", "dev", _DEVICE)
    burst = max(
        256 << 10, int(gbit_s * 1e9 / 8 * 0.001)
    )  # a millisecond's bytes, or the scheduler cannot keep the rate
    if delay_ms:
        queue = int(2 * gbit_s * 1e9 / 8 * (delay_ms / 1e3 + 0.001) / 1500) + 1000
        delay = ("netem", "delay", f"{delay_ms}ms", "limit", str(queue))
        _run(*qdisc, "root", "handle", "1:", *delay)
        qdisc = (*qdisc, "parent", "1:")
    else:
        qdisc = (*qdisc, "root")
    _run(*qdisc, "tbf", "rate", f"{gbit_s}gbit", "burst", str(burst), "latency", "20ms")


def _await_carrier(end: str) -> None:
    command = ["ip", "-n", end, "-o", "link", "show", _DEVICE]
    for _ in range(200):
        if " state UP " in subprocess.run(command, capture_output=True, text=True).stdout:
            return
        time.sleep(0.01)
    raise CannotMake(f"{_DEVICE} of {end} does not come up")


def _remove() -> None:
    for end in _ENDS:
        subprocess.run(["ip", "netns", "del", end], capture_output=True)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CannotMake(f"{command[0]} is not installed") from error
    if done.returncode:
        raise CannotMake(f"{' '.join(command)}: {done.stderr.strip()}")
