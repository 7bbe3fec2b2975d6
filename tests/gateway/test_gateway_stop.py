from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from baton.gateway.stop import StopMatcher

ALPHABET = st.text(alphabet="abx", max_size=40)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=6), min_size=1, max_size=4)


def brute_force(text: str, stops: list[str]) -> tuple[str, str | None]:
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def run(text: str, stops: list[str], cuts: list[int]) -> tuple[str, str | None, list[str]]:
    matcher, shown = StopMatcher(stops), []
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(edges):
        matched = matcher.push(text[start:end])
        shown.append(matched.text)
        if matched.stop is not None:
            return "".join(shown), matched.stop, shown
    shown.append(matcher.flush())
    return "".join(shown), None, shown


@given(ALPHABET, STOPS, st.lists(st.integers(0, 1000), max_size=10))
def test_equals_brute_force_however_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    shown, stop, _ = run(text, stops, cuts)
    assert (shown, stop) == brute_force(text, stops)


@given(ALPHABET, STOPS)
def test_shows_all_that_cannot_become_a_stop_string(text: str, stops: list[str]) -> None:
    matcher, shown = StopMatcher(stops), ""
    for end, character in enumerate(text, 1):
        matched = matcher.push(character)
        if matched.stop is not None:
            return
        shown += matched.text
        held = text[len(shown) : end]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_false_start_is_shown_later() -> None:
    matcher = StopMatcher(["###"])
    assert matcher.push("one ##").text == "one "
    assert matcher.push("two #").text == "##two "
    assert matcher.flush() == "#"


def test_the_stop_string_may_begin_inside_a_piece_and_end_inside_another() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.push("fine.\n").text == "fine."
    matched = matcher.push("\nUser: and more")
    assert (matched.text, matched.stop) == ("", "\n\nUser:")


def test_long_stop_strings_cost_no_more() -> None:
    """A naive search compares the whole tail with every character: 2 * 10^9 steps here."""
    matcher = StopMatcher(["a" * 20_000 + "b"])
    assert sum(len(matcher.push("a" * 100).text) for _ in range(1000)) == 80_000
