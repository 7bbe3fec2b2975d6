"""docs/models.md names the families that there are, and all of them are tested."""

from __future__ import annotations

import re
from pathlib import Path

from family_checkpoints import FAMILIES as TESTED
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from baton.engine.model.families import FAMILIES

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


def test_every_native_family_is_listed() -> None:
    listed = re.findall(r"^\| (\w+For\w+) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == list(dict.fromkeys(listed))
    assert set(listed) == set(FAMILIES)


def test_every_native_family_is_tested() -> None:
    types = {model_type for model_type, _ in TESTED.values()}
    assert {family.model_type for family in FAMILIES.values()} - types == {"mimo"}, "test_mimo is for that"


def test_families_have_the_names_that_transformers_has() -> None:
    for architecture, family in FAMILIES.items():
        if family.model_type != "mimo":
            assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.model_type] == architecture
