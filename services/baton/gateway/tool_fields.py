"""What the APIs' request models say alike about tools."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from baton.core.errors import InvalidRequest

MAX_TOOLS = 128


ToolName: TypeAlias = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


def unenforced(param: str) -> InvalidRequest:
    """The answer to `strict: true` of a tool that the model may call or not."""
    return InvalidRequest(
        f"'{param}' is only enforced where a call is demanded by 'tool_choice'; leave it out otherwise.", param=param
    )
