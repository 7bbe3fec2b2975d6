"""The table of architectures in docs/models.md: whole and true, each of them tried again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tools.models_table.__main__ import BEGIN, END
from tools.models_table.trial import Verdict, Way, tried

torch.set_num_threads(1)
PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
TABLE = PAGE.split(BEGIN)[1].split(END)[0]
ROWS = {
    (architecture, model_type): Verdict(Way(way), reason)
    for architecture, model_type, way, reason in re.findall(
        r"^\| `(\w+)` \| (\S+) \| ([^|]+?) \| ([^|]*?) ?\|$", TABLE, re.MULTILINE
    )
}

pytestmark = pytest.mark.skipif(
    f"transformers {transformers.__version__}," not in TABLE, reason="the table is of another version of transformers"
)


def test_all_architectures_are_in_it() -> None:
    assert list(ROWS) == sorted((name, kind) for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items())


@pytest.mark.parametrize("model_type", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_it_is_true(model_type: str) -> None:
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    assert tried(model_type, architecture) == ROWS[architecture, model_type]


def test_counts() -> None:
    for way in Way:
        assert f"{sum(verdict.way is way for verdict in ROWS.values())} {way.value}" in TABLE
