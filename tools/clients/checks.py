"""What the check scripts share: where the server is, and how their results are told.

A script runs in the virtual environment of its client, which has no Baton: standard library only here. It prints one
JSON object per check: `{"check": .., "ok": .., "error": ..}`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000") + "/v1"
MODEL = os.environ.get("MODEL", "baton-tiny")
API_KEY = "any"


def run(*checks: Callable[[], None]) -> None:
    """Run all; the exit code says whether any failed."""
    failed = False
    for check in checks:
        try:
            check()
            result = {"check": check.__name__, "ok": True}
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            result = {"check": check.__name__, "ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
            failed = True
        print(json.dumps(result), flush=True)
    sys.exit(failed)
