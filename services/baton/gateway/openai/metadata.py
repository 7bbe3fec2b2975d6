"""`metadata`: what clients attach to what is kept for them."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

_Key: TypeAlias = Annotated[str, Field(max_length=64)]
_Value: TypeAlias = Annotated[str, Field(max_length=512)]
Metadata: TypeAlias = Annotated[dict[_Key, _Value], Field(max_length=16)]
