"""schemathesis: requests made up from /openapi.json, right and wrong ones; no answer may be a server error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from checks import BASE_URL, run

ROOT = BASE_URL.removesuffix("/v1")
MOST_SECONDS = 240


def no_server_error() -> None:
    program = Path(sys.executable).with_name("schemathesis")
    options = {
        "--checks": "not_a_server_error",
        "--phases": "coverage,fuzzing",
        "--max-examples": "15",
        "--max-time": str(MOST_SECONDS),
        "--seed": "1",
        "--suppress-health-check": "all",
        "--request-timeout": "60",
        "--warnings": "off",
    }
    flags = [part for option in options.items() for part in option]
    done = subprocess.run(
        [program, "run", f"{ROOT}/openapi.json", *flags, "--no-shrink", "--continue-on-failure"],
        capture_output=True,
        text=True,
    )
    print(done.stdout[-6000:], file=sys.stderr)
    assert done.returncode == 0, "server errors, or requests that were not answered; see above"


run(no_server_error)
