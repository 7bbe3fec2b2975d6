"""What the APIs' request models say alike about tools."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

MAX_TOOLS = 128


ToolName: TypeAlias = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
