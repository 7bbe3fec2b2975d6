"""Who holds how much of a prompt: mirrors of the prefix index, one for each namespace that a connected worker is in.

Without Redis, or while it is away, the answer is what was last known, or nothing. The hot path never waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from baton.core.hashing import block_hashes, root_hash
from baton.core.layout import KvLayout
from baton.prefix.mirror import PrefixMirror
from baton.prefix.records import Namespace
from baton.prefix.sync import IndexStore, IndexSync
from baton.router.policy_facts import Held
from baton.router.ports import WorkerInfo
from baton.router.tasks import background
from baton.runtime.lifecycle import cancel_and_wait

FIRST_BLOCKS = 128  # hashed before anybody is asked; then twice as many while somebody holds them all


class Prompt(Protocol):
    """The part of a request that names its blocks."""

    @property
    def lora(self) -> str: ...

    @property
    def cache_salt(self) -> str: ...


class BlockNames:
    """Block hashes of one token sequence, made as far as they are asked for and kept."""

    def __init__(self, layout: KvLayout, token_ids: Sequence[int], prompt: Prompt) -> None:
        self._parent = root_hash(
            layout.model_revision, layout.fingerprint, lora=prompt.lora, cache_salt=prompt.cache_salt
        )
        self._page_size = layout.page_size
        self._token_ids = token_ids
        self._hashes: list[bytes] = []

    @property
    def blocks(self) -> int:
        """Full blocks of the sequence."""
        return len(self._token_ids) // self._page_size

    def first(self, count: int) -> list[bytes]:
        """Names of at least the first `count` blocks, or of all."""
        done = len(self._hashes)
        if done < min(count, self.blocks):
            tokens = self._token_ids[done * self._page_size : count * self._page_size]
            parent = self._hashes[-1] if self._hashes else self._parent
            self._hashes += block_hashes(parent, tokens, self._page_size)
        return self._hashes


class PrefixIndex:
    """Mirrors by namespace. One event loop; `close` ends their tasks."""

    def __init__(self, store: IndexStore | None) -> None:
        self._store = store
        self._mirrors: dict[Namespace, PrefixMirror] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def blocks(self) -> int:
        return sum(mirror.blocks for mirror in self._mirrors.values())

    async def close(self) -> None:
        await cancel_and_wait(*self._tasks)

    def mirror(self, info: WorkerInfo) -> PrefixMirror:
        """The mirror of the worker's namespace, which is followed from the first call on."""
        namespace = Namespace(info.model, info.layout.model_revision, info.layout.fingerprint)
        mirror = self._mirrors.get(namespace)
        if mirror is None:
            groups = bool(info.layout.groups)
            mirror = self._mirrors[namespace] = PrefixMirror(first_needed=info.layout.first_needed if groups else None)
            if self._store is not None:
                self._tasks.append(background(IndexSync(self._store, namespace, mirror).run(), "prefix index"))
        return mirror

    def held(
        self,
        workers: Iterable[WorkerInfo],
        names: dict[str, BlockNames],
        token_ids: Sequence[int],
        prompt: Prompt,
    ) -> dict[str, Held]:
        """Leading tokens of `token_ids` that each worker holds, as far as known; workers with none are left out.

        `names` keeps the hashes (by layout fingerprint) for the next question about the same tokens.
        """
        by_layout: dict[str, list[WorkerInfo]] = {}
        for info in workers:
            by_layout.setdefault(info.layout.fingerprint, []).append(info)
        found = {}
        for fingerprint, infos in by_layout.items():
            layout = infos[0].layout
            mirror = self.mirror(infos[0])
            if fingerprint not in names:
                names[fingerprint] = BlockNames(layout, token_ids, prompt)
            matches = _match(mirror, names[fingerprint])
            for info in infos:
                if info.worker_id in matches and mirror.epoch(info.worker_id) == info.epoch:
                    hashes = names[fingerprint].first(matches[info.worker_id])
                    found[info.worker_id] = _held(mirror.reach(info.worker_id, hashes), layout.page_size)
        return found


def _held(reach: Sequence[int], page_size: int) -> Held:
    pool, host, disk = (blocks * page_size for blocks in reach)
    return Held(pool, host - pool, disk - host)


def _match(mirror: PrefixMirror, names: BlockNames) -> dict[str, int]:
    count = FIRST_BLOCKS if mirror.first_needed is None else names.blocks
    while mirror.blocks:
        hashes = names.first(count)
        matches = mirror.match(hashes)
        if len(hashes) == names.blocks or max(matches.values(), default=0) < len(hashes):
            return matches
        count = 2 * len(hashes)
    return {}
