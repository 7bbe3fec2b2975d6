"""What UCX, as NIXL bundles it, can use here. A program of its own: loading it starts libraries that may crash or hang.

Prints one JSON object: NIXL's and UCX's versions and transports as `transport/device`. UCX tells its transports only by
printing them, so its own description of a context is read (`ucp_context_print_info`).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

_FIELD_FEATURES = 1
_FEATURE_RMA = 1 << 1


class _Params(ctypes.Structure):
    """`ucp_params_t`: only its first two fields are read when the mask names no other."""

    _fields_ = (("mask", ctypes.c_uint64), ("features", ctypes.c_uint64), ("rest", ctypes.c_uint64 * 64))


def load_ucp() -> tuple[ctypes.CDLL, Any]:
    """The UCP library of the installed NIXL, and the agent whose start loaded it, as a KV agent's start does."""
    from nixl_cu13 import nixl_agent, nixl_agent_config

    agent = nixl_agent("probe", nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
    found = re.search(r"\S+/libucp[-.]\S*", Path("/proc/self/maps").read_text(encoding="utf-8"))
    if found is None:
        raise RuntimeError("NIXL started without UCX")
    return ctypes.CDLL(found[0]), agent


def transports(ucp: ctypes.CDLL) -> list[str]:
    version = [ctypes.c_uint() for _ in range(3)]
    ucp.ucp_get_version(*map(ctypes.byref, version))
    params, context = _Params(_FIELD_FEATURES, _FEATURE_RMA), ctypes.c_void_p()
    status = ucp.ucp_init_version(version[0], version[1], ctypes.byref(params), None, ctypes.byref(context))
    if status != 0:
        raise RuntimeError(f"ucp_init failed with status {status}")
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    with tempfile.TemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fdopen(os.dup(file.fileno()), b"w"))
        ucp.ucp_context_print_info(context, stream)
        libc.fclose(stream)
        file.seek(0)
        return re.findall(r"resource \d+ .*-- (\S+)", file.read().decode())


def main() -> None:
    # Only what is written by us may go to stdout; NIXL logs there as well.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ucp, _agent = load_ucp()
    ucp.ucp_get_version_string.restype = ctypes.c_char_p
    found = {
        "nixl": metadata.version("nixl-cu13"),
        "ucx": ucp.ucp_get_version_string().decode(),
        "transports": transports(ucp),
    }
    out.write(json.dumps(found))
    out.flush()
    os._exit(0)  # skip tear-down of libraries whose answer is already here


if __name__ == "__main__":
    main()
