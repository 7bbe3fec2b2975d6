"""A queue that is fair among tenants."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Highest priority first; within a priority tenants take turns; within a tenant first come, first served.

    Requests put back (`push_front`) come before all others: they have been served already.
    """

    def __init__(self) -> None:
        self._returned: deque[T] = deque()
        self._levels: dict[int, OrderedDict[str, deque[T]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        yield from self._returned
        for level in self._levels.values():
            for items in level.values():
                yield from items

    def push(self, item: T, tenant: str, priority: int) -> None:
        self._levels.setdefault(priority, OrderedDict()).setdefault(tenant, deque()).append(item)
        self._size += 1

    def push_front(self, item: T) -> None:
        self._returned.append(item)
        self._size += 1

    def peek(self) -> T | None:
        """The next one, which stays."""
        if self._returned:
            return self._returned[0]
        return next(iter(self._next_tenant().values()))[0] if self._levels else None

    def pop(self) -> T:
        """Take what `peek` shows; its tenant goes to the end of the round. Raises IndexError when empty."""
        if self._returned:
            self._size -= 1
            return self._returned.popleft()
        if not self._levels:
            raise IndexError("pop from an empty queue")
        level = self._next_tenant()
        tenant, items = next(iter(level.items()))
        item = items.popleft()
        level.move_to_end(tenant)
        self._drop_if_empty(max(self._levels), tenant)
        self._size -= 1
        return item

    def remove(self, item: T, tenant: str, priority: int) -> bool:
        """Take one out of the middle; False when it does not wait here."""
        if item in self._returned:
            self._returned.remove(item)
        elif priority in self._levels and item in self._levels[priority].get(tenant, ()):
            self._levels[priority][tenant].remove(item)
            self._drop_if_empty(priority, tenant)
        else:
            return False
        self._size -= 1
        return True

    def _next_tenant(self) -> OrderedDict[str, deque[T]]:
        return self._levels[max(self._levels)]

    def _drop_if_empty(self, priority: int, tenant: str) -> None:
        level = self._levels[priority]
        if not level[tenant]:
            del level[tenant]
        if not level:
            del self._levels[priority]
