"""A router and a worker with a toy engine, which answers at once: what the gateway has behind it when time counts.

Prints the router's address, runs until its stdin ends. `--part worker` prints the worker's, `--part router` connects to
`--worker`: two processes, as in a real system.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from baton.router.service import RouterService
from baton.router.settings import RouterSettings
from baton.runtime import logs
from baton.testing.fake_worker import FakeWorker


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("worker", "router"), required=True)
    parser.add_argument("--model", default="toy")
    parser.add_argument("--vocabulary", type=int, default=700)
    parser.add_argument("--worker", default="")
    arguments = parser.parse_args()
    logs.configure("bench", level="warning")
    if arguments.part == "worker":
        worker = FakeWorker("u0", "unified", model=arguments.model, vocabulary=arguments.vocabulary)
        await worker.start()
        print(worker.address, flush=True)
    else:
        router = RouterService(RouterSettings(listen="127.0.0.1:0", workers=[arguments.worker]))
        await router.start()
        print(router.address, flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
