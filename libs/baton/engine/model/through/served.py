"""What a model of `transformers` can be asked for, and how it runs for that: found out while it is loaded.

A model that draws tokens runs whole. Where it can be parted into body and head, its hidden states can be had, too, so
that it embeds and scores; a model that classifies, or has no head, runs as its body alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from baton.core.architecture import classifies
from baton.core.errors import CheckpointError, InternalError
from baton.engine.model.files import read_config
from baton.engine.model.through.architecture import is_headless
from baton.engine.model.through.body import Body, Head, head_of
from baton.engine.model.through.interface import MODEL_ERRORS
from baton.engine.model.through.plans import Plan, Trial, find_plan
from baton.engine.model.through.selfcheck import Expected, made_up_texts
from baton.engine.pooling.load import last_token_pooler
from baton.engine.pooling.pooler import Pooler, generating


@dataclass(frozen=True, slots=True)
class Served:
    """`plan` is of the whole model where that draws tokens, else of its body. `states`: the plan for hidden states, if
    they can be had. `head`: what makes logits of them, for tokens."""

    plan: Plan
    pooler: Pooler
    states: Plan | None = None
    head: Head | None = None


def find_served(folder: Path, model: PreTrainedModel, trial: Trial) -> Served:
    """Raises CheckpointError when the model cannot run on pages, with the reason."""
    raw = read_config(folder)
    vocab_size, device = model.get_input_embeddings().num_embeddings, next(model.parameters()).device
    texts = made_up_texts(vocab_size, trial.context_tokens)
    if is_headless(raw, model.config):
        plan = _plan_of(model, trial)
        return Served(plan, last_token_pooler(folder, vocab_size, plan.vocab_size, device, None, None), plan)
    head = head_of(model, texts)
    if classifies(raw):
        if head is None:
            raise CheckpointError("its classification head stands on more than the last token's final hidden state")
        plan = _plan_of(head.body, trial)
        return Served(plan, last_token_pooler(folder, vocab_size, plan.vocab_size, device, None, head.of_each), plan)
    expected = trial.expected(model)
    expected_states = trial.expected(_alone(head.body)) if head is not None else None
    plan = find_plan(model, trial, expected)
    states = _states_of(plan, head, expected_states, trial) if head is not None and expected_states else None
    if head is None or states is None:
        return Served(plan, generating(plan.vocab_size, _hidden_size(model)))
    pooler = last_token_pooler(folder, plan.vocab_size, states.vocab_size, device, head, None)
    return Served(plan, pooler, states, head)


def _plan_of(body: PreTrainedModel, trial: Trial) -> Plan:
    alone = _alone(body)
    return find_plan(alone, trial, trial.expected(alone))


def _alone(body: PreTrainedModel) -> PreTrainedModel:
    return cast(PreTrainedModel, Body(body))


def _states_of(plan: Plan, head: Head, expected: Expected, trial: Trial) -> Plan | None:
    """The plan of a whole model, for its body alone."""
    try:
        found: Plan = replace(cast(Any, plan), model=_alone(head.body), vocab_size=expected.logits[0].shape[-1])
        trial.check(found, expected)
    except (CheckpointError, InternalError, *MODEL_ERRORS):
        return None
    return found


def _hidden_size(model: PreTrainedModel) -> int:
    size: int = model.config.get_text_config(decoder=True).hidden_size
    return size
