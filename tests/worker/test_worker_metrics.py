"""What a worker's metrics say of models whose blocks have pages of several kinds."""

from __future__ import annotations

from baton.engine.api import BoundedCounts, EngineLoad, StepOutput
from baton.worker import metrics

LOAD = EngineLoad(0, 0, 0, 0, 0, 0, 0.0, 0.0, cached_pages={"full": 7, "window": 5, "state": 12}, snapshots=3)


def values(metric, label: str) -> dict[str, float]:
    samples = [sample for family in metric.collect() for sample in family.samples]
    return {sample.labels.get(label, ""): sample.value for sample in samples if not sample.name.endswith("_created")}


def test_pages_by_kind_and_snapshots() -> None:
    metrics.observe_load(LOAD)
    assert values(metrics.cached_pages, "kind") == {"full": 7, "window": 5, "state": 12}
    assert values(metrics.snapshots, "") == {"": 3}


def test_events_are_added_up() -> None:
    before, passed = values(metrics.snapshot_events, "event"), values(metrics.window_pages_passed, "")[""]
    for _ in range(2):
        metrics.observe_step(StepOutput(bounded=BoundedCounts(40, 3, 2, 1)), LOAD)
    grown = {event: value - before.get(event, 0) for event, value in values(metrics.snapshot_events, "event").items()}
    assert grown == {"made": 6, "reused": 4, "evicted": 2}
    assert values(metrics.window_pages_passed, "")[""] == passed + 80
