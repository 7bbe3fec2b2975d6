"""Tools of a chat: validation, and whether the model may call them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from baton.core.errors import InvalidRequest
from baton.gateway.http.fields import Body

MAX_TOOLS = 128
NAME = r"^[a-zA-Z0-9_.-]{1,128}$"


class Function(Body):
    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("strict")
    @classmethod
    def _not_strict(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("arguments are not enforced by the schema yet; leave 'strict' out")
        return value


class FunctionTool(Body):
    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates expect it: with parameters, even where it has none."""
        function = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": "function", "function": {"parameters": {"type": "object", "properties": {}}, **function}}


class NamedFunction(Body):
    name: str


class NamedChoice(Body):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedChoice


def offered(tools: Sequence[FunctionTool], choice: ToolChoice | None) -> list[dict[str, Any]]:
    """The tools that the model is told of, as templates take them; none where it may call none.

    Raises InvalidRequest: two tools have one name, the choice names another tool or demands a call.
    """
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequest(f"Two tools have the name '{name}'.", param=f"tools[{index}].function.name")
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise InvalidRequest(f"'tool_choice' names '{choice.function.name[:200]}', which is none of the tools.",
                             param="tool_choice")  # fmt: skip
    if choice == "required" and not tools:
        raise InvalidRequest("'tool_choice' is 'required', but there are no tools.", param="tool_choice")
    if choice is not None and choice not in ("none", "auto"):
        raise refused_call()
    return [] if choice == "none" else [tool.for_template() for tool in tools]


def refused_call() -> InvalidRequest:
    """The answer to a request that demands a tool call."""
    return InvalidRequest(
        "A tool call cannot be demanded: this server does not constrain what the model writes yet. "
        "Use tool_choice 'auto', which leaves the decision to the model, or 'none'.",
        param="tool_choice",
    )
