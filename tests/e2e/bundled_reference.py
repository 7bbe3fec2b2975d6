"""The bundled model in `transformers`, and which questions it answers rightly there.

A test of the served model asks only those: so it holds for whatever weights are bundled, and a wrong answer is Baton's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.bundled_model.cases import Case
from tools.bundled_model.conversation import parse_reply

_LONGEST_ANSWER = 300


@dataclass(frozen=True, slots=True)
class Answered:
    """A case and the right answer that the reference gives greedily."""

    case: Case
    text: str
    prompt_token_ids: list[int]
    token_ids: list[int]

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [message.as_chat() for message in self.case.messages]

    def is_right(self, text: str) -> bool:
        return self.case.check.accepts(parse_reply(text))


class Reference:
    """A checkpoint in float32, answering greedily."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @property
    def kv_bytes_per_token(self) -> int:
        config = self.model.config
        return 4 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim

    def prompt(self, messages: Sequence[dict[str, Any]], tools: Sequence[Any] = ()) -> list[int]:
        """Token ids up to where the assistant's answer begins."""
        return self.tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, add_generation_prompt=True, return_dict=False
        )

    def tokens(self, prompt: Sequence[int], max_new_tokens: int = _LONGEST_ANSWER) -> list[int]:
        """What follows `prompt`, the end token included."""
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            made = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens)
        return made[0, len(prompt) :].tolist()

    def text(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def answered_rightly(self, cases: Iterable[Case]) -> Iterator[Answered]:
        """Those of `cases` that the reference can do."""
        for case in cases:
            prompt = self.prompt([message.as_chat() for message in case.messages], case.tools)
            made = self.tokens(prompt)
            answered = Answered(case, self.text(made), prompt, made)
            if answered.is_right(answered.text):
                yield answered

    def first_right(self, cases: Iterable[Case], count: int) -> list[Answered]:
        """The first `count` of `cases` that the reference can do; fails when there are fewer."""
        found = list(itertools.islice(self.answered_rightly(cases), count))
        assert len(found) == count, f"the model itself answers only {len(found)} of these cases rightly, not {count}"
        return found
