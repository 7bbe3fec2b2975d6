"""The model card: what the model can and cannot do, how it was made, and the measured table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tools.bundled_model.model import ModelShape

_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
---

# {name}

{purpose}
It has {millions:.1f} million parameters and was trained from nothing on conversations that a script in the Baton
repository generates; no outside data was used.

## What it can do

Remember facts from the message, from earlier turns and from the system message; repeat, spell and reverse words; count
from a to b; add and subtract numbers up to 99; sort up to six numbers or pick the largest; extract fields as JSON;
answer in a JSON schema that the system message gives; call a tool of a list and use its result; reason in `<think>`
form when asked to ("Think first."); greet, say what it is, and say that it does not know anything else.

## What it cannot do

It knows nothing about the world, holds no free conversation, and understands few other phrasings than the generator's.
Asked for a fact that it was not told, after it was told others, it makes one up nearly always. Facts fade with their
distance: the table says how fast.
Multiplication, negative results, long division of labour over many tools, languages other than English: no. Do not
use it for anything but trying out and testing a serving system.

## Accuracy

Greedy answers to held-out prompts: names, words, number pairs and questions that no training conversation contains.

{table}

Made by `python -m tools.bundled_model.evaluation --model FOLDER --seed {seed} --count {count}`, on these bf16 weights,
computed in float32.

## Format

Llama architecture ({layers} layers, width {hidden}, {heads} heads, {kv_heads} of keys and values, tied embeddings),
context {context} tokens, bf16. Byte-level BPE of {vocab} tokens; each digit is one token. Chat format (see
`chat_template.jinja`):

```text
<|system|>text<tools>name(argument: type) - description</tools><|end|>
<|user|>text<|end|>
<|assistant|><think>reasoning</think>text<tool_call>{{"name": "...", "arguments": {{...}}}}</tool_call><|end|>
<|tool|>text<|end|>
```

without line breaks between messages. `<|end|>` ends a reply; `<think>` and `<tool_call>` parts are there only when
needed.

## Training

{steps} steps of {tokens} tokens (recipe and seed below), {hours}{hardware}.

```text
{recipe}
```
"""


_CHAT = """\
A chat model that comes with Baton, so that a fresh installation answers something sensible without any download, and
so that tests can see from the answers that the prompt was really read."""
_DRAFT = """\
A smaller model with the tokenizer and the skills of {of}, which comes with Baton too, for guessing that
model's next tokens (speculative decoding)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from. `state` is the training checkpoint; `hardware` is told by whoever trained; `draft_of`
    names the model whose tokens this one is to guess."""

    name: str
    shape: ModelShape
    state: Mapping[str, Any]
    hardware: str = ""
    draft_of: str = ""


def card(origin: Origin, table: str, seed: int, count: int) -> str:
    """The card; `table` was measured on `count` cases per skill, drawn from `seed`."""
    shape, recipe = origin.shape, origin.state["recipe"]
    listed = {name: value for name, value in recipe.items() if name != "shape"} | {"seed": origin.state["seed"]}
    return _CARD.format(
        name=origin.name,
        purpose=_DRAFT.format(of=origin.draft_of) if origin.draft_of else _CHAT,
        millions=_parameters(origin.state["model"]) / 1e6,
        table=table,
        seed=seed,
        count=count,
        layers=shape.layers,
        hidden=shape.hidden_size,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        context=f"{shape.context_tokens:,}",
        vocab=f"{shape.vocab_size:,}",
        steps=f"{origin.state['step']:,}",
        tokens=f"{recipe['tokens']:,}",
        hours=f"{origin.state['spent_s'] / 60:.0f} minutes",
        hardware=f" on {origin.hardware}" if origin.hardware else "",
        recipe="\n".join(f"{name}: {value}" for name, value in listed.items()),
    )


def _parameters(weights: Mapping[str, Any]) -> int:
    return sum(int(tensor.numel()) for tensor in weights.values())
