"""`baton trace-handoff`: two agents' stories become one time axis, figures and pictures."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from baton.cli import main as cli
from baton.cli.trace_handoff import collect, page, picture, report
from baton.cli.trace_handoff.drawing import panels
from baton.cli.trace_handoff.timeline import Trace, build, length, union
from baton.core.errors import ConfigError, HandoffFailed
from baton.rpc.v1 import common_pb2
from baton.rpc.v1 import kv_pb2 as pb

LAYERS, BYTES = 4, 1_000_000
SOURCE_AHEAD_S, READER_AHEAD_S, START = 100.0, -7.0, 5000.0  # of the client's clock
FACTS = {"model": "m", "tokens": 64, "prefill_worker": "p", "decode_worker": "d", "transport": "tcp"}


def both_sides() -> tuple[pb.HandoffTimeline, pb.HandoffTimeline]:
    """Layers take 10 ms each; each is announced at once, heard 1 ms later, read for 4 ms, checked for 1 ms more."""
    attempt = common_pb2.Attempt(request_id="r", n=0)
    source = pb.HandoffTimeline(attempt=attempt, side="source", layers=LAYERS, outcome="released")
    reader = pb.HandoffTimeline(attempt=attempt, side="reader", layers=LAYERS, outcome="fetched")
    at_source, at_reader = START + SOURCE_AHEAD_S, START + READER_AHEAD_S
    source.began_at, source.opened_at, source.committed_at = at_source, at_source + 0.001, at_source + 0.041
    source.recorded_at = at_source + 0.041
    source.questioned_at, source.ended_at = at_source + 0.048, at_source + 0.050
    reader.recorded_at, reader.questioned_at, reader.ended_at = (at_reader + at for at in (0.042, 0.047, 0.049))
    for layer in range(LAYERS):
        done, place = 0.010 * (layer + 1), {"layer_start": layer, "layer_end": layer + 1, "page_start": 0, "pages": 4}
        source.computed.add(**place, computed_at=at_source + done)
        source.reads.add(
            seq=layer, **place, bytes=BYTES, announced_at=at_source + done, done_at=at_source + done + 0.007
        )
        reader.reads.add(
            seq=layer, **place, bytes=BYTES, announced_at=at_reader + done + 0.001,
            started_at=at_reader + done + 0.001, arrived_at=at_reader + done + 0.005, done_at=at_reader + done + 0.006,
        )  # fmt: skip
    return source, reader


def traced(**changes: float) -> Trace:
    source, reader = both_sides()
    client_at = {"request sent": START - 0.002, "first token": START + 0.043, "first decoded token": START + 0.060}
    ahead = {"source_ahead_s": SOURCE_AHEAD_S, "reader_ahead_s": READER_AHEAD_S, **changes}
    return build(source, reader, client_at, **ahead, **FACTS)


def test_figures_of_a_known_handoff_between_clocks_that_differ():
    trace = traced(clock_error_s=0.0004)
    assert [bar.start_s for bar in trace.computed] == pytest.approx([0, 0.01, 0.02, 0.03], abs=1e-6)
    assert trace.computed_s == pytest.approx(0.040, abs=1e-6)
    assert trace.bytes == 4 * BYTES and trace.reading_s == pytest.approx(0.016, abs=1e-6)
    assert trace.bytes_per_s == pytest.approx(250e6, rel=1e-3)
    assert trace.tail_s == pytest.approx(0.008, abs=1e-6)
    assert trace.hidden_s == pytest.approx(0.019, abs=1e-6)  # three layers of 6 ms each, and 1 ms of the last
    assert trace.hidden_share == pytest.approx(19 / 27, abs=1e-4)
    steps = {name: round(after * 1e3, 2) for name, after in trace.last_steps()}
    assert steps == {
        "last announcement sent": 0.0, "heard": 1.0, "read begun": 1.0, "committed": 1.0, "record sent": 1.0,
        "record there": 2.0, "first token": 3.0, "bytes there": 5.0, "checksums right": 6.0, "lease questioned": 7.0,
        "verified": 9.0, "released": 10.0, "first decoded token": 20.0,
    }  # fmt: skip
    assert sorted(steps.values()) == list(steps.values())
    assert next(iter(trace.marks.items())) == ("request sent", pytest.approx(-0.002, abs=1e-6))
    text = report.text(trace)
    for expected in ("4.0 MB in 4 reads of 4.00 ms, 250 MB/s", "hidden     70.4%", "tail       8.00 ms", "+-0.40 ms"):
        assert expected in text, text
    assert "one clock" in report.text(traced())


def test_cached_pages_take_no_computing():
    source, reader = both_sides()
    source.computed.insert(
        0, pb.ComputedRange(layer_end=LAYERS, page_start=0, pages=2, computed_at=source.began_at + 0.001)
    )
    trace = build(source, reader, {}, source_ahead_s=SOURCE_AHEAD_S, reader_ahead_s=READER_AHEAD_S, **FACTS)
    first, second = trace.computed[:2]
    assert first.cached and first.start_s == first.end_s == pytest.approx(0.001, abs=1e-6)
    assert not second.cached and second.start_s == first.end_s
    assert "2 pages were cached" in report.text(trace)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"outcome": "aborted"}, "at its source aborted"),
        ({"left_out": 3}, "do not remember all"),
        ({"reads": []}, "do not remember all"),
    ],
)
def test_half_a_story_is_no_trace(change, complaint):
    source, reader = both_sides()
    for name, value in change.items():
        if name == "reads":
            source.ClearField("reads")
        else:
            setattr(source, name, value)
    with pytest.raises(HandoffFailed, match=complaint):
        build(source, reader, {}, **FACTS)


def test_intervals():
    assert union([(3, 4), (0, 1), (1, 2), (3.5, 3.6)]) == [(0, 2), (3, 4)]
    assert length([(0, 2), (3, 4)]) == 3


def test_the_page_stands_alone_and_shows_every_layer():
    trace = traced()
    html = page.html(trace)
    assert "prefers-color-scheme: dark" in html and "<script" not in html
    assert not re.search(r"(src|href)=|https?:|@import|url\(", html)
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 2
    whole, end = (ElementTree.fromstring(drawing) for drawing in drawings)
    kinds = [rect.get("class") for rect in whole.iter("rect")]
    assert [kinds.count(kind) for kind in ("computed", "waiting", "read", "checked")] == [LAYERS] * 4
    width = float(whole.get("viewBox").split()[2])
    for rect in [*whole.iter("rect"), *end.iter("rect")]:
        assert 0 <= float(rect.get("x")) <= float(rect.get("x")) + float(rect.get("width")) <= width
    reads = [rect for rect in whole.iter("rect") if rect.get("class") == "read"]
    assert [float(rect.get("x")) for rect in reads] == sorted(float(rect.get("x")) for rect in reads)
    labels = " ".join(text.text or "" for text in whole.iter("text"))
    for name in (
        "last layer 40.0 ms",
        "committed 41.0 ms",
        "first token 43.0 ms",
        "verified 49.0 ms",
        "first decoded token 60.0 ms",
    ):
        assert name in labels
    overview, enlarged = panels(trace)
    assert enlarged.start_s > overview.start_s and enlarged.end_s < overview.end_s
    assert trace.computed_s - enlarged.start_s > 2 * trace.tail_s


def test_names_cannot_break_the_page():
    source, reader = both_sides()
    html = page.html(build(source, reader, {}, **{**FACTS, "model": "<b>&", "prefill_worker": "</title>"}))
    assert "<b>" not in html and html.count("</title>") == 1 + html.count("</title></rect>")


@pytest.mark.parametrize(
    ("span", "expected"),
    [((0.0, 0.04), [0.0, 0.005, 0.01]), ((0.0131, 0.0149), [0.0135, 0.014, 0.0145]), ((-0.001, 0.3), [0.0, 0.05, 0.1])],
)
def test_ticks_are_round_and_few(span, expected):
    found = page.ticks(*span)
    assert found[: len(expected)] == pytest.approx(expected) and len(found) <= 9
    assert all(span[0] <= at <= span[1] for at in found)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_written(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"handoff.{suffix}"
    picture.write(path, traced())
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    with pytest.raises(ConfigError, match="cannot be written"):
        picture.write(tmp_path / "handoff.nothing", traced())


def test_the_command_writes_what_it_was_asked_for(tmp_path, monkeypatch, capsys):
    asked = {}

    async def trace(router: str, **wanted: object) -> Trace:
        asked.update(wanted, router=router)
        return traced()

    monkeypatch.setattr(collect, "trace", trace)
    flags = ["--router=host:1", "--tokens=300", f"--html={tmp_path / 'a.html'}", f"--json={tmp_path / 'a.json'}"]
    assert cli.main(["trace-handoff", *flags]) == 0
    assert asked == {"router": "host:1", "model": "", "tokens": 300, "vocabulary": 2048, "seed": 0, "warmup": 2}
    assert "hidden     70.4%" in capsys.readouterr().out
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["figures"]["bytes"] == 4 * BYTES and len(content["reads"]) == LAYERS


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--tokens=0"], "--tokens is 0"),
        (["--vocab=100"], "--vocab is 100"),
        (["--model=m"], "--checkpoint PATH"),
        (["--router=h:1", "--transport=tcp"], "own system"),
        (["--transport=pigeon"], "pigeon"),
        (["--router=127.0.0.1:9", "--html=/nowhere/a.html", "--warmup=-1"], "--warmup -1"),
    ],
)
def test_impossible_wishes_are_refused(flags, complaint, capsys):
    assert cli.main(["trace-handoff", *flags]) == 2
    assert complaint in capsys.readouterr().err
