"""Reading the small JSON files of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from baton.core.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file. Raises CheckpointError when it is not one."""
    if not path.is_file():
        return {}
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return content
