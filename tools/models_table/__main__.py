"""Try every causal architecture of the installed `transformers`, and write down in docs/models.md how it runs.

python -m tools.models_table          rewrite the table; takes a minute of CPU
python -m tools.models_table --check  exit 1 when it is out of date
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from tools.generated import write_or_check
from tools.models_table.trial import Verdict, Way, tried

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"


def verdicts() -> dict[tuple[str, str], Verdict]:
    """By architecture and model type."""
    found = {}
    for model_type, architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        found[architecture, model_type] = tried(model_type, architecture)
        print(architecture, model_type, found[architecture, model_type].way.value, file=sys.stderr, flush=True)
    return found


def table(found: Mapping[tuple[str, str], Verdict]) -> str:
    counts = Counter(verdict.way for verdict in found.values())
    told = ", ".join(f"{counts[way]} {way.value}" for way in Way)
    head = f"With transformers {transformers.__version__}, model types: {told}.\n"
    return "\n".join(
        [head, "| architecture | model type | runs | why not |", "| --- | --- | --- | --- |", *rows(found)]
    )


def rows(found: Mapping[tuple[str, str], Verdict]) -> Iterator[str]:
    for (architecture, model_type), verdict in sorted(found.items()):
        reason = verdict.reason.replace("|", "\\|")
        yield f"| `{architecture}` | {model_type} | {verdict.way.value} | {reason} |"


def main() -> int:
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    made = table(verdicts())
    head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    tail = rest.split(END)[1]
    return write_or_check(PAGE, f"{head}{BEGIN}\n\n{made}\n\n{END}{tail}")


if __name__ == "__main__":
    sys.exit(main())
