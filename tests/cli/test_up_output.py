from __future__ import annotations

import io
import json

import pytest

from baton.cli.up.child import ChildSpec
from baton.cli.up.lines import parse_line
from baton.cli.up.output import Output
from baton.cli.up.region import LiveRegion
from baton.cli.up.supervisor import ChildState


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "24")


def child(name: str, *, quiet: bool = False) -> ChildState:
    return ChildState(ChildSpec(name, name.split("-")[0], (), quiet=quiet))


def test_region_is_redrawn_in_place_below_the_log() -> None:
    stream = io.StringIO()
    region = LiveRegion(stream)
    region.draw(["one", "two"])
    region.draw(["one", "two"])  # nothing changed: nothing is written
    region.print_above("log")
    region.draw(["x" * 60])
    region.draw([])
    assert stream.getvalue().split("\r\x1b[J") == [
        "", "one\ntwo\n\x1b[2A", "log\none\ntwo\n\x1b[2A", "x" * 39 + "\n\x1b[1A", "",
    ]  # fmt: skip


def test_region_never_exceeds_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "4")
    stream = io.StringIO()
    LiveRegion(stream).draw(list("abcdef"))
    assert stream.getvalue() == "\r\x1b[Ja\nb\nc\n"


def test_progress_on_a_terminal() -> None:
    stream = Terminal()
    output = Output(stream=stream, width=9)
    states = [child("redis", quiet=True), child("prefill-0")]
    states[0].phase, states[1].note = "ready", "loading weights percent=50"
    output.start_progress(states)
    shown = stream.getvalue()
    assert "1 of 2 ready" in shown
    assert "    redis     ready\n" in shown and "    prefill-0 starting   loading weigh" in shown
    output.stop_progress()
    output.refresh()
    assert stream.getvalue().endswith("\x1b[J")


def test_lines_are_prefixed_and_coloured_on_a_terminal_only() -> None:
    line = parse_line(
        '{"event": "lost", "level": "warning", "timestamp": "2026-01-02T03:04:05Z", "exception": "a\\nb"}'
    )
    plain, coloured = io.StringIO(), Terminal()
    for stream in (plain, coloured):
        Output(stream=stream, width=9).line(child("router"), line)
    rows = plain.getvalue().splitlines()
    assert [row[8:] for row in rows] == [" router    | warning: lost", " router    |   a", " router    |   b"]
    assert "\x1b[33m" in coloured.getvalue()


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    Output(stream=stream).say("hello", "warning")
    assert "\x1b[" not in stream.getvalue()


def test_levels_and_quiet_children() -> None:
    stream = io.StringIO()
    output = Output(stream=stream, level="info")
    output.line(child("router"), parse_line('{"event": "detail", "level": "debug"}'))
    redis = child("redis", quiet=True)
    redis.tail.append("# Out of memory")
    output.line(redis, parse_line("some line of Redis"))
    assert stream.getvalue() == ""
    output.ended(redis, "ended with exit code 1", 0.2)
    assert "# Out of memory" in stream.getvalue()
    assert "warning: redis ended with exit code 1; starting it again in 0.2 s" in stream.getvalue()


def test_json_output_has_one_record_per_line() -> None:
    stream = Terminal()
    output = Output(format="json", level="info", stream=stream)
    output.start_progress([child("router")])
    output.say("careful", "warning", port=1)
    output.line(child("router"), parse_line('{"event": "placed", "level": "info", "request_id": "r"}'))
    output.line(child("router"), parse_line("plain text"))
    output.banner("for people")
    records = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert [(record["child"], record["event"]) for record in records] == [
        ("baton", "careful"), ("router", "placed"), ("router", "plain text"),
    ]  # fmt: skip
    assert records[0]["port"] == 1 and records[1]["request_id"] == "r"


def test_a_reader_who_leaves_does_not_disturb() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    output = Output(stream=Closed())
    output.say("nobody hears this")
    output.say("nor this")
