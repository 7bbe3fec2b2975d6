"""The models that come with Baton: checkpoint folders beside this module, found by name.

`baton up` serves the first one when it is given no other; tests ask it what only a model that has read its prompt can
answer. tools/bundled_model makes them. Reads no file of a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from baton.core.errors import CheckpointError

TINY = "baton-tiny"
DRAFT = "baton-tiny-draft"  # the same tokenizer in a smaller model, to guess the other one's tokens

_FOLDER = Path(__file__).resolve().parent


def bundled(name: str) -> Path:
    """The checkpoint folder of TINY or DRAFT. Raises CheckpointError when this installation lacks it."""
    folder = _FOLDER / name
    if name not in (TINY, DRAFT) or not (folder / "config.json").is_file():
        found = sorted(file.parent.name for file in _FOLDER.glob("*/config.json"))
        raise CheckpointError(
            f"this installation of Baton does not hold the model {name!r}: {_FOLDER} has {', '.join(found) or 'none'}; "
            "install Baton again, or serve another checkpoint folder (--model)"
        )
    return folder
