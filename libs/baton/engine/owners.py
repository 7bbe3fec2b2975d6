"""Whether each lent page of a pool belongs to exactly one owner. What the ledger's audit counts; for tests."""

from __future__ import annotations

from collections.abc import Iterable

from baton.core.errors import InternalError
from baton.engine.pool import PageAllocator
from baton.engine.request import RequestState


class Owners:
    """Pages, each with the name of its owner. All of its methods raise InternalError where something is wrong."""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}

    def add(self, pages: Iterable[int], owner: str) -> None:
        self.add_each((page, owner) for page in pages)

    def add_each(self, pages: Iterable[tuple[int, str]]) -> None:
        for page, owner in pages:
            if page in self._owners:
                raise InternalError(f"page {page} belongs to {self._owners[page]} and to {owner}")
            self._owners[page] = owner

    def check(self, allocator: PageAllocator) -> None:
        """All lent pages are owned, and none else."""
        lent, owned = allocator.lent(), self._owners.keys()
        if owned != lent:
            raise InternalError(f"pages are lent to nobody: {sorted(lent ^ owned)}")
        if allocator.free_pages + len(owned) != allocator.usable:
            raise InternalError(f"{allocator.free_pages} free and {len(owned)} owned pages are not all there are")


def check_prefix(request: RequestState) -> None:
    """The cached pages that a request uses are those that it has locked."""
    held = request.pages.view[: request.held_blocks].tolist()
    node = request.node
    while node is not None and not node.is_root:
        if not held or held.pop() != node.page:
            raise InternalError(f"attempt {request.attempt} uses other pages than those it has locked")
        node = node.parent
    if held:
        raise InternalError(f"attempt {request.attempt} uses {len(held)} cached pages without a lock")
