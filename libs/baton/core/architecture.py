"""What the architecture that a checkpoint's config.json names says about its use. Standard library only.

The gateway, `baton up` and workers decide by it, each for itself, what a model can be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENCODER_FAMILIES = {"Bert": "bert", "Roberta": "roberta", "XLMRoberta": "roberta", "Camembert": "roberta"}
CLASSIFIER, HEADLESS = "ForSequenceClassification", "Model"
_TOKEN_HEAD = "LMHeadModel"
_ENCODER_ENDINGS = (HEADLESS, "ForMaskedLM", CLASSIFIER)  # the same layers


def encoder_family(config: Mapping[str, Any]) -> str | None:
    """What the tensors' names of an encoder begin with; None when the architecture is no encoder's that is known."""
    for name in _architectures(config):
        for ending in _ENCODER_ENDINGS:
            family = ENCODER_FAMILIES.get(name.removesuffix(ending))
            if family is not None and name.endswith(ending):
                return family
    return None


def reads_both_ways(config: Mapping[str, Any]) -> bool:
    """Whether tokens look at those that follow them, too: such a model draws no tokens and has no KV cache."""
    return encoder_family(config) is not None or config.get("is_causal") is False


def classifies(config: Mapping[str, Any]) -> bool:
    """Whether there is a classification head; then that is all that the model is asked for."""
    return any(name.endswith(CLASSIFIER) for name in _architectures(config))


def lacks_head(config: Mapping[str, Any]) -> bool:
    """Whether the model was saved without any head, so that it embeds."""
    return any(name.endswith(HEADLESS) and not name.endswith(_TOKEN_HEAD) for name in _architectures(config))


def labels(config: Mapping[str, Any]) -> list[str]:
    """Names of the labels of a model that classifies, in the order of its logits."""
    named = config.get("id2label")
    if isinstance(named, Mapping):
        return [str(named[key]) for key in sorted(named, key=int)]
    return [f"LABEL_{index}" for index in range(int(config.get("num_labels") or 2))]


def end_token(tokenizer_config: Mapping[str, Any]) -> str | None:
    """The token that tokenizer_config.json asks to stand behind every text; tokenizer.json may bring it already."""
    end = tokenizer_config.get("eos_token")
    name = end.get("content") if isinstance(end, Mapping) else end
    return str(name) if tokenizer_config.get("add_eos_token") is True and name else None


def _architectures(config: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in config.get("architectures") or ()]
