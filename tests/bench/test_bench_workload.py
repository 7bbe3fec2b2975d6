from __future__ import annotations

import json
from pathlib import Path

import pytest

from baton.cli.bench import trace, workload
from baton.cli.bench.workload import FIRST_TOKEN, Lengths, Writer
from baton.core.errors import ConfigError


def writer(seed: int = 0, *, text: bool = False) -> Writer:
    return Writer(seed, 512, text=text)


def test_equal_seeds_make_equal_prompts() -> None:
    lengths = Lengths(20, 5, spread=0.5)
    first = workload.random_prompts(10, lengths, writer(1))
    assert first == workload.random_prompts(10, lengths, writer(1))
    assert first != workload.random_prompts(10, lengths, writer(2))
    for conversation in first:
        (turn,) = conversation.turns
        assert 10 <= len(turn.content) <= 30 and 2 <= turn.output_tokens <= 8
        assert all(FIRST_TOKEN <= token < 512 for token in turn.content)


def test_shared_prefix_share_is_exact_and_spread_over_the_run() -> None:
    found = workload.shared_prefix(50, Lengths(8, 2), writer(), prefix_tokens=32, share=0.8)
    common = max((c.system for c in found), key=[c.system for c in found].count)
    shares = [c.system == common for c in found]
    assert sum(shares) == 40 and all(sum(shares[at : at + 10]) == 8 for at in range(0, 50, 10))
    others = [tuple(c.system) for c in found if c.system != common]
    assert len(set(others)) == 10 and all(len(other) == 32 for other in others)


def test_text_is_words() -> None:
    (conversation,) = workload.multi_turn(3, 3, Lengths(7, 2), writer(text=True), prefix_tokens=4)
    assert [len(turn.content.split()) for turn in conversation.turns] == [7, 7, 7]
    assert len(conversation.system.split()) == 4


@pytest.mark.parametrize("lengths", [Lengths(0, 1), Lengths(1, 0), Lengths(1, 1, 1.0)])
def test_impossible_lengths(lengths: Lengths) -> None:
    with pytest.raises(ConfigError, match="must be"):
        lengths.check()


LINES = [
    {"timestamp": 1000, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]},
    {"timestamp": 3000, "input_length": 1024, "output_length": 3, "hash_ids": [0, 1]},
]


def write(path: Path, lines: list[object]) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n\n")
    return path


def test_trace_becomes_prompts_with_equal_blocks(tmp_path: Path) -> None:
    lines = trace.read_trace(write(tmp_path / "t.jsonl", LINES))
    first, second = trace.conversations(lines, 7, 512, block_tokens=512, speed=2.0, text=False)
    long, short = first.turns[0].content, second.turns[0].content
    assert (len(long), len(short)) == (1100, 1024)
    assert long[:1024] == short and long[:512] != long[512:1024]
    assert (first.due_s, second.due_s) == (0.0, 1.0)
    assert first.turns[0].output_tokens == 50
    assert len(trace.read_trace(tmp_path / "t.jsonl", 1)) == 1


@pytest.mark.parametrize("text", [False, True])
def test_smaller_blocks_shrink_the_trace_alike(tmp_path: Path, text: bool) -> None:
    lines = trace.read_trace(write(tmp_path / "t.jsonl", LINES))
    first, second = trace.conversations(lines, 7, 512, block_tokens=16, speed=1.0, text=text)
    long, short = first.turns[0].content, second.turns[0].content
    if text:
        long, short = long.split(), short.split()
    assert (len(long), len(short), second.turns[0].output_tokens) == (34, 32, 1)
    assert long[:32] == short


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no request"),
        ({"timestamp": 1}, "line 2: no request.*input_length"),
        ({**LINES[1], "hash_ids": [1]}, "1024 input tokens are 2 blocks of 512, but there are 1 hash_ids"),
        ({**LINES[1], "output_length": 0}, "at least 1"),
        ({**LINES[1], "timestamp": 10}, "timestamp 10 is before"),
    ],
)
def test_bad_traces_name_the_line(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trace.read_trace(write(tmp_path / "t.jsonl", [LINES[0], line]))


def test_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        trace.read_trace(tmp_path / "absent")
    with pytest.raises(ConfigError, match="no requests"):
        trace.read_trace(write(tmp_path / "empty", []))
