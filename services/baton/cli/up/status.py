"""`status.json` in the runtime folder: what runs, for operators and tests. Rewritten whole on every change.

    {"pid": 1, "url": "http://127.0.0.1:8000", "model": "name", "ready": true,
     "services": [{"name": "prefill-0", "kind": "prefill", "pid": 2, "phase": "ready", "starts": 1,
                   "address": "127.0.0.1:20001", "metrics": "127.0.0.1:20002"}]}

`pid` of a service is 0 while it is not running; `address` and `metrics` stay the same over restarts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from baton.cli.up.supervisor import ChildState

FILE = "status.json"


def write_status(folder: Path, *, url: str, model: str, ready: bool, children: Sequence[ChildState]) -> None:
    """Write the file so that readers see either the old or the new content, never a part."""
    services = [
        {
            "name": child.spec.name,
            "kind": child.spec.kind,
            "pid": child.pid,
            "phase": child.phase,
            "starts": child.starts,
            "address": child.spec.address,
            "metrics": child.spec.metrics,
        }
        for child in children
    ]
    content = {"pid": os.getpid(), "url": url, "model": model, "ready": ready, "services": services}
    draft = folder / f"{FILE}.new"
    draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
    draft.replace(folder / FILE)
