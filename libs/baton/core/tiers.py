"""Where a worker has a block of KV cache: a word that its engine, its agent, the prefix index and routers share."""

from __future__ import annotations

import enum


class Tier(enum.IntEnum):
    """The nearer, the lower. A block that is in several places counts as being in the nearest."""

    POOL = 0
    HOST = 1  # memory of the worker's agent
    DISK = 2  # a disk of the agent's host
