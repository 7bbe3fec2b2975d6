"""A prefill worker that hands over in bulk: as `baton prefill`, but its agent hears of pages at the end only.

What a system without a pipeline would do; started by `latency.py`. Takes the flags of `baton prefill`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from baton.cli import flags
from baton.core.attempt import Attempt
from baton.engine.api import StepOutput
from baton.prefill.desk import OfferDesk
from baton.runtime import environ, logs
from baton.runtime.lifecycle import run_service
from baton.runtime.settings import load
from baton.worker.desk import Counter
from baton.worker.service import serve
from baton.worker.settings import WorkerSettings


class BulkDesk(OfferDesk):
    """Keeps to itself what was produced until the step that draws the first token has returned."""

    def __init__(self, counter: Counter) -> None:
        super().__init__(counter)
        self._kept: defaultdict[Attempt, list[tuple[Any, ...]]] = defaultdict(list)

    def produced(
        self,
        attempt: Attempt,
        layer_start: int,
        layer_end: int,
        page_start: int,
        page_ids: Sequence[int],
        generations: Sequence[int],
    ) -> None:
        self._kept[attempt].append((layer_start, layer_end, page_start, page_ids, generations))

    def on_step(self, output: StepOutput) -> None:
        for row in output.rows:
            for kept in self._kept.pop(row.attempt, ()):
                super().produced(row.attempt, *kept)
        super().on_step(output)


def main() -> int:
    given = flags.parse("prefill", "prefill that hands over in bulk", WorkerSettings, sys.argv[1:])
    settings = load(WorkerSettings, flags=given.flags, config=given.config)
    environ.limit_threads(settings.threads or 1)
    environ.quiet_libraries()
    logs.configure("prefill", settings.log_level, settings.log_format)
    return run_service(lambda: serve(settings, "prefill", BulkDesk))


if __name__ == "__main__":
    sys.exit(main())
