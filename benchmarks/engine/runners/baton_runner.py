"""Baton's engine as a worker builds it, with a worker's defaults but for threads and the size of the pool."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from protocol import serve
from stepped import SteppedRunner

from baton.runtime import environ, logs


class BatonRunner(SteppedRunner):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        environ.limit_threads(options["threads"])
        logs.configure("bench", "warning", "console")
        from baton.worker.bench import pages_of
        from baton.worker.build import build_model
        from baton.worker.settings import WorkerSettings

        settings = WorkerSettings(model=options["model"], threads=options["threads"])
        self._built = build_model(settings, 1, lambda layout: pages_of(layout, options["pool_tokens"]))
        self._engine = self._built.make_engine(None)
        self.about = f"baton {metadata.version('baton-serving')}, {settings.threads} threads"

    def add(self, name: str, prompt: list[int], tokens: int) -> None:
        from baton.core.attempt import Attempt
        from baton.core.sampling import SamplingParams
        from baton.engine.api import EngineRequest

        sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        self._engine.submit(EngineRequest(Attempt(name), prompt, len(prompt), sampling, b"root"))

    def step(self) -> list[tuple[str, int]]:
        output = self._engine.step()
        for failed in output.failed:
            raise failed.error
        return [(row.attempt.request_id, len(row.token_ids)) for row in output.rows]

    def abort(self, names: list[str]) -> None:
        from baton.core.attempt import Attempt

        for name in names:
            self._engine.cancel(Attempt(name))

    def busy(self) -> bool:
        return self._engine.has_work


if __name__ == "__main__":
    serve(BatonRunner)
