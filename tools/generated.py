"""Files that are made by a program: written, or with --check held against what they should be."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(target: Path, text: str) -> int:
    """Write `text`, or with --check say whether it is there already. Returns an exit code."""
    if "--check" not in sys.argv[1:]:
        target.write_text(text, encoding="utf-8")
        return 0
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return 0
    print(f"{target.name} is not current: run `make docs`", file=sys.stderr)
    return 1
