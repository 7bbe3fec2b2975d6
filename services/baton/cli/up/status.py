"""`status.json` in the runtime folder: what runs, for operators and tests. Rewritten whole on every change.

    {"pid": 1, "url": "http://127.0.0.1:8000", "model": "name", "ready": true,
     "services": [{"name": "prefill-0", "kind": "prefill", "pid": 2, "phase": "ready", "starts": 1,
                   "address": "127.0.0.1:20001", "metrics": "127.0.0.1:20002"}]}

`pid` of a service is null while it is not running; `address` and `metrics` stay the same over restarts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from baton.cli.up.supervisor import ChildState

FILE = "status.json"


class StatusFile:
    """Keeps `status.json` in `folder` true to `children`."""

    def __init__(self, folder: Path, url: str, model: str, children: Sequence[ChildState]) -> None:
        self.path = folder / FILE
        self.ready = False
        self._url = url
        self._model = model
        self._children = children
        self._written = ""

    def update(self) -> None:
        """Write the file if anything changed, so that readers see either the old or the new content, never a part."""
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
            for child in self._children
        ]
        own = {"pid": os.getpid(), "url": self._url, "model": self._model, "ready": self.ready}
        text = json.dumps({**own, "services": services}, indent=1)
        if text != self._written:
            draft = self.path.with_suffix(".new")
            draft.write_text(text, encoding="utf-8")
            draft.replace(self.path)
            self._written = text
