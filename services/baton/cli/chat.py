"""`baton chat`: a conversation in the terminal, streamed from a gateway.

On a terminal it asks for lines and understands /commands; when stdin is not a terminal, each line is one message and
only the answers go to stdout.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import httpx

from baton.cli.flags import Parser
from baton.cli.introduction import COMMANDS, introduction
from baton.cli.sse import ChatError, first_model, open_client, stream_chat
from baton.runtime import environ

DEFAULT_URL = "http://127.0.0.1:8000"
_LEAST_SPAN_S = 0.005


@dataclass(slots=True)
class Conversation:
    """What was said so far. `system` comes first in every request when set."""

    model: str
    options: dict[str, Any]
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)

    def request(self) -> dict[str, Any]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"model": self.model, "messages": [*system, *self.turns], **self.options}


@dataclass(slots=True)
class Answer:
    """One answer while it arrives. Times are in seconds, from the request on. `cut`: the token limit ended it."""

    text: str = ""
    cut: bool = False
    first_token_s: float | None = None
    last_token_s: float = 0.0
    tokens: int = 0

    def count(self, now_s: float) -> None:
        """A piece came. Pieces count as tokens until the server's own count comes last."""
        self.first_token_s = now_s if self.first_token_s is None else self.first_token_s
        self.last_token_s = now_s
        self.tokens += 1

    @property
    def tokens_per_s(self) -> float:
        """Rate after the first token; 0 for answers of one token, and for those that came too fast to be timed."""
        span = self.last_token_s - (self.first_token_s or 0.0)
        return (self.tokens - 1) / span if self.tokens > 1 and span >= _LEAST_SPAN_S else 0.0


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="baton chat",
        description="Talk to a running system in the terminal. Lines of a pipe are messages of one conversation.",
        epilog=f"commands on a terminal:\n{COMMANDS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default=DEFAULT_URL, help="gateway (%(default)s)")
    parser.add_argument("--model", default="", help="model name (the first that the gateway serves)")
    parser.add_argument("--system", default="", help="system prompt")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="TOKENS", help="longest answer (%(default)s)")
    parser.add_argument(
        "--temperature", type=float, metavar="X", help="0 = the likeliest token always (server's default)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="same seed, same answers (random)")
    parser.add_argument("--api-key", default="", help="sent as bearer token")
    given = parser.parse_args(argv)
    options = {"max_tokens": given.max_tokens, "temperature": given.temperature, "seed": given.seed}
    conversation = Conversation(given.model, {k: v for k, v in options.items() if v is not None}, given.system)
    return _chat(given.url, given.api_key, conversation)


def _chat(url: str, api_key: str, conversation: Conversation) -> int:
    interactive = sys.stdin.isatty()
    with open_client(url, api_key) as client:
        conversation.model = conversation.model or first_model(client)
        if interactive:
            print(introduction(conversation.model, url))
        failed = False
        for line in _typed_lines() if interactive else _piped_lines():
            if interactive and line.startswith("/"):
                if not _command(line, conversation):
                    break
            elif not _take_turn(client, conversation, line, interactive):
                failed = True
    return 1 if failed else 0


def _typed_lines() -> Iterator[str]:
    """Non-empty messages typed at a prompt, until Ctrl-D, or Ctrl-C at the prompt. A final backslash continues."""
    import readline  # noqa: F401 - gives input() editing and history

    prompt, continued = _prompt("> "), _prompt("  ")
    while True:
        try:
            message = input(prompt)
            while message.endswith("\\"):
                message = f"{message[:-1]}\n{input(continued)}"
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if message.strip():
            yield message.strip()


def _prompt(text: str) -> str:
    """`text` in colour, with marks that tell readline which characters take no room on the screen."""
    return f"\x01\x1b[1;36m\x02{text}\x01\x1b[0m\x02" if environ.use_colour(sys.stdout) else text


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def _command(line: str, conversation: Conversation) -> bool:
    """Obey a /command; False ends the conversation."""
    name, _, rest = line.partition(" ")
    if name in ("/quit", "/exit"):
        return False
    if name == "/reset":
        conversation.turns.clear()
        print("(forgotten)")
    elif name == "/system":
        conversation.system = rest.strip()
        print("(system prompt set)" if conversation.system else "(no system prompt)")
    else:
        print(COMMANDS)
    return True


def _take_turn(client: httpx.Client, conversation: Conversation, line: str, interactive: bool) -> bool:
    """Send one message and print the answer; False when it failed, and then the message is forgotten.

    On a terminal Ctrl-C stops the answer; what came of it stays in the conversation.
    """
    conversation.turns.append({"role": "user", "content": line})
    answer, stopped = Answer(), False
    try:
        _receive(client, conversation, answer, interactive)
    except KeyboardInterrupt:
        if not interactive:
            raise
        stopped = True
    except ChatError as error:
        print(_paint(f"\nerror: {error.message}", "31", sys.stderr), file=sys.stderr)
        conversation.turns.pop()
        return False
    print()
    if interactive and answer.first_token_s is not None:
        print(_paint(_figures(answer, stopped), "2", sys.stdout))
    conversation.turns.append({"role": "assistant", "content": answer.text})
    return True


def _figures(answer: Answer, stopped: bool) -> str:
    first = f"first token {(answer.first_token_s or 0.0) * 1000:.0f} ms"
    rate = f", {answer.tokens_per_s:.1f} tok/s" if answer.tokens_per_s else ""
    cut = "; cut short by --max-tokens" if answer.cut else ""
    return f"({'stopped, ' if stopped else ''}{first}, {answer.tokens} tokens{rate}{cut})"


def _receive(client: httpx.Client, conversation: Conversation, answer: Answer, interactive: bool) -> None:
    """Print and collect one answer. Reasoning is shown on a terminal only, dimmed, and is no part of the answer."""
    started = time.monotonic()
    reasoning = False
    for chunk in stream_chat(client, conversation.request()):
        for choice in chunk.get("choices", []):
            delta = choice.get("delta", {})
            thought, text = delta.get("reasoning_content") or "", delta.get("content") or ""
            if thought or text:
                answer.count(time.monotonic() - started)
            if thought and interactive:
                reasoning = True
                print(_paint(thought, "2", sys.stdout), end="", flush=True)
            if text:
                answer.text += text
                print(f"\n{text}" if reasoning else text, end="", flush=True)
                reasoning = False
            answer.cut |= choice.get("finish_reason") == "length"
        if usage := chunk.get("usage"):
            answer.tokens = usage["completion_tokens"]


def _paint(text: str, code: str, stream: IO[str]) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if environ.use_colour(stream) else text
