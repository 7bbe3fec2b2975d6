"""The radix prefix cache: which blocks' KV is in the pool, shared by all requests with the same leading tokens.

A tree with one node per block. Block hashes are chained (baton.core.hashing), so a hash names the whole prefix that
ends with its block, and one dict finds every node. The tree is prefix-closed (only leaves are evicted): a block's
presence implies that of all blocks before it. Hence the longest cached prefix is found by binary search.

Who owns a page (a request's page table, left to right):

    |------------ held by the cache ------------|--------- owned by the request ---------|
    ^ root                                 node ^ locked by the request    partial page, ^ pages of tokens
                                                                           not yet computed

    insert   moves `node` to the right: the cache takes the request's pages over, except duplicates, which
             the request must replace by the cache's own page and free
    release  unlocks `node`: the pages stay cached, and may be evicted once nobody holds a lock below them

A node's `holds` counts locks on it and children that are held; a page may be evicted only when its node has no hold
and no child. Locking or unlocking stops at the first ancestor that somebody else holds too, so its cost is the
number of pages whose state changes. Eviction takes the least recently used leaf from a heap whose stale entries are
skipped: O(log n) per page. Time is a counter of uses, not a clock. The idea of a tree of cached prefixes with LRU
leaves is RadixAttention's (SGLang, arXiv 2312.07104).

Not thread-safe. Knows no requests, no tensors and no allocator.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from baton.core.errors import InternalError
from baton.core.tiers import Tier
from baton.engine.band_cache import Elsewhere

_ROOT_PAGE = -1


class Node:
    """One cached block. Callers keep it only while they hold a lock on it."""

    __slots__ = ("block_hash", "children", "holds", "page", "parent", "ticket", "used")

    def __init__(self, block_hash: bytes, page: int, parent: Node | None) -> None:
        self.block_hash = block_hash
        self.page = page
        self.parent = parent
        self.children = 0
        self.holds = 0
        self.used = 0  # last time that a lock on this very node was taken or dropped
        self.ticket = 0  # its valid entry in the eviction heap; 0 = none

    @property
    def is_root(self) -> bool:
        return self.page == _ROOT_PAGE


@dataclass(frozen=True, slots=True)
class Insertion:
    """Result of `insert`: `node` is the deepest block, locked for the caller in place of the node given.

    `duplicates` are (index into the inserted blocks, page of the cache): there the caller's page was not taken.
    """

    node: Node
    duplicates: list[tuple[int, int]]


class RadixCache:
    """See the module's docstring. Pages handed to `insert` belong to the cache until `evict` returns them.

    `beside`: of blocks that need other pages besides, the farthest place where some of these are, None if they are not
    all somewhere: what is told of a block is about all of them. Whoever changes that calls `note` before.
    """

    def __init__(self, beside: Callable[[bytes, Elsewhere], Tier | None] | None = None) -> None:
        self._beside = beside
        self.root = Node(b"", _ROOT_PAGE, None)
        self.elsewhere: dict[bytes, Tier] = {}  # blocks that the worker's agent holds, whether they are here or not
        self.host_blocks = 0  # of `elsewhere`: in host memory
        self._nodes: dict[bytes, Node] = {}
        self._protected = 0
        self._leaves = 0  # evictable leaves = valid heap entries
        self._heap: list[tuple[int, int, Node]] = []
        self._tick = 0
        self._ticket = 0
        self._told: dict[bytes, Tier | None] = {}  # of blocks that have changed since: where they were said to be

    @property
    def cached_pages(self) -> int:
        return len(self._nodes)

    @property
    def evictable_pages(self) -> int:
        """Pages that `evict` can return, all leaves and then their parents included."""
        return len(self._nodes) - self._protected

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._nodes

    def match(self, hashes: Sequence[bytes], limit: int, hint: int = 0) -> int:
        """Length in blocks, at most `limit`, of the longest cached prefix of `hashes`.

        `hint` is a likely answer, such as the previous one: if it still holds, two look-ups find that out.
        """
        high = min(limit, len(hashes))
        low = min(hint, high)
        if low and hashes[low - 1] not in self._nodes:
            low, high = 0, low - 1
        elif low == high or hashes[low] not in self._nodes:
            return low
        return _leading(hashes, self._nodes, low, high)

    def match_elsewhere(self, hashes: Sequence[bytes], start: int, limit: int) -> int:
        """Length of the longest prefix that is held elsewhere from block `start` on, which is the answer if none is.

        By bisection, as if no block were held there without those before it: what is missing does not come back.
        """
        low, high = start, min(limit, len(hashes))
        if not self.elsewhere or low >= high or hashes[low] not in self.elsewhere:
            return low
        return _leading(hashes, self.elsewhere, low, high)

    def acquire(self, hashes: Sequence[bytes], blocks: int) -> tuple[Node, list[int]]:
        """Lock the first `blocks` blocks, all cached. Returns the node to `release`, and their pages in order."""
        node = self._nodes[hashes[blocks - 1]] if blocks else self.root
        self._lock(node)
        pages = []
        at = node
        while at.parent is not None:
            pages.append(at.page)
            at = at.parent
        pages.reverse()
        return node, pages

    def path(self, block_hash: bytes) -> list[bytes]:
        """The names of all blocks of the prefix that ends with a cached block."""
        names = []
        at = self._nodes[block_hash]
        while at.parent is not None:
            names.append(at.block_hash)
            at = at.parent
        names.reverse()
        return names

    def insert(self, node: Node, hashes: Sequence[bytes], pages: Sequence[int]) -> Insertion:
        """Add blocks below `node`, on which the caller holds a lock; the lock moves to the last of them.

        `pages[i]` must hold the whole KV of block `hashes[i]` and belong to the caller. Where a block is cached
        already, its page wins and the caller keeps its own: see `Insertion.duplicates`.
        """
        duplicates = []
        at = node
        for index, (block_hash, page) in enumerate(zip(hashes, pages, strict=True)):
            child = self._nodes.get(block_hash)
            if child is None:
                child = self._add(block_hash, page, at)
            else:
                duplicates.append((index, child.page))
            at = child
        self._lock(at)
        self._unlock(node)
        return Insertion(at, duplicates)

    def release(self, node: Node) -> None:
        """Drop one lock on `node`."""
        self._unlock(node)

    def evict(self, count: int) -> list[int]:
        """Remove up to `count` pages that nobody holds, least recently used first, leaves before their parents.

        A use of a block is one of all blocks before it, but only the last is marked. That is enough: when the oldest
        leaf goes, its parent is as old, and older than all other leaves, unless it was used by itself since.
        """
        pages: list[int] = []
        while len(pages) < count and (block := self.evict_one()) is not None:
            pages.append(block[1])
        return pages

    def evict_one(self) -> tuple[bytes, int] | None:
        """As `evict`, of one block: its hash and page. None: all that is cached is held."""
        node = self._oldest()
        if node is None:
            return None
        self._remove(node)
        return node.block_hash, node.page

    def place(self, block_hashes: Iterable[bytes], tier: Tier | None) -> None:
        """These blocks are held elsewhere in `tier`; None: not any more, or never were."""
        for block_hash in block_hashes:
            self.note(block_hash)
            before = self.elsewhere.pop(block_hash, None)
            if tier is not None:
                self.elsewhere[block_hash] = tier
            self.host_blocks += (tier is Tier.HOST) - (before is Tier.HOST)

    @property
    def has_events(self) -> bool:
        return bool(self._told)

    def drain_events(self) -> tuple[list[bytes], list[bytes], list[tuple[bytes, Tier]]]:
        """What has changed since the last call: blocks (stored here, removed, held elsewhere only). A block that is
        where it was is in none of them."""
        stored: list[bytes] = []
        removed: list[bytes] = []
        tiered: list[tuple[bytes, Tier]] = []
        for block_hash, told in self._told.items():
            tier = self._tier(block_hash)
            if tier is Tier.POOL and told is not tier:
                stored.append(block_hash)
            elif tier is None and told is not None:
                removed.append(block_hash)
            elif tier is not None and tier is not told:
                tiered.append((block_hash, tier))
        self._told.clear()
        return stored, removed, tiered

    def audit(self, locks: Mapping[Node, int]) -> list[int]:
        """Check the tree against the locks its users say they hold; return all cached pages.

        Raises InternalError when an invariant is broken. Walks the tree: for tests.
        """
        children: dict[bytes, int] = {}
        held: dict[bytes, int] = {}
        for node in self._nodes.values():
            parent = _parent(node)
            if not parent.is_root and self._nodes.get(parent.block_hash) is not parent:
                raise InternalError("radix cache: a block outlived its parent")
            children[parent.block_hash] = children.get(parent.block_hash, 0) + 1
            held[parent.block_hash] = held.get(parent.block_hash, 0) + (node.holds > 0)
        valid = {ticket for _, ticket, node in self._heap if node.ticket == ticket}
        for node in self._nodes.values():
            if node.children != children.get(node.block_hash, 0):
                raise InternalError(f"radix cache: page {node.page} miscounts its children")
            if node.holds != held.get(node.block_hash, 0) + locks.get(node, 0):
                raise InternalError(f"radix cache: page {node.page} miscounts its holds")
            if (node.ticket in valid) != (node.holds == 0 and node.children == 0):
                raise InternalError(f"radix cache: page {node.page} is wrongly (not) evictable")
        if self._protected != sum(node.holds > 0 for node in self._nodes.values()) or self._leaves != len(valid):
            raise InternalError("radix cache: protected or evictable pages are miscounted")
        return [node.page for node in self._nodes.values()]

    def _add(self, block_hash: bytes, page: int, parent: Node) -> Node:
        self.note(block_hash)
        node = Node(block_hash, page, parent)
        self._nodes[block_hash] = node
        parent.children += 1
        self._retract(parent)
        return node

    def _oldest(self) -> Node | None:
        """The least recently used block that may go; the caller removes it at once."""
        while self._leaves:
            _, ticket, node = heapq.heappop(self._heap)
            if node.ticket == ticket:
                return node
        return None

    def _remove(self, node: Node) -> None:
        self.note(node.block_hash)
        node.ticket = 0
        self._leaves -= 1
        del self._nodes[node.block_hash]
        parent = _parent(node)
        parent.children -= 1
        self._offer(parent)

    def _tier(self, block_hash: bytes) -> Tier | None:
        tier = Tier.POOL if block_hash in self._nodes else self.elsewhere.get(block_hash)
        if tier is None or self._beside is None:
            return tier
        beside = self._beside(block_hash, self.elsewhere)
        return None if beside is None else max(tier, beside)

    def note(self, block_hash: bytes) -> None:
        """The block's place is about to change."""
        self._told.setdefault(block_hash, self._tier(block_hash))

    def _lock(self, node: Node) -> None:
        self._tick += 1
        node.used = self._tick
        at: Node | None = node
        while at is not None:
            at.holds += 1
            if at.holds > 1 or at.is_root:
                return
            self._protected += 1
            self._retract(at)
            at = at.parent

    def _unlock(self, node: Node) -> None:
        if node.holds <= 0:
            raise InternalError(f"radix cache: page {node.page} was unlocked more often than locked")
        self._tick += 1
        node.used = self._tick
        at: Node | None = node
        while at is not None:
            at.holds -= 1
            if at.holds or at.is_root:
                return
            self._protected -= 1
            self._offer(at)
            at = at.parent

    def _offer(self, node: Node) -> None:
        """Put `node` up for eviction if nothing speaks against it."""
        if node.holds or node.children or node.is_root:
            return
        self._ticket += 1
        node.ticket = self._ticket
        self._leaves += 1
        if len(self._heap) > 64 + 2 * self._leaves:
            self._heap = [entry for entry in self._heap if entry[2].ticket == entry[1]]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (node.used, node.ticket, node))

    def _retract(self, node: Node) -> None:
        if node.ticket:
            node.ticket = 0
            self._leaves -= 1


def _parent(node: Node) -> Node:
    if node.parent is None:
        raise InternalError("radix cache: the root has no parent")
    return node.parent


def _leading(hashes: Sequence[bytes], held: Mapping[bytes, object], low: int, high: int) -> int:
    """How many leading blocks are held, of which `low` are known to be, and `high` are the most: by bisection."""
    while low < high:
        middle = (low + high + 1) // 2
        if hashes[middle - 1] in held:
            low = middle
        else:
            high = middle - 1
    return low
