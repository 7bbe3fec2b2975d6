"""Faults of the network, made by the kernel, in a network namespace that only the run is in.

Needs root (or user namespaces), iproute2, and what the kernel has: FIB rules by port for partitions, the `htb` queue
for a slow link. What is missing is said by `missing`, and the plan is drawn without it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping

import psutil

from tools.chaos.plan import Kind

INSIDE = "CHAOS_NAMESPACE"
_PREFERENCE = 10  # of our rules; the kernel's table of own addresses is moved behind them
_SLOW_RATE = "24mbit"


def namespace_command(command: list[str]) -> list[str]:
    """`command`, run in a network namespace of its own whose loopback is up; empty where that cannot be had."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return []
    isolate = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    set_up = (
        "ip link set lo up && ip rule add pref 100 lookup local && ip rule del pref 0 "
        '&& ip rule add pref 10 dport 1 blackhole && ip rule del pref 10 dport 1 && exec "$@"'
    )
    probe = subprocess.run([*isolate, "sh", "-c", set_up, "sh", "true"], capture_output=True, check=False)
    return [*isolate, "sh", "-c", set_up, "sh", "env", f"{INSIDE}=1", *command] if probe.returncode == 0 else []


def missing(variables: Mapping[str, str]) -> dict[Kind, str]:
    """Network faults that cannot be made here, and why. `variables` is the environment of this process."""
    if INSIDE not in variables:
        reason = "no network namespace (root or user namespaces, and iproute2, are needed)"
        return {Kind.PARTITION: reason, Kind.THROTTLE: reason}
    try:
        throttle()
    except subprocess.CalledProcessError as error:
        return {Kind.THROTTLE: error.stderr.decode().strip() or "the kernel has no htb queue"}
    finally:
        unthrottle()
    return {}


def throttle() -> None:
    """Make loopback, on which all processes talk, slow."""
    _run("tc", "qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb", "default", "1")
    _run("tc", "class", "add", "dev", "lo", "parent", "1:", "classid", "1:1", "htb", "rate", _SLOW_RATE)


def unthrottle() -> None:
    with contextlib.suppress(subprocess.CalledProcessError):
        _run("tc", "qdisc", "del", "dev", "lo", "root")


class Partition:
    """Nothing goes to or from the TCP ports that the processes have bound when this is made, until `heal`."""

    def __init__(self, pids: Iterable[int]) -> None:
        ports = sorted({port for pid in pids for port in _ports(pid)})
        self._rules = [(side, str(port)) for port in ports for side in ("dport", "sport")]
        for side, port in self._rules:
            _run("ip", "rule", "add", "pref", str(_PREFERENCE), "ipproto", "tcp", side, port, "blackhole")
        _run("ip", "route", "flush", "cache")

    def heal(self) -> None:
        for side, port in self._rules:
            _run("ip", "rule", "del", "pref", str(_PREFERENCE), "ipproto", "tcp", side, port, "blackhole")
        _run("ip", "route", "flush", "cache")
        self._rules = []


def _ports(pid: int) -> set[int]:
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return set()
    return {connection.laddr.port for connection in connections if connection.laddr}


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
