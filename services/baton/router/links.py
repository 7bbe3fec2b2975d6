"""Which workers the router keeps a link to: the addresses of the settings and those of the registry.

A worker that is connected stays, whatever the registry says; one that is neither connected nor wanted is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from baton.prefix.records import WorkerRecord
from baton.router.fleet import Fleet
from baton.router.tasks import background
from baton.router.worker_link import WorkerLink
from baton.rpc.tls import Tls
from baton.runtime.lifecycle import cancel_and_wait


class Links:
    """Opens and closes the links. One event loop."""

    def __init__(self, fleet: Fleet, router_id: str, static: Iterable[str], tls: Tls | None = None) -> None:
        self._fleet = fleet
        self._router_id = router_id
        self._tls = tls
        self._static = frozenset(static)
        self._wanted = self._static
        self._links: dict[str, tuple[WorkerLink, asyncio.Task[None]]] = {}

    @property
    def all_described(self) -> bool:
        """Whether every wanted worker has said at least once what it serves."""
        return all(address in self._links and self._links[address][0].was_described for address in self._wanted)

    @property
    def unreachable(self) -> list[str]:
        """Addresses of wanted workers without a connection, in order."""
        return sorted(a for a in self._wanted if a not in self._links or not self._links[a][0].connected)

    def start(self) -> None:
        self._open()

    def _wants(self, address: str) -> bool:
        return address in self._wanted

    async def stop(self) -> None:
        """Break all streams: the workers cancel what came by them."""
        await cancel_and_wait(*(task for _, task in self._links.values()))
        self._links.clear()

    def on_registered(self, records: list[WorkerRecord]) -> None:
        """The registry's list has changed."""
        for record in records:
            self._fleet.expect_model(record.model)
        self._wanted = self._static | {record.address for record in records}
        for address, (link, task) in list(self._links.items()):
            if address not in self._wanted and not link.connected:
                task.cancel()
                del self._links[address]
        self._open()

    def _open(self) -> None:
        for address in self._wanted:
            known = self._links.get(address)
            if known is None or known[1].done():
                link = WorkerLink(address, self._router_id, self._fleet, self._wants, self._tls)
                self._links[address] = (link, background(link.run(), f"link to {address}"))
