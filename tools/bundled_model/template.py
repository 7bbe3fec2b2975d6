"""The chat format, in Python: messages to pieces of text.

The same format as chat_template.jinja, which travels with the model; a test holds the two together. Python is needed
in training, where the loss counts only what an assistant says. Knows no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bundled_model.conversation import THINK, THINK_END, TOOL_CALL, TOOL_CALL_END, Message

TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")
END = "<|end|>"
PAD = "<|pad|>"
TOOLS, TOOLS_END = "<tools>", "</tools>"
ROLES = ("system", "user", "assistant", "tool")
ROLE_MARKERS = {role: f"<|{role}|>" for role in ROLES}
CONTROL_MARKERS = (PAD, END, *ROLE_MARKERS.values())  # never shown to users
TEXT_MARKERS = (THINK, THINK_END, TOOL_CALL, TOOL_CALL_END, TOOLS, TOOLS_END)  # stay in decoded text, for parsers


@dataclass(frozen=True, slots=True)
class Piece:
    """Text between two markers, or a marker itself."""

    text: str
    marker: bool = False


def pieces(message: Message, tools: tuple[Mapping[str, Any], ...] = ()) -> Iterator[Piece]:
    """One message; `tools` are those offered, for the first system message only."""
    yield Piece(ROLE_MARKERS[message.role], marker=True)
    if message.role == "assistant":
        yield from _said(message)
        return
    yield Piece(message.content.strip())
    if tools:
        yield Piece(TOOLS, marker=True)
        yield Piece("\n".join(_signature(tool["function"]) for tool in tools))
        yield Piece(TOOLS_END, marker=True)
    yield Piece(END, marker=True)


def _said(message: Message) -> Iterator[Piece]:
    if message.reasoning:
        yield Piece(THINK, marker=True)
        yield Piece(message.reasoning.strip())
        yield Piece(THINK_END, marker=True)
    yield Piece(message.content.strip())
    for call in message.tool_calls:
        yield Piece(TOOL_CALL, marker=True)
        yield Piece(json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False))
        yield Piece(TOOL_CALL_END, marker=True)
    yield Piece(END, marker=True)


def _signature(function: Mapping[str, Any]) -> str:
    properties = function["parameters"]["properties"]
    arguments = ", ".join(f"{name}: {schema['type']}" for name, schema in properties.items())
    return f"{function['name']}({arguments}) - {function['description'].strip()}"
