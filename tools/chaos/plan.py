"""The plan of a chaos run: which fault strikes whom, when and for how long. A pure function of its arguments."""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass

from baton.kv.faults import Fault


class Kind(enum.StrEnum):
    """Kinds of faults. Those from FLIP on are carried out by KV agents (`baton.kv.faults`)."""

    KILL = "kill"  # SIGKILL; its supervisor starts it again
    RESTART = "restart"  # SIGTERM: it ends in good order, and is started again
    STOP = "stop"  # SIGSTOP, and SIGCONT later
    PARTITION = "partition"  # the kernel drops all that goes to or from the sockets of a process
    THROTTLE = "throttle"  # the link between all processes is slow
    FLIP = Fault.FLIP.value
    TRUNCATE = Fault.TRUNCATE.value
    SLOW = Fault.SLOW.value
    BREAK = Fault.BREAK.value
    DUPLICATE = Fault.DUPLICATE.value
    REPLAY = Fault.REPLAY.value
    RECORD = Fault.RECORD.value
    CUT = Fault.CUT.value

    @property
    def by_agent(self) -> bool:
        return self.value in set(Fault)

    @property
    def lasts(self) -> bool:
        return self in (Kind.STOP, Kind.PARTITION, Kind.THROTTLE, Kind.CUT, Kind.SLOW)


NETWORK = (Kind.PARTITION, Kind.THROTTLE)
_WEIGHTS = {
    Kind.KILL: 6, Kind.RESTART: 2, Kind.STOP: 5, Kind.PARTITION: 2, Kind.THROTTLE: 1, Kind.FLIP: 3, Kind.TRUNCATE: 2,
    Kind.SLOW: 2, Kind.BREAK: 2, Kind.DUPLICATE: 3, Kind.REPLAY: 3, Kind.RECORD: 1, Kind.CUT: 2,
}  # fmt: skip
_SHORT_S, _LONG_S = (0.1, 2.0), (5.0, 9.0)  # shorter and longer than what the system waits before it suspects
_LONG_SHARE = 0.2
_OF_READERS = (Kind.FLIP, Kind.TRUNCATE, Kind.SLOW, Kind.BREAK)  # decode's agents read most, prefill's are read most
_USUAL_SHARE = 0.8
EVERYBODY = "all"


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """`at_s` counts from the start of the disturbed part; `for_s` is 0 for what strikes once."""

    at_s: float
    kind: Kind
    target: str
    for_s: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.kind} {self.target}{lasting}"


def make_plan(
    seed: int,
    duration_s: float,
    services: Sequence[str],
    agents: Sequence[str],
    kinds: Sequence[Kind],
    mean_gap_s: float,
) -> list[PlannedFault]:
    """Faults over `duration_s`, on average one each `mean_gap_s`. `agents` are those of `services` that take orders.

    Equal arguments give equal plans.
    """
    rng = random.Random(f"chaos-{seed}")
    weights = [_WEIGHTS[kind] for kind in kinds]
    plan: list[PlannedFault] = []
    at_s = rng.expovariate(1 / mean_gap_s)
    while at_s < duration_s:
        (kind,) = rng.choices(kinds, weights)
        plan.append(PlannedFault(round(at_s, 2), kind, _target(rng, kind, services, agents), _duration(rng, kind)))
        at_s += rng.expovariate(1 / mean_gap_s)
    return plan


def _target(rng: random.Random, kind: Kind, services: Sequence[str], agents: Sequence[str]) -> str:
    if kind is Kind.THROTTLE:
        return EVERYBODY
    if not kind.by_agent:
        return rng.choice(services)
    usual = [name for name in agents if name.startswith("decode" if kind in _OF_READERS else "prefill")]
    return rng.choice(usual if usual and rng.random() < _USUAL_SHARE else agents)


def _duration(rng: random.Random, kind: Kind) -> float:
    is_long = rng.random() < _LONG_SHARE
    drawn = rng.uniform(*(_LONG_S if is_long else _SHORT_S))
    return round(drawn, 2) if kind.lasts else 0.0
