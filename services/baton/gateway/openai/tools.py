"""Tools of a chat: validation, and whether the model may call them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from baton.core.errors import InvalidRequest
from baton.gateway.http.fields import Body
from baton.gateway.tool_fields import NotStrict, ToolName, demanded_call


class Function(Body):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: NotStrict = None


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
        raise demanded_call()
    return [] if choice == "none" else [tool.for_template() for tool in tools]
