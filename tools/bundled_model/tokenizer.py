"""The tokenizer, trained on generated conversations.

Byte-level BPE whose pre-tokenizer is made for copying: every digit is a token of its own, and names and numbers never
carry the space before them, so that "John" and "4821" are the same tokens in a sentence, in a list and in JSON.
Small words do carry it, which keeps prose short. Knows no batches and no model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.bundled_model import lexicon
from tools.bundled_model.dialogue import Dialogue
from tools.bundled_model.lexicon import Split
from tools.bundled_model.template import CONTROL_MARKERS, END, PAD, TEMPLATE_FILE, TEXT_MARKERS, pieces

VOCAB_SIZE = 2048
_LONGEST_TOKEN = 12  # characters
_RARE_PER_CONVERSATIONS = 200  # a word is rare when it occurs at most once in this many conversations
_SPLIT = "|".join(
    (
        r"'(?:s|t|re|ve|m|ll|d)(?!\p{L})",
        r" ?\p{Ll}+",
        r"\p{Lu}\p{Ll}+",
        r"\p{Lu}+(?!\p{Ll})",
        r"[\p{L}\p{M}]+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+(?: [^\s\p{L}\p{N}]+)*(?: (?=[\p{Lu}\p{N}]))?",  # takes the space before a name or number
        r"\s+(?!\S)",
        r"\s",
    )
)


def train(seed: int, conversations: int = 4000, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens, from that many generated training conversations."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    markers = [AddedToken(text, special=True, normalized=False) for text in (*CONTROL_MARKERS, *TEXT_MARKERS)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=markers,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, conversations), trainer)
    return _with_visible(tokenizer, TEXT_MARKERS)


def _with_visible(tokenizer: Tokenizer, markers: tuple[str, ...]) -> Tokenizer:
    """`tokenizer` with `markers` no longer "special": the trainer makes them so, and decoding would leave them out."""
    raw = json.loads(tokenizer.to_str())
    for token in raw["added_tokens"]:
        token["special"] = token["content"] not in markers
    return Tokenizer.from_str(json.dumps(raw))


def _corpus(seed: int, conversations: int) -> Iterator[str]:
    """Common words of generated conversations, as often as they occur, and all syllables.

    Words that are made up occur seldom. Left out, they cost no tokens of their own, and are written in syllables that
    other words share: every token is seen often enough to be learned well.
    """
    splitter = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    counts: Counter[str] = Counter()
    for text in _texts(seed, conversations):
        counts.update(piece for piece, _ in splitter.pre_tokenize_str(text))
    rare = conversations // _RARE_PER_CONVERSATIONS
    for piece, count in counts.items():
        yield from (piece,) * (count if count > rare else 0)
    for syllable in lexicon.syllables():
        yield from (syllable, f" {syllable}", syllable.capitalize()) * (rare + 1)


def _texts(seed: int, conversations: int) -> Iterator[str]:
    for number in range(conversations):
        dialogue = Dialogue(f"tokenizer {seed} {number}", Split.TRAIN, 300)
        messages = list(dialogue.opening)
        while sum(len(message.content) for message in messages) < 900:
            messages += dialogue.next_episode(200)
        for index, message in enumerate(messages):
            tools = dialogue.tools if index == 0 else ()
            yield from (piece.text for piece in pieces(message, tools) if not piece.marker)


def save(tokenizer: Tokenizer, folder: Path, context_tokens: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja as `transformers` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": context_tokens,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE_FILE.read_text())
