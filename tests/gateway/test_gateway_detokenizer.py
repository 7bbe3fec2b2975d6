from __future__ import annotations

import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from baton.gateway.detokenizer import ByteDetokenizer, WindowDetokenizer
from baton.gateway.text_model import TextModel
from baton.gateway.tokenizer import Tokenizer

CORPUS = ["the quick brown fox jumps over the lazy dog, naïve café 東京 привет " * 4]
# Text that spells a special token becomes that token, which is no text.
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60).filter(lambda text: "<|" not in text)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sentencepiece_like(strip: bool = True) -> tokenizers.Tokenizer:
    """As Llama 2's and Mistral's: spaces as U+2581, bytes for unknown characters, one leading space that is no text."""
    inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    last = [decoders.Strip(" ", 1, 0)] if strip else []
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    )
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False, max_token_length=8)
    inner.train_from_iterator(CORPUS, trainer)
    inner.add_tokens([f"<0x{byte:02X}>" for byte in range(256)])
    return inner


def word_piece() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece(cleanup=False)
    inner.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"]))
    return inner


def whole(tokenizer: Tokenizer, token_ids: list[int], context: list[int] | None = None) -> str:
    detokenizer = tokenizer.detokenizer(context or ())
    return "".join(map(detokenizer.push, token_ids)) + detokenizer.flush()


@pytest.fixture(scope="module")
def qwen2(conformance: Path) -> Tokenizer:
    folder = conformance / "tokenizers" / "hf-qwen2"
    if not folder.is_dir():
        pytest.skip("the conformance material has no Qwen2 tokenizer")
    return Tokenizer.load(folder)


@quick
@given(text=TEXT)
def test_byte_level_text(model: TextModel, text: str) -> None:
    ids = model.tokenizer.encode([text], add_special_tokens=False)[0]
    assert whole(model.tokenizer, ids) == text


@quick
@given(ids=st.lists(st.integers(0, 799), max_size=60))
def test_byte_level_any_tokens(model: TextModel, ids: list[int]) -> None:
    assert whole(model.tokenizer, ids) == model.tokenizer.decode(ids)


@quick
@given(text=TEXT)
def test_qwen2_text(qwen2: Tokenizer, text: str) -> None:
    ids = qwen2.encode([text], add_special_tokens=False)[0]
    assert whole(qwen2, ids) == qwen2.decode(ids)


@quick
@given(ids=st.lists(st.integers(0, 151_935), max_size=80))
def test_qwen2_any_tokens(qwen2: Tokenizer, ids: list[int]) -> None:
    assert whole(qwen2, ids) == qwen2.decode(ids)


SENTENCEPIECE = Tokenizer(sentencepiece_like())
GEMMA_LIKE = Tokenizer(sentencepiece_like(strip=False))
WORD_PIECE = Tokenizer(word_piece())


@quick
@given(text=TEXT)
def test_sentencepiece_text(text: str) -> None:
    for tokenizer in (SENTENCEPIECE, GEMMA_LIKE):
        assert isinstance(tokenizer.detokenizer(), ByteDetokenizer)
        ids = tokenizer.encode([text], add_special_tokens=False)[0]
        assert whole(tokenizer, ids) == tokenizer.decode(ids)


@quick
@given(ids=st.lists(st.integers(0, SENTENCEPIECE.size - 1), max_size=60))
def test_sentencepiece_any_tokens(ids: list[int]) -> None:
    """The library shows every byte of a run with a bad one as U+FFFD; here only the bad ones are."""
    expected = SENTENCEPIECE.decode(ids)
    if "\ufffd" not in expected:
        assert whole(SENTENCEPIECE, ids) == expected
    data = b"".join(map(SENTENCEPIECE.token_bytes, ids)).decode("utf-8", "replace")
    assert whole(SENTENCEPIECE, ids) == data.removeprefix(" ")


