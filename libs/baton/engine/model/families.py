"""All model families that the decoder knows, by the architecture that a config.json names."""

from __future__ import annotations

from collections.abc import Mapping

from baton.engine.model.families_delta import DELTA
from baton.engine.model.families_dense import DENSE
from baton.engine.model.families_hybrid import HYBRID
from baton.engine.model.families_mamba import MAMBAS
from baton.engine.model.families_mixed import MIXED
from baton.engine.model.family import Family

FAMILIES: Mapping[str, Family] = {**DENSE, **MIXED, **HYBRID, **MAMBAS, **DELTA}
