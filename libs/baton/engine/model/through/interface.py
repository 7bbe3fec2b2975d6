"""Where the modelling code of `transformers` asks for attention: answered by whatever listens just then.

Its models call an attention function, and one that makes masks, by the name in their config. Both are registered here
under one name, and pass on to the listener of this thread: the probe while a model is loaded, the paged cache in steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "baton"
# What modelling code raises when it is asked for what it does not do.
MODEL_ERRORS = (TypeError, ValueError, IndexError, RuntimeError, AttributeError, KeyError, AssertionError)
NOT_ASKED = "its attention does not go through the interface of transformers"
# (batch, head, query position, key position), int64 tensors that broadcast -> whether the query attends to the key
MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Listener(Protocol):
    """Answers one forward pass of a model, whose calls come in the same order each time."""

    def attend(
        self,
        module: torch.nn.Module,
        q_1HTD: torch.Tensor,
        k_1KTD: torch.Tensor,
        v_1KTD: torch.Tensor,
        mask: torch.Tensor | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """What T queries attend to, [1, T, H, D]. `mask` is what `mask` returned, or a tensor of the model's own."""

    def mask(self, function: MaskFunction) -> torch.Tensor | None:
        """What stands for a mask, which models only pass on. None: a token sees all up to itself."""


_LISTENER: ContextVar[Listener] = ContextVar("baton_attention_listener")


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Attention of models on this thread is asked of `listener` meanwhile."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    return _LISTENER.get().attend(module, query, key, value, attention_mask, options), None


def _mask(*_: Any, mask_function: MaskFunction, **options: Any) -> torch.Tensor | None:
    del options
    return _LISTENER.get().mask(mask_function)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
