"""A model of `transformers` in two parts: a body that makes hidden states of tokens, and a head for what comes of them.

The body runs on pages as a whole model does. The head is the model's own code, run while the body answers with states
that are there already: so whatever stands between states and logits (scales, soft caps, projections) is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from baton.engine.model.through.interface import MODEL_ERRORS
from baton.engine.model.through.selfcheck import alike

_EXACT, _ROUNDED = 1e-4, 5e-2  # differences of a classification head's logits


class Body:
    """Stands where plans expect a model: its logits are the final hidden states of a model's body."""

    def __init__(self, body: PreTrainedModel) -> None:
        self.body = body

    def __call__(self, logits_to_keep: torch.Tensor | None = None, **inputs: Any) -> ModelOutput:
        out: ModelOutput = self.body(**inputs)
        out.logits = out.last_hidden_state if logits_to_keep is None else out.last_hidden_state[:, logits_to_keep]
        return out

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **options: Any) -> dict[str, Any]:
        return {"input_ids": input_ids, **options}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.body, name)


class Head:
    """Logits of final hidden states, by the code of the model whose `body` has made them. Use from one thread at a
    time, and not while the body runs."""

    def __init__(self, model: PreTrainedModel, body: PreTrainedModel, answer: type, outputs: int) -> None:
        """`answer`: what the body returns. `outputs`: logits of a state."""
        self.body = body
        self._model = model
        self._answer = answer
        self._outputs = outputs
        self._token_id = int(model.config.get_text_config().pad_token_id == 0)  # any but padding

    @torch.inference_mode()
    def __call__(self, states_LE: torch.Tensor) -> torch.Tensor:
        """float32 [L, outputs], or [1, outputs] of a head that stands on the last token of a text."""
        if not len(states_LE):
            return states_LE.new_empty((0, self._outputs), dtype=torch.float32)
        token_ids = torch.full((1, len(states_LE)), self._token_id, device=states_LE.device)
        with self._answering(states_LE[None].to(self._model.dtype)):
            logits: torch.Tensor = self._model(input_ids=token_ids, use_cache=False).logits
        return logits.view(-1, self._outputs).float()

    def of_each(self, states_RE: torch.Tensor) -> torch.Tensor:
        """float32 [R, outputs] of last tokens' states, of as many texts."""
        return torch.cat([self(state) for state in states_RE.split(1)])

    @contextmanager
    def _answering(self, states_1LE: torch.Tensor) -> Iterator[None]:
        """The body returns these meanwhile."""
        answer = self._answer(last_hidden_state=states_1LE)
        self.body.forward = lambda *_, **__: answer
        try:
            yield
        finally:
            del self.body.forward


@torch.inference_mode()
def head_of(model: PreTrainedModel, texts: Sequence[list[int]]) -> Head | None:
    """The head of a model that draws tokens or classifies texts, if it gives the model's own logits of these texts;
    None: the model cannot be parted so."""
    for body in dict.fromkeys((model.base_model, model.get_decoder())):
        try:
            if body is not model and (head := _tried(model, body, texts)) is not None:
                return head
        except MODEL_ERRORS:
            continue
    return None


def _tried(model: PreTrainedModel, body: PreTrainedModel, texts: Sequence[list[int]]) -> Head | None:
    exact, device = model.dtype == torch.float32, next(model.parameters()).device
    head = None
    for text in texts:
        token_ids = torch.tensor([text], device=device)
        out = body(input_ids=token_ids, use_cache=False)
        states, logits = out.last_hidden_state[0], model(input_ids=token_ids, use_cache=False).logits
        head = Head(model, body, type(out), logits.shape[-1])
        if logits.dim() == 2:
            tolerance = _EXACT if exact else _ROUNDED
            same = torch.allclose(head.of_each(states[-1:]), logits.float(), tolerance, tolerance)
        else:  # of each state by itself, in whatever order they come
            same = alike(head(states.flip(0)), logits[0].flip(0).float(), exact)
        if not same:
            return None
    return head
