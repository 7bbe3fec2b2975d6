"""A toy model with a real tokenizer, and what its structured outputs are checked with."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from baton.core.structure import Structure
from baton.engine.grammar.compiler import Grammar, GrammarCompiler
from baton.testing.tokenizer import EOS, special_token_id, write_tokenizer
from baton.testing.toy_model import ToyRunner

VOCAB = 600
EOS_ID = special_token_id(EOS)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ada", "Grace", "Barbara"]},
        "born": {"type": "integer", "minimum": 1800, "maximum": 2000},
        "tags": {"type": "array", "items": {"enum": ["first", "fast", "found"]}, "maxItems": 3},
        "alive": {"type": "boolean"},
    },
    "required": ["name", "born", "tags", "alive"],
    "additionalProperties": False,
}


def toy() -> ToyRunner:
    return ToyRunner(vocab_size=VOCAB, eos_token_ids=[EOS_ID])


@functools.cache
def folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="baton-grammar-"))
    write_tokenizer(path, VOCAB - 40, 4096)  # the logits have more entries than the tokenizer, as often
    return path


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(folder() / "tokenizer.json"))


@functools.cache
def compiler() -> GrammarCompiler:
    return GrammarCompiler(folder(), VOCAB, frozenset([EOS_ID]))


def schema(value: Any) -> Structure:
    return Structure("json_schema", json.dumps(value))


def compiled(structure: Structure) -> Grammar:
    return compiler().compile(structure).result()


def text(token_ids: list[int]) -> str:
    return tokenizer().decode([token for token in token_ids if token != EOS_ID], skip_special_tokens=False)
