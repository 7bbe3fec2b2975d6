from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from baton.client import TokenLogprobs
from baton.gateway.detokenizer import ByteDetokenizer
from baton.gateway.output import OutputText, Piece

# Token 0..99: the letters a, b, c ... ; 100: first byte of é, 101: its second; 102: not shown; 103: " end".
BYTES = {id: bytes([97 + id % 26]) for id in range(100)} | {100: b"\xc3", 101: b"\xa9", 102: b"", 103: b" end"}


def output(stops: Sequence[str] = (), **options: object) -> OutputText:
    return OutputText(ByteDetokenizer(BYTES.__getitem__), stops, **options)


def logprobs(ids: Sequence[int]) -> list[TokenLogprobs]:
    return [TokenLogprobs(id, -1.0) for id in ids]


def ids_of(piece: Piece) -> list[int]:
    return [token.logprobs.token_id for token in piece.tokens]


def test_tokens_come_with_the_text_that_they_begin() -> None:
    text = output(["abd"])
    first = text.push([0, 1], logprobs([0, 1]))
    assert (first.text, ids_of(first)) == ("", [])
    second = text.push([2], logprobs([2]))
    assert (second.text, ids_of(second)) == ("abc", [0, 1, 2])
    assert [token.offset for token in second.tokens] == [0, 1, 2]


def test_tokens_of_a_split_character_come_with_it() -> None:
    text = output()
    assert not text.push([100], logprobs([100]))
    piece = text.push([101], logprobs([101]))
    assert (piece.text, ids_of(piece)) == ("é", [100, 101])


def test_a_stop_string_takes_its_tokens_with_it() -> None:
    text = output(["c end"])
    assert text.push([0, 1], logprobs([0, 1])).text == "ab"
    piece = text.push([2, 103, 5], logprobs([2, 103, 5]))
    assert (piece.text, piece.finish, piece.stop, ids_of(piece)) == ("", "stop", "c end", [])
    assert text.completion_tokens == 4


def test_a_stop_string_inside_a_token_keeps_the_token_before_it() -> None:
    piece = output(["nd"]).push([0, 103], logprobs([0, 103]))
    assert (piece.text, ids_of(piece)) == ("a e", [0, 103])


def test_the_ending_token_is_counted_but_not_shown() -> None:
    text = output(stop_token_ids=frozenset([3]))
    piece = text.push([0, 3], logprobs([0, 3]))
    assert (piece.text, ids_of(piece), text.completion_tokens) == ("a", [0], 2)
    assert text.finish("stop").finish == "stop"


def test_what_was_held_back_comes_at_the_end() -> None:
    text = output(["abd"])
    assert not text.push([0, 1, 100], logprobs([0, 1, 100])).finish
    piece = text.finish("length")
    assert (piece.text, piece.finish, ids_of(piece)) == ("ab\ufffd", "length", [0, 1, 100])


def test_stop_strings_do_not_end_an_output_before_its_least_length() -> None:
    text = output(["a"], min_tokens=2)
    assert text.push([0, 0]).text == "aa"
    assert text.push([1]).text == "b"
    assert text.push([0]).stop == "a"


@given(
    st.lists(st.integers(0, 103), max_size=40),
    st.lists(st.text("abce ", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), max_size=40),
)
def test_batches_of_tokens_do_not_matter(ids: list[int], stops: list[str], sizes: list[int]) -> None:
    def run(sizes: list[int]) -> tuple[str, list[int], str | None]:
        text, rest, shown, tokens = output(stops), list(ids), "", []
        sizes = sizes + [1] * len(ids)
        while rest:
            part, rest = rest[: sizes[0]], rest[sizes.pop(0) :]
            piece = text.push(part, logprobs(part))
            shown, tokens = shown + piece.text, tokens + ids_of(piece)
            if piece.finish:
                return shown, tokens, piece.stop
        piece = text.finish("length")
        return shown + piece.text, tokens + ids_of(piece), piece.stop

    shown, tokens, stop = run([len(ids) or 1])
    assert (shown, tokens, stop) == run(sizes)
    if stop is None:
        assert tokens == ids
        assert shown == b"".join(map(BYTES.__getitem__, ids)).decode("utf-8", "replace")
