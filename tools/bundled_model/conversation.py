"""Messages of a conversation, and checks that say whether a reply is right.

Skills build messages out of these; the template turns them into text; evaluation parses generated text back into a
reply and asks the message's check. Knows no tokens and no skill.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

THINK, THINK_END = "<think>", "</think>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What an assistant message says, once its reasoning and tool calls are taken out of the text.

    `malformed` is True when a marker was not closed or a tool call was not JSON.
    """

    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    malformed: bool = False


class Check(Protocol):
    def accepts(self, reply: Reply) -> bool:
        """True when `reply` is a right answer."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message. Assistant messages name the skill they show, and carry the check for any other answer."""

    role: str
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    skill: str = ""
    check: Check | None = None

    def as_chat(self) -> dict[str, Any]:
        """The message as the OpenAI API writes it, for chat templates and clients."""
        chat: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            chat["reasoning_content"] = self.reasoning
        if self.tool_calls:
            chat["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in self.tool_calls
            ]
        return chat


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order and the tools offered, each `{"type": "function", "function": {...}}`."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


def parse_reply(text: str) -> Reply:
    """Take apart generated text: `<think>..</think>` first, `<tool_call>{..}</tool_call>` anywhere after it."""
    reasoning, malformed = "", False
    if text.startswith(THINK):
        reasoning, end, text = text[len(THINK) :].partition(THINK_END)
        malformed = not end
    calls = []
    pattern = re.escape(TOOL_CALL) + r"(.*?)" + re.escape(TOOL_CALL_END)
    for body in re.findall(pattern, text, flags=re.DOTALL):
        call = _parse_call(body)
        malformed |= call is None
        if call:
            calls.append(call)
    content = re.sub(pattern, "", text, flags=re.DOTALL)
    malformed |= any(marker in content for marker in (THINK, THINK_END, TOOL_CALL, TOOL_CALL_END))
    return Reply(content.strip(), reasoning.strip(), tuple(calls), malformed)


def _parse_call(body: str) -> ToolCall | None:
    try:
        raw = json.loads(body)
        return ToolCall(raw["name"], raw["arguments"])
    except (ValueError, KeyError, TypeError):
        return None


def _plain(reply: Reply) -> bool:
    return not reply.malformed and not reply.tool_calls


@dataclass(frozen=True, slots=True)
class Says:
    """The text is one of `texts`, white space and letter case aside."""

    texts: Sequence[str]

    def accepts(self, reply: Reply) -> bool:
        said = reply.content.lower().split()
        return _plain(reply) and any(said == text.lower().split() for text in self.texts)


@dataclass(frozen=True, slots=True)
class Mentions:
    """The text contains `value` as a whole word or number, and none of `wrong`."""

    value: str
    wrong: Sequence[str] = ()

    def accepts(self, reply: Reply) -> bool:
        return (
            _plain(reply)
            and _contains(reply.content, self.value)
            and not any(_contains(reply.content, wrong) for wrong in self.wrong)
        )


def _contains(text: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, flags=re.IGNORECASE) is not None


@dataclass(frozen=True, slots=True)
class Numbers:
    """The integers in the text are exactly `expected`, in order."""

    expected: Sequence[int]

    def accepts(self, reply: Reply) -> bool:
        return _plain(reply) and [int(n) for n in re.findall(r"-?\d+", reply.content)] == list(self.expected)


@dataclass(frozen=True, slots=True)
class EndsWithNumber:
    """The last integer in the text is `expected`."""

    expected: int

    def accepts(self, reply: Reply) -> bool:
        numbers = re.findall(r"-?\d+", reply.content)
        return _plain(reply) and bool(numbers) and int(numbers[-1]) == self.expected


@dataclass(frozen=True, slots=True)
class Letters:
    """The text, or what follows its last colon, is `word` letter by letter with anything but letters between."""

    word: str

    def accepts(self, reply: Reply) -> bool:
        last = reply.content.rpartition(":")[2]
        return _plain(reply) and re.sub(r"[^a-z]", "", last.lower()) == self.word


@dataclass(frozen=True, slots=True)
class Json:
    """The whole text is JSON equal to `expected`, types included."""

    expected: Mapping[str, Any]

    def accepts(self, reply: Reply) -> bool:
        try:
            found = json.loads(reply.content)
        except ValueError:
            return False
        return _plain(reply) and json.dumps(found, sort_keys=True) == json.dumps(self.expected, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Calls:
    """Exactly one tool call, with this name and these arguments."""

    call: ToolCall

    def accepts(self, reply: Reply) -> bool:
        wanted = json.dumps([self.call.name, dict(self.call.arguments)], sort_keys=True)
        made = [json.dumps([call.name, call.arguments], sort_keys=True) for call in reply.tool_calls]
        return not reply.malformed and made == [wanted]


@dataclass(frozen=True, slots=True)
class Thinks:
    """There is reasoning, and `answer` accepts what follows it."""

    answer: Check

    def accepts(self, reply: Reply) -> bool:
        return bool(reply.reasoning) and self.answer.accepts(reply)
