"""UCX's environment, and what UCX finds on this machine. Knows NIXL only as the package that carries UCX.

UCX reads its settings from UCX_* variables when it is loaded: `prepare` fills in what the user left open, before that.
"""

from __future__ import annotations

import ctypes
import fcntl
import glob
import importlib.util
import os
import re
import socket
import struct

from baton.runtime import environ

_SIOCGIFADDR = 0x8915
_FIELD_FEATURES = 1
_FEATURE_RMA = 2
_API_VERSION = (1, 10)
_PARAMS_WORDS = 64  # more than any version's ucp_params_t; only the two fields named by the mask are read

DEFAULTS = {
    # Shared-memory transports couple failures: a peer killed while it writes can wedge the survivor for all its peers.
    "UCX_TLS": "^posix,sysv",
    # 2 to 4 times the throughput of the default segments over TCP.
    "UCX_TCP_TX_SEG_SIZE": "512K",
    "UCX_TCP_RX_SEG_SIZE": "512K",
    # Without it, UCX leaves cross-memory attach aside where errors of peers are to be noticed.
    "UCX_CMA_MEMORY_INVALIDATE": "y",
    # Failures reach us as errors of operations; the library's own lines repeat them in its words.
    "UCX_LOG_LEVEL": "fatal",
    "NIXL_LOG_LEVEL": "FATAL",
}


def prepare(host: str) -> None:
    """Set what UCX needs and the user has not set. `host` is the address under which this agent is reached.

    Without InfiniBand, UCX is told to use the interface of that address only: it would otherwise also try those that
    lead nowhere (bridges of containers, for one).
    """
    environ.set_defaults(DEFAULTS)
    if not has_rdma() and (device := interface_of(host)):
        environ.set_defaults({"UCX_NET_DEVICES": device})


def has_rdma() -> bool:
    """Whether this host has an InfiniBand or RoCE device."""
    return bool(glob.glob("/sys/class/infiniband/*"))


def interface_of(host: str) -> str:
    """The network interface that has the IPv4 address of `host`; empty when none has."""
    try:
        wanted = socket.gethostbyname(host)
    except OSError:
        return ""
    if wanted.startswith("127."):
        return "lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            if socket.inet_ntoa(answer[20:24]) == wanted:
                return name
    return ""


def library() -> str:
    """Path of the UCX library that NIXL brings; empty when it is not installed."""
    spec = importlib.util.find_spec("nixl_cu13")
    if spec is None or not spec.submodule_search_locations:
        return ""
    parent = os.path.dirname(spec.submodule_search_locations[0])
    return next(iter(glob.glob(os.path.join(parent, "nixl_cu13.libs", "libucp-*.so*"))), "")


def transports() -> list[str]:
    """What UCX may use with the present settings, as `transport/device`; empty when that cannot be found out."""
    path = library()
    if not path:
        return []
    ucp, libc = ctypes.CDLL(path), ctypes.CDLL(None)
    pointer = ctypes.c_void_p
    ucp.ucp_init_version.argtypes = [ctypes.c_uint, ctypes.c_uint, pointer, pointer, pointer]
    ucp.ucp_context_print_info.argtypes = [pointer, pointer]
    ucp.ucp_cleanup.argtypes = [pointer]
    libc.open_memstream.restype = pointer
    libc.fclose.argtypes = libc.free.argtypes = [pointer]
    params = (ctypes.c_uint64 * _PARAMS_WORDS)(_FIELD_FEATURES, _FEATURE_RMA)
    context, text, size = pointer(), pointer(), ctypes.c_size_t()
    if ucp.ucp_init_version(*_API_VERSION, params, None, ctypes.byref(context)) != 0:
        return []
    stream = libc.open_memstream(ctypes.byref(text), ctypes.byref(size))
    ucp.ucp_context_print_info(context, stream)
    libc.fclose(stream)
    ucp.ucp_cleanup(context)
    report = ctypes.string_at(text, size.value).decode()
    libc.free(text)
    return sorted(set(re.findall(r"resource .* (\w+/\S+)", report)))
