"""What UCX, as NIXL bundles it, can use here. A program of its own: loading it starts libraries that may crash or hang.

Prints one JSON object: NIXL's and UCX's versions and transports as `transport/device`.
"""

from __future__ import annotations

import ctypes
import json
import os
from importlib import metadata

from baton.kv import ucx


def main() -> None:
    # Only what is written by us may go to stdout; NIXL logs there as well.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # As a KV agent starts it: a UCX that NIXL cannot load is of no use here.
    from nixl_cu13 import nixl_agent, nixl_agent_config

    _agent = nixl_agent("probe", nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
    transports = ucx.transports()
    if not transports:
        raise RuntimeError("NIXL started without UCX")
    ucp = ctypes.CDLL(ucx.library())
    ucp.ucp_get_version_string.restype = ctypes.c_char_p
    found = {
        "nixl": metadata.version("nixl-cu13"),
        "ucx": ucp.ucp_get_version_string().decode(),
        "transports": transports,
    }
    out.write(json.dumps(found))
    out.flush()
    os._exit(0)  # skip tear-down of libraries whose answer is already here


if __name__ == "__main__":
    main()
