"""What the radix cache costs per call with a million pages, beside a plain dict and what SGLang has published.

python benchmarks/radix.py [--requests 100000] [--own-pages 10] [--json FILE]

The tree: `--requests` conversations, each under one of 1,000 system prompts of 4 pages, with `--own-pages` pages of its
own (16 tokens each): with the defaults 100,000 leaves and 1,004,000 pages. SGLang's tree joins the pages of a run into
one node, so that its tree of the same content has about 101,000 nodes; Baton's has one node per page. The dict is what
one would write first: it walks prefixes page by page and finds what to evict by looking at everything.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from baton.cli.bench.report import document, write_json
from baton.engine.radix import Node, RadixCache

SYSTEM_PROMPTS, SYSTEM_PAGES = 1000, 4
LONG_BLOCKS = 8192  # 131,072 tokens
TIMINGS = 2000
SLOW_TIMINGS = 3
LEAST_PAGES = 300_000
PUBLISHED = """\
SGLang, as published by its developers (other machines; its eviction frees tokens, here pages of 16):
  evict   7 ms before and 0.5 ms after a set of leaves was kept       github.com/sgl-project/sglang/pull/14339
  evict   70 to 77 ms at 41,000 leaves: a heap is built on each call  github.com/sgl-project/sglang/pull/38454
  evict   4.9 to 7.3 ms at 9,000 leaves; 126 to 176 us with a heap    github.com/sgl-project/sglang-omni/pull/1724
          that is kept"""

Hashes = list[bytes]


@dataclass(slots=True)
class Tree:
    """Hashes of all requests, and a supply of new ones."""

    requests: list[Hashes]
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1 << 60))

    def fresh(self, blocks: int) -> Hashes:
        return [number.to_bytes(16, "little") for number in itertools.islice(self.numbers, blocks)]

    def branches(self, chosen: list[Hashes]) -> list[Hashes]:
        """New requests, as long as `chosen` and with their system prompts."""
        return [hashes[:SYSTEM_PAGES] + self.fresh(len(hashes) - SYSTEM_PAGES) for hashes in chosen]


def make_tree(requests: int, own_pages: int) -> Tree:
    numbers = itertools.count()

    def fresh(blocks: int) -> Hashes:
        return [(next(numbers) * 0x9E3779B97F4A7C15 % 2**128).to_bytes(16, "little") for _ in range(blocks)]

    systems = [fresh(SYSTEM_PAGES) for _ in range(min(SYSTEM_PROMPTS, requests))]
    return Tree([systems[index % len(systems)] + fresh(own_pages) for index in range(requests)])


class DictCache:
    """Block hash -> [parent, children, last use]. Nothing is kept in order."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, list[object]] = {}
        self._tick = 0

    def match(self, hashes: Hashes) -> int:
        for length, block in enumerate(hashes):
            if block not in self._blocks:
                return length
        return len(hashes)

    def insert(self, hashes: Hashes) -> None:
        self._tick += 1
        parent = b""
        for block in hashes:
            found = self._blocks.get(block)
            if found is None:
                self._blocks[block] = [parent, 0, self._tick]
                if parent:
                    self._blocks[parent][1] += 1  # type: ignore[operator]
            else:
                found[2] = self._tick
            parent = block

    def evict(self, count: int) -> None:
        for _ in range(count):
            block = min(
                (block for block, entry in self._blocks.items() if not entry[1]),
                key=lambda block: self._blocks[block][2],  # type: ignore[arg-type,return-value]
            )
            parent = self._blocks.pop(block)[0]
            if parent:
                self._blocks[parent][1] -= 1  # type: ignore[index,operator]


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of one call."""

    name: str
    calls: int
    median: float
    p99: float
    most: float


def cost(name: str, calls: Iterable[Callable[[], object]]) -> Cost:
    """Time each of `calls` once."""
    clock = time.perf_counter_ns
    spent = []
    for call in calls:
        started = clock()
        call()
        spent.append((clock() - started) / 1e3)
    spent.sort()
    return Cost(name, len(spent), statistics.median(spent), spent[int(0.99 * (len(spent) - 1))], spent[-1])


def measure_baton(tree: Tree, chosen: list[Hashes]) -> list[Cost]:
    cache = RadixCache()
    pages = itertools.count()

    def insert(hashes: Hashes) -> None:
        """As a request does: lock what is cached, add the rest, unlock."""
        cached = cache.match(hashes, len(hashes))
        node, _ = cache.acquire(hashes, cached)
        rest = hashes[cached:]
        cache.release(cache.insert(node, rest, list(itertools.islice(pages, len(rest)))).node)

    for hashes in tree.requests:
        insert(hashes)
    long = tree.fresh(LONG_BLOCKS)
    insert(long)
    cache.drain_events()
    blocks = len(chosen[0])
    found = [
        cost(f"match, {blocks} blocks cached", [partial(cache.match, h, len(h)) for h in chosen]),
        cost(
            f"match, {SYSTEM_PAGES} of {blocks} blocks cached",
            [partial(cache.match, h, len(h)) for h in tree.branches(chosen)],
        ),
        cost(f"match, {LONG_BLOCKS} blocks cached", [lambda: cache.match(long, len(long))] * TIMINGS),
        cost(
            f"match, {LONG_BLOCKS} blocks, last answer as a hint",
            [lambda: cache.match(long, len(long), LONG_BLOCKS)] * TIMINGS,
        ),
    ]
    nodes: list[Node] = []

    def lock(hashes: Hashes) -> None:
        nodes.append(cache.acquire(hashes, len(hashes))[0])

    found.append(cost(f"lock {blocks} blocks", [partial(lock, h) for h in chosen]))
    found.append(cost(f"unlock {blocks} blocks", [partial(cache.release, node) for node in nodes]))
    found.append(
        cost(f"insert {blocks - SYSTEM_PAGES} new blocks", [partial(insert, h) for h in tree.branches(chosen)])
    )
    cache.drain_events()
    found += [cost(f"evict {count} pages", [partial(cache.evict, count)] * TIMINGS) for count in (1, 4, 64)]
    found.append(cost("evict 10000 pages", [lambda: cache.evict(10_000)] * 5))
    return found


def measure_dict(tree: Tree, chosen: list[Hashes]) -> list[Cost]:
    cache = DictCache()
    for hashes in tree.requests:
        cache.insert(hashes)
    long = tree.fresh(LONG_BLOCKS)
    cache.insert(long)
    blocks = len(chosen[0])
    new = tree.branches(chosen)
    return [
        cost(f"match, {blocks} blocks cached", [partial(cache.match, h) for h in chosen]),
        cost(f"match, {SYSTEM_PAGES} of {blocks} blocks cached", [partial(cache.match, h) for h in new]),
        cost(f"match, {LONG_BLOCKS} blocks cached", [lambda: cache.match(long)] * 200),
        cost(f"insert {blocks - SYSTEM_PAGES} new blocks", [partial(cache.insert, h) for h in new]),
        cost("evict 1 pages", [lambda: cache.evict(1)] * SLOW_TIMINGS),
        cost("evict 4 pages", [lambda: cache.evict(4)] * SLOW_TIMINGS),
    ]


def table(pages: int, leaves: int, baton: list[Cost], plain: list[Cost]) -> str:
    by_name = {row.name: row for row in plain}
    lines = [
        f"{pages:,} pages, {leaves:,} leaves; microseconds per call",
        f"{'':<44}{'median':>10}{'p99':>10}{'most':>10}{'dict':>14}",
    ]
    for row in baton:
        other = by_name.get(row.name)
        known = f"{other.median:>14,.1f}" if other else f"{'-':>14}"
        lines.append(f"{row.name:<44}{row.median:>10.2f}{row.p99:>10.2f}{row.most:>10.1f}{known}")
    return "\n".join([*lines, "", PUBLISHED])


def _rows(found: list[Cost]) -> list[dict[str, object]]:
    return [asdict(row) for row in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, metavar="N", help="leaves (%(default)s)")
    parser.add_argument("--own-pages", type=int, default=10, metavar="N", help="pages of each (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    given = parser.parse_args()
    if given.requests < TIMINGS or given.own_pages < 1 or given.requests * given.own_pages < LEAST_PAGES:
        parser.error(f"at least {TIMINGS} requests and {LEAST_PAGES} pages are needed: eviction must not run dry")
    tree = make_tree(given.requests, given.own_pages)
    chosen = random.Random(0).sample(tree.requests, min(TIMINGS, given.requests))
    # Objects of the tree are never garbage here: a full collection would only measure Python's collector.
    gc.freeze()
    gc.disable()
    baton = measure_baton(tree, chosen)
    plain = measure_dict(tree, chosen)
    pages = given.requests * given.own_pages + min(SYSTEM_PROMPTS, given.requests) * SYSTEM_PAGES
    print(table(pages, given.requests, baton, plain))
    if given.json:
        found = {"pages": pages, "leaves": given.requests, "us_per_call": {"baton": _rows(baton), "dict": _rows(plain)}}
        settings = {"requests": given.requests, "own_pages": given.own_pages}
        write_json(given.json, document(found, command=sys.argv, settings=settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
