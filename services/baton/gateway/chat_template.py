"""A checkpoint's chat template: messages to the text of a prompt, as `transformers` renders it.

The template is Jinja, run in a sandbox. Rendering is pure; nothing here knows tokens or requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from baton.core.errors import CheckpointError, InvalidRequest
from baton.gateway.checkpoint_json import read_json

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_PROBE = "probe-text"
_CALL_PROBE = {"name": _PROBE, "arguments": {"probe-key": _PROBE}}


class ChatTemplate:
    """One compiled template and the special tokens that it may name. Rendering may happen on any thread.

    `tool_source`: another template, for requests with tools. `wants_parts`: the template shows a message's text only
    when its content is a list of typed parts. `wants_json`: it takes a call's arguments as JSON text, not as an object.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], tool_source: str | None = None) -> None:
        self.source = source if tool_source is None else source + tool_source
        self._template = _compiled(source)
        self._tool_template = self._template if tool_source is None else _compiled(tool_source)
        self._special_tokens = dict(special_tokens)
        self.knows_developer = "developer" in self.source
        self.knows_tools = "tools" in self.source
        self.wants_parts = not self._shows(_PROBE) and self._shows([{"type": "text", "text": _PROBE}])
        self.wants_json = not self._shows_call(_CALL_PROBE) and self._shows_call(_with_json_arguments(_CALL_PROBE))

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """The template of a checkpoint, None when it has none. Raises CheckpointError when it cannot work."""
        config = read_json(folder / "tokenizer_config.json")
        sources = _sources(folder, config)
        if "default" not in sources:
            return None
        special_tokens = _special_tokens(config) or _special_tokens(read_json(folder / "special_tokens_map.json"))
        try:
            return cls(sources["default"], special_tokens, sources.get("tool_use"))
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error.message}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The prompt's text, up to where the assistant's answer begins (unless `variables` say otherwise).

        `messages` have `role` and `content` (str, or None where only tool calls are said), and may have `tool_calls`
        with arguments as objects; `tools` are as in OpenAI's API; `variables` are further ones for the template. Raises
        InvalidRequest when the template refuses the messages.
        """
        names = {**(variables or {}), "tools": list(tools)} if tools else variables or {}
        try:
            return self._render([self._prepare(message) for message in _with_tool_names(messages)], names)
        except jinja2.TemplateError as error:
            message = f"The model's chat template refuses the messages: {error}"
            raise InvalidRequest(message, param="messages") from error
        except Exception as error:  # templates compute with what they are given: a failure means it does not fit
            message = f"The messages do not fit the model's chat template: {type(error).__name__}: {error}"
            raise InvalidRequest(message, param="messages") from error

    def _render(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        names = {"tools": None, "documents": None, "add_generation_prompt": True, **self._special_tokens, **variables}
        template = self._tool_template if names["tools"] else self._template
        return template.render(messages=messages, **names)

    def _prepare(self, message: Mapping[str, Any]) -> dict[str, Any]:
        prepared = dict(message)
        if prepared["role"] == "developer" and not self.knows_developer:
            prepared["role"] = "system"
        if self.wants_parts and isinstance(prepared.get("content"), str):
            prepared["content"] = [{"type": "text", "text": prepared["content"]}]
        if prepared.get("tool_calls") and self.wants_json:
            prepared["tool_calls"] = [
                {**call, "function": _with_json_arguments(call["function"])} for call in prepared["tool_calls"]
            ]
        reasoning = next((prepared[name] for name in _REASONING_FIELDS if prepared.get(name) is not None), None)
        if reasoning is not None:
            prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
        return prepared

    def _shows(self, content: object) -> bool:
        try:
            return _PROBE in self._render([{"role": "user", "content": content}], {})
        except Exception:  # a template that refuses the probe does not show it
            return False

    def _shows_call(self, function: Mapping[str, Any]) -> bool:
        """Whether a call's arguments come out as something other than Python's way to write a dict."""
        call = {"type": "function", "id": "123456789", "function": function}
        messages: list[dict[str, Any]] = [{"role": "user", "content": _PROBE}]
        messages += [{"role": "assistant", "content": "", "tool_calls": [call]},
                     {"role": "tool", "content": "", "tool_call_id": "123456789"}]  # fmt: skip
        try:
            text = self._render(messages, {})
        except Exception:
            return False
        return "probe-key" in text and "{'probe-key'" not in text


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - declared so by the base class

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compiled(source: str) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"the chat template is not valid Jinja (line {error.lineno}): {error}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _with_json_arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    return {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}


def _with_tool_names(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages; results of tools get the tool's `name`: some templates want it, OpenAI's API does not have it."""
    names: dict[str, str] = {}
    named: list[Mapping[str, Any]] = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            if call.get("id"):
                names[call["id"]] = call["function"]["name"]
        name = names.get(message.get("tool_call_id", "")) if message["role"] == "tool" else None
        named.append(message if name is None or "name" in message else {**message, "name": name})
    return named


def _sources(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name: `chat_template.jinja`, else what tokenizer_config.json or chat_template.json hold."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return {"default": path.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    found = config.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    entries = found if isinstance(found, list) else [{"name": "default", "template": found}]
    named = {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)}
    return {name: source for name, source in named.items() if isinstance(name, str) and isinstance(source, str)}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    extra = config.get("extra_special_tokens")
    named = {name: config.get(name) for name in _SPECIAL_TOKENS} | (extra if isinstance(extra, dict) else {})
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
