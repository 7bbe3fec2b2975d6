"""Lists that are fetched page by page: `limit`, `after` and `order` of a request, `has_more` of its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from baton.core.errors import InvalidRequest

_LIMIT = 20


def page_of(
    items: Sequence[Mapping[str, Any]], query: Mapping[str, str], *, most: int = 100, limit: int = _LIMIT
) -> dict[str, Any]:
    """The page of `items`, which have ids and come oldest first, that `query` asks for. The newest are first unless
    `order` is `asc`. Raises InvalidRequest."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"Invalid value for 'order': '{order[:50]}'; it is 'asc' or 'desc'.", param="order")
    ordered = list(items) if order == "asc" else list(reversed(items))
    if (after := query.get("after")) is not None:
        at = next((index for index, item in enumerate(ordered) if item["id"] == after), None)
        if at is None:
            raise InvalidRequest(f"Invalid value for 'after': there is no '{after[:200]}'.", param="after")
        ordered = ordered[at + 1 :]
    count = _count(query.get("limit", str(limit)), most)
    page = ordered[:count]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": len(ordered) > count,
    }


def _count(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise InvalidRequest(f"Invalid value for 'limit': a number from 1 to {most} is expected.", param="limit")
    return int(text)
