"""What the APIs' request models say alike about tools."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field

from baton.core.errors import InvalidRequest

MAX_TOOLS = 128


def _not_strict(value: bool | None) -> bool | None:
    if value:
        raise ValueError("arguments are not enforced by the schema yet; leave 'strict' out")
    return value


ToolName: TypeAlias = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
NotStrict: TypeAlias = Annotated[bool | None, AfterValidator(_not_strict)]


def demanded_call() -> InvalidRequest:
    """The answer to a request that demands a tool call."""
    return InvalidRequest(
        "A tool call cannot be demanded: this server does not constrain what the model writes yet. "
        "Use tool_choice 'auto', which leaves the decision to the model, or 'none'.",
        param="tool_choice",
    )
