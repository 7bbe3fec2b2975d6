"""A small byte-level BPE tokenizer with a chat template, for random checkpoints.

Every UTF-8 text survives encoding and decoding, and many tokens are pieces of a character, as with real tokenizers.
Knows nothing of weights.
"""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (BOS, EOS, PAD, *(f"<|{role}|>" for role in ROLES))
# Stand-ins for the 256 bytes, in order of their ids, which follow those of the special tokens.
BYTE_CHARACTERS = tuple(sorted(pre_tokenizers.ByteLevel.alphabet()))

_CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('role ' ~ message['role'] ~ ' is unknown; it must be system, user or assistant') }}"
    "{%- endif %}"
    "{{- '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ eos_token }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
# What the merges are learnt from; any text would do.
_TEXT = """\
A relay race is won at the handover. The runner who comes in does not slow down and the runner who goes out has
already begun to run; for twenty metres both hold the same stick, and nobody in the stands could say whose it is.
In the same way a prompt is read by one machine and answered by another. The first machine reads fast and all at
once; the second one speaks slowly, a word at a time, to many people at the same time. What passes between them is
what the first has understood: keys and values, layer after layer, page after page. If a page is lost the answer is
wrong, and if a page comes late the answer waits. So we count the pages, we sign the list, and we let go of the stick
only when the other hand has closed around it. Hello! How are you today? I am well, thank you. What is the capital
of the country, and why? Write a short story about the sea, the wind and 1234567890 ships. Café, naïve, größer,
señor, 東京, 北京, привет, мир, 👋 🌍.
"""


def special_token_id(token: str) -> int:
    """The id of one of SPECIAL_TOKENS, which is the same in every vocabulary."""
    return SPECIAL_TOKENS.index(token)


def write_tokenizer(folder: Path, vocab: int, max_position: int) -> None:
    """Write tokenizer.json and tokenizer_config.json: exactly `vocab` tokens, learnt merges first, then letters.

    As with Llama, a plain text is encoded with the begin token before it; a rendered chat brings its own.
    Raises ValueError when `vocab` is too small for the special tokens and the bytes.
    """
    least = len(SPECIAL_TOKENS) + len(BYTE_CHARACTERS)
    if vocab < least:
        raise ValueError(f"vocab is {vocab}; special tokens and bytes alone are {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=BYTE_CHARACTERS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT.splitlines(keepends=True), trainer)
    content = json.loads(tokenizer.to_str())
    _fill_vocabulary(content["model"]["vocab"], content["model"]["merges"], vocab)
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [special_token_id(BOS)], "tokens": [BOS]}},
    }
    _write(folder / "tokenizer.json", content)
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_position,
            "chat_template": _CHAT_TEMPLATE,
        },
    )


def _fill_vocabulary(tokens: dict[str, int], merges: list[list[str]], vocab: int) -> None:
    """Add merges of letters until there are `vocab` tokens. They rank last, so learnt merges win."""
    letters = string.ascii_lowercase
    for length in itertools.count(2):
        for combination in itertools.product(letters, repeat=length):
            if len(tokens) >= vocab:
                return
            word = "".join(combination)
            if word not in tokens:
                tokens[word] = len(tokens)
                merges.append([word[:-1], word[-1]])


def _write(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