def test_a_continuation_keeps_its_first_space() -> None:
    prompt, more = (SENTENCEPIECE.encode([text], add_special_tokens=False)[0] for text in ("the lazy", "dog"))
    assert whole(SENTENCEPIECE, more) == "dog"
    assert whole(SENTENCEPIECE, more, context=prompt) == " dog"

    prompt, more = (WORD_PIECE.encode([text], add_special_tokens=False)[0] for text in ("the lazy", "dog"))
    assert whole(WORD_PIECE, more) == "dog"
    assert whole(WORD_PIECE, more, context=prompt) == " dog"


@quick
@given(ids=st.lists(st.integers(0, WORD_PIECE.size - 1), max_size=60))
def test_other_tokenizers_go_by_windows(ids: list[int]) -> None:
    assert isinstance(WORD_PIECE.detokenizer(), WindowDetokenizer)
    assert whole(WORD_PIECE, ids) == WORD_PIECE.decode(ids)


@quick
@given(text=TEXT)
def test_windows_keep_characters_whole(model: TextModel, text: str) -> None:
    ids = model.tokenizer.encode([text], add_special_tokens=False)[0]
    detokenizer = WindowDetokenizer(model.tokenizer.decode)
    assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == text


@pytest.mark.parametrize("character", ["é", "東", "👋"])
def test_no_piece_shows_half_a_character(model: TextModel, character: str) -> None:
    ids = [id for byte in character.encode() for id in _token_of_byte(model.tokenizer, byte)]
    detokenizer = model.tokenizer.detokenizer()
    pieces = [detokenizer.push(id) for id in ids]
    assert pieces == [""] * (len(ids) - 1) + [character]
    assert detokenizer.flush() == ""


def test_invalid_bytes_are_shown_at_once_and_half_characters_at_the_end(model: TextModel) -> None:
    tokenizer = model.tokenizer
    [invalid], [first] = _token_of_byte(tokenizer, 0xFF), _token_of_byte(tokenizer, 0xE6)
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.push(invalid) for _ in range(3)] == ["\ufffd"] * 3
    assert detokenizer.push(first) == ""
    assert detokenizer.flush() == "\ufffd"


def test_windows_flush_what_never_becomes_text() -> None:
    detokenizer = WindowDetokenizer(lambda ids: "\ufffd" * len(ids))
    pieces = [detokenizer.push(1) for _ in range(100)]
    assert "".join(pieces) + detokenizer.flush() == "\ufffd" * 100
    assert sum(map(bool, pieces)) >= 8


def test_special_tokens_are_not_shown(model: TextModel) -> None:
    ids = model.tokenizer.encode(["<|begin|>hello<|end|>"], add_special_tokens=False)[0]
    assert model.tokenizer.is_special(ids[0]) and model.tokenizer.is_special(ids[-1])
    assert whole(model.tokenizer, ids) == "hello"


def test_cost_per_token_does_not_grow(model: TextModel) -> None:
    """Two hundred thousand tokens in one sequence; a method that decodes from the start would need hours."""
    detokenizer = model.tokenizer.detokenizer()
    [token] = _token_of_byte(model.tokenizer, 0xFF)
    started = time.perf_counter()
    for _ in range(200_000):
        detokenizer.push(token)
    assert time.perf_counter() - started < 10


def _token_of_byte(tokenizer: Tokenizer, byte: int) -> list[int]:
    return [id for id in range(tokenizer.size) if tokenizer.token_bytes(id) == bytes([byte])][:1]


@pytest.mark.parametrize("decoder", [decoders.ByteLevel(), decoders.WordPiece()], ids=["bytes", "window"])
def test_special_tokens_are_shown_where_a_format_needs_them(decoder: decoders.Decoder) -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "[CALL]": 2, "[END]": 3}, unk_token="a"))
    inner.add_special_tokens(["[CALL]", "[END]"])
    inner.decoder = decoder
    tokenizer = Tokenizer(inner)
    tokens = [0, 2, 1, 3, 2]

    def text(shown: tuple[str, ...]) -> str:
        detokenizer = tokenizer.detokenizer(shown=shown)
        return "".join([detokenizer.push(token) for token in tokens] + [detokenizer.flush()]).replace(" ", "")

    assert text(()) == "ab"
    assert text(("[CALL]", "unknown")) == "a[CALL]b[CALL]"
