"""The model's tokens as the grammar library needs them: their bytes, their merges, and which of them end a sequence."""

from __future__ import annotations

from pathlib import Path

from llguidance import LLTokenizer

from baton.core.errors import InvalidRequest


def load_vocabulary(model: Path, vocab_size: int, eos_token_ids: frozenset[int]) -> LLTokenizer:
    """Read `tokenizer.json` of the checkpoint folder `model`; takes about a second for 150,000 tokens.

    `vocab_size`: of the model's logits, which may be more than the tokenizer has. Raises InvalidRequest when this
    model's output cannot be constrained, saying why.
    """
    file = model / "tokenizer.json"
    if not file.is_file():
        raise _unconstrained("its checkpoint has no tokenizer.json")
    if not eos_token_ids:
        raise _unconstrained("it has no end-of-sequence token")
    try:
        return LLTokenizer(file.read_text(), n_vocab=vocab_size, eos_token=sorted(eos_token_ids))
    except Exception as error:  # the library raises what it likes at a tokenizer that it does not understand
        raise _unconstrained(f"its tokenizer is of a kind that is not supported: {error}") from None


def _unconstrained(reason: str) -> InvalidRequest:
    return InvalidRequest(f"this model's output cannot be structured: {reason}", param="structure")
