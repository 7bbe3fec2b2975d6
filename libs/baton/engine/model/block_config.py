"""Models made of blocks of which each mixes tokens or is an MLP (Nemotron-H), as layers that do one and then the other.

Read from config.json while a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from baton.core.errors import CheckpointError
from baton.engine.model.hybrid_config import FULL, LINEAR, OLD_KINDS

# Of each layer: by what number a checkpoint has what mixes tokens, and by what number the MLP; None: there is none.
Blocks: TypeAlias = tuple[tuple[int, int | None], ...]

_MLP, _EXPERTS = "mlp", "moe"
_LETTERS = {"M": LINEAR, "*": FULL, "-": _MLP, "E": _EXPERTS}
_DEFAULT = (LINEAR, _EXPERTS, FULL, _MLP)


def in_layers(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], Blocks]:
    """A config.json of blocks, with layers of the kinds `layer_types` and `mlp_layer_types`; and their blocks."""
    kinds = _kinds(raw)
    layers: list[tuple[int, int | None]] = []
    for number, kind in enumerate(kinds):
        if kind in (LINEAR, FULL):
            layers.append((number, None))
        elif not layers or layers[-1][1] is not None:
            raise CheckpointError(f"block {number} is an MLP after none that mixes tokens, which is not supported")
        else:
            layers[-1] = layers[-1][0], number
    changed = {
        "num_hidden_layers": len(layers),
        "layer_types": [kinds[mixer] for mixer, _ in layers],
        "mlp_layer_types": ["sparse" if mlp is not None and kinds[mlp] == _EXPERTS else "dense" for _, mlp in layers],
    }
    return {**raw, **changed}, tuple(layers)


def _kinds(raw: Mapping[str, Any]) -> list[str]:
    named = raw.get("layers_block_type") or raw.get("layer_types")
    if named is None:
        named = [_LETTERS.get(letter, letter) for letter in raw.get("hybrid_override_pattern") or ()] or _DEFAULT
    kinds = [OLD_KINDS.get(kind, kind) for kind in named]
    unknown = [kind for kind in kinds if kind not in _DEFAULT]
    if unknown:
        raise CheckpointError(
            f"blocks of the kind {unknown[0]!r} are not supported; supported are {', '.join(_DEFAULT)}"
        )
    return kinds
