"""Values of a config.json, over what its family takes for granted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton.core.errors import CheckpointError
from baton.engine.model.family import Family

COMMON = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10_000.0, "attention_bias": False}


class Fields:
    """A config.json over the defaults of its family. Keys that the family does not listen to are not there."""

    def __init__(self, raw: Mapping[str, Any], family: Family) -> None:
        self.raw = {**raw, **{ours: raw[theirs] for ours, theirs in family.renamed.items() if theirs in raw}}
        self._defaults = {**COMMON, **family.defaults}

    def get(self, key: str) -> Any:
        """The value of an optional key, None where it is null, or where neither file nor family knows it."""
        return self.raw.get(key, self._defaults[key]) if key in self._defaults else None

    def listens(self, key: str) -> bool:
        """Whether the family knows an optional key."""
        return key in self._defaults

    def size(self, key: str, derived: int | None = None) -> int:
        """A positive integer; `derived` where it is null, or absent and the family has no default."""
        value = self.raw.get(key, self._defaults.get(key))
        if value is None:
            value = derived
        if value is None:
            raise CheckpointError(f"{key} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise CheckpointError(f"{key} is {value!r}; it must be a positive integer")
        return value

    def number(self, key: str, absent: float | None = None) -> float:
        value = self.get(key)
        if value is None:
            value = absent
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(f"{key} is {value!r}, of the wrong kind; it must be a number")
        return float(value)

    def optional(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def told(self, fact: bool | str) -> bool:
        """A fact of the family, or what the key of that name says."""
        return fact if isinstance(fact, bool) else bool(self.get(fact))
