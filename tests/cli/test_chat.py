"""`baton chat` against a small server that speaks the streamed chat API."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from baton.cli import chat, main
from baton.cli.chat import Answer, Conversation
from baton.cli.introduction import COMMANDS, EXAMPLES, introduction
from baton.cli.sse import ChatError, open_client, stream_chat
from tools.bundled_model import transcript


class Server(ThreadingHTTPServer):
    """Answers each message with its words, one per event; special messages fail in different ways."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._reply(200, {"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({**request, "authorization": self.headers.get("Authorization")})
        said = request["messages"][-1]["content"]
        if said == "refuse":
            self._reply(429, {"error": {"message": "too busy"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b": a comment\n\n")
        for word in said.split():
            if word == "break":
                return
            if word == "fail":
                self._event({"error": {"message": "worker lost"}})
                return
            kind = "reasoning_content" if word.startswith("hm") else "content"
            self._event({"choices": [{"delta": {kind: word + " "}}]})
        self._event({"choices": [{"delta": {}, "finish_reason": "length" if word == "etc" else "stop"}]})
        self._event({"choices": [], "usage": {"completion_tokens": 5}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_piped_lines_are_messages_of_one_conversation(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one two\n\nthree\n"))
    argv = ["chat", "--url", server.url, "--system", "be brief", "--temperature", "0", "--api-key", "k"]
    assert main.main(argv) == 0
    assert capsys.readouterr().out == "one two \nthree \n"
    first, second = server.requests
    assert first["model"] == "tiny" and first["stream"] is True and first["temperature"] == 0
    assert first["authorization"] == "Bearer k"
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "user"]
    assert second["messages"][2]["content"] == "one two "


def test_commands_and_figures_on_a_terminal(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["hello there", "/system be kind", "/reset", "/help", "again", "/quit", "never"])
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main.main(["chat", "--url", server.url, "--model", "named"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"named at {server.url}; /help lists")
    assert "hello there" in out and "first token" in out and "5 tokens" in out and "/reset  " in out
    assert len(server.requests) == 2
    assert [message["role"] for message in server.requests[1]["messages"]] == ["system", "user"]
    assert server.requests[1]["model"] == "named"


def test_a_backslash_continues_the_message(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["one\\", "two\\", "", "/quit"])
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main.main(["chat", "--url", server.url]) == 0
    assert [request["messages"][-1]["content"] for request in server.requests] == ["one\ntwo"]


def test_reasoning_is_shown_but_is_no_part_of_the_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["hm hmm so etc", "again", "/quit"])
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main.main(["chat", "--url", server.url]) == 0
    out = capsys.readouterr().out
    assert "hm hmm \nso etc \n" in out
    assert out.count("cut short by --max-tokens") == 1
    assert server.requests[1]["messages"][1] == {"role": "assistant", "content": "so etc "}
    monkeypatch.setattr("sys.stdin", io.StringIO("hm so\n"))
    assert main.main(["chat", "--url", server.url]) == 0
    assert capsys.readouterr().out == "so \n"


def test_only_the_bundled_model_is_introduced() -> None:
    assert introduction("other", "http://h") == "other at http://h; /help lists the commands."
    said = introduction("baton-tiny", "http://h")
    assert len(EXAMPLES) == 3 and all(f"\n  {example}" in said for example in EXAMPLES)
    assert max(map(len, said.splitlines())) <= 120


def test_on_a_real_terminal(server: Server) -> None:
    command = [sys.executable, "-m", "baton.cli.main", "chat", "--url", server.url]
    shown = transcript.converse(command, ["hello there", "/help", "bye"])
    figures = r"\(first token \d+ ms, 5 tokens(, [\d.]+ tok/s)?\)"
    expected = (
        rf"tiny at {server.url}; /help lists the commands\.\n> hello there\nhello there \n{figures}\n> /help\n"
        rf"{re.escape(COMMANDS)}\n> bye\nbye \n{figures}"
    )
    assert re.fullmatch(expected, shown), shown
    with pytest.raises(EOFError, match="quit"):
        transcript.converse(command, ["/quit", "never"])


def test_a_transcript_goes_between_the_marks() -> None:
    page = f"a\n{transcript.BEGIN}\nold\n{transcript.END}\nb\n"
    assert transcript.placed(page, "new") == f"a\n{transcript.BEGIN}\n```text\nnew\n```\n{transcript.END}\nb\n"
    with pytest.raises(ValueError, match="marks"):
        transcript.placed("a", "new")


def test_ctrl_c_stops_the_answer_and_keeps_what_came(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["a b c", "next"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    def interrupted(client: Any, conversation: Conversation, answer: Answer, interactive: bool) -> None:
        answer.text, answer.first_token_s = "a ", 0.01
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", typed)
    behaviours = iter([interrupted, chat._receive])
    monkeypatch.setattr(chat, "_receive", lambda *arguments: next(behaviours)(*arguments))
    assert main.main(["chat", "--url", server.url]) == 0
    assert "(stopped, first token 10 ms" in capsys.readouterr().out
    assert [message["content"] for message in server.requests[0]["messages"]] == ["a b c", "a ", "next"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("refuse", "too busy (HTTP 429)"),
        ("one fail", "worker lost"),
        ("one break", "the answer ended before its end mark"),
    ],
)
def test_failures_are_told_and_forgotten(
    said: str, message: str, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{said}\nfine\n"))
    assert main.main(["chat", "--url", server.url]) == 1
    captured = capsys.readouterr()
    assert f"error: {message}" in captured.err
    assert "fine" in captured.out
    assert len(server.requests[-1]["messages"]) == 1


def test_nobody_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main.main(["chat", "--url", "http://127.0.0.1:9"]) == 1
    assert "nobody answers at http://127.0.0.1:9" in capsys.readouterr().err
    with open_client("http://127.0.0.1:9") as client, pytest.raises(ChatError, match="broke"):
        list(stream_chat(client, {}))


def test_rate_counts_from_the_first_token() -> None:
    assert Answer(first_token_s=1.0, last_token_s=3.0, tokens=11).tokens_per_s == 5.0
    assert Answer(first_token_s=1.0, last_token_s=1.0, tokens=1).tokens_per_s == 0.0
    assert Answer(first_token_s=1.0, last_token_s=1.001, tokens=9).tokens_per_s == 0.0  # all in one piece
