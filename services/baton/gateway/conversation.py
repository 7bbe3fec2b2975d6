"""What every chat API comes down to: messages and tools, their prompt, and the choices that answer it.

Between an API's own request and the generation. Knows no HTTP and no API's shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.core.errors import InvalidRequest
from baton.core.structure import Structure
from baton.gateway import metrics
from baton.gateway.demand import Demand
from baton.gateway.generation import Choice
from baton.gateway.parsers.formats import Tools, openai_id
from baton.gateway.parsers.output_parser import OutputParser
from baton.gateway.parsers.registry import NONE, Parsers
from baton.gateway.sampling import SamplingBuilder
from baton.gateway.service import Service

_OF_MESSAGES = ("response_format", "text.format")  # structures of what is said to the user, which calls are not


@dataclass(frozen=True, slots=True)
class Conversation:
    """One request for an assistant's message.

    `messages` and `tools` as `ChatTemplate.render` takes them; `variables`: further ones for the template.
    `parallel_calls`: the message may have several tool calls. `demand`: it must be such calls, and nothing else.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    parallel_calls: bool = True
    demand: Demand | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation as the model reads it. `text` is what the answer continues.

    `raw`: no conversation, but text that is to be continued; nothing is taken apart.
    """

    token_ids: list[int]
    text: str
    tools: Tools = field(default_factory=dict)
    parallel_calls: bool = True
    demand: Demand | None = None
    raw: bool = False

    def new_parser(self, parsers: Parsers) -> OutputParser | None:
        """The parser of one answer."""
        if self.raw:
            return None
        if self.demand is not None:
            return OutputParser(None, self.demand.format(), openai_id)
        return parsers.create(self.tools, self.text, single=not self.parallel_calls)

    def structure(self) -> Structure | None:
        """What the answer must look like. Raises InvalidRequest."""
        return None if self.demand is None else self.demand.structure(self.tools, parallel=self.parallel_calls)


def effort_variables(effort: str | None) -> dict[str, Any]:
    """A reasoning effort, as chat templates know it; `none` switches thinking off where they can."""
    if effort is None:
        return {}
    return {"enable_thinking": False, "thinking": False} if effort == "none" else {"reasoning_effort": effort}


def read_prompt(service: Service, conversation: Conversation) -> ChatPrompt:
    """Render and tokenize; may take long for long conversations. Raises InvalidRequest."""
    template = service.model.template
    if template is None:
        raise InvalidRequest(
            "This model has no chat template, so it takes no messages; use /v1/completions.", param="messages"
        )
    readable = conversation.demand is not None or service.parsers.tools != NONE
    if conversation.tools and not (readable and template.knows_tools):
        raise InvalidRequest(
            "This model calls no tools: its chat template has none, or none in a format that this server reads.",
            param="tools",
        )
    with metrics.tokenizing():
        text = template.render(conversation.messages, conversation.variables, conversation.tools)
        [token_ids] = service.model.tokenizer.encode([text], add_special_tokens=False)
    functions = [tool["function"] for tool in conversation.tools]
    schemas = {function["name"]: function.get("parameters") or {} for function in functions}
    return ChatPrompt(token_ids, text, schemas, conversation.parallel_calls, conversation.demand)


def raw_prompt(service: Service, text: str) -> ChatPrompt:
    """Text to be continued as it is; may take long for long ones."""
    with metrics.tokenizing():
        [token_ids] = service.model.tokenizer.encode([text], add_special_tokens=True)
    return ChatPrompt(token_ids, text, raw=True)


def answers_to(
    service: Service,
    prompt: ChatPrompt,
    sampling: SamplingBuilder,
    *,
    request_id: str,
    count: int = 1,
    max_tokens: int | None = None,
    stops: Sequence[str] = (),
) -> list[Choice]:
    """The choices that answer `prompt`. Without `max_tokens` they may fill the context. Raises BatonError."""
    structure = prompt.structure()
    if structure is not None and sampling.structured and sampling.structure_field not in _OF_MESSAGES:
        raise InvalidRequest("A tool call cannot be demanded of an answer with a structure.", param="tool_choice")
    room = service.room(prompt.token_ids, "messages")
    most = min(max_tokens or room, room)
    return [
        Choice(
            request_id=request_id if count == 1 else f"{request_id}-{index}",
            index=index,
            prompt=0,
            prompt_token_ids=prompt.token_ids,
            sampling=sampling.build(index, most, structure),
            structure_field=sampling.structure_field if structure is None else "tools",
            stops=stops,
            continues_text=prompt.raw,
            parser=None if sampling.structured and structure is None else prompt.new_parser(service.parsers),
        )
        for index in range(count)
    ]
