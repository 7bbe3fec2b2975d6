from __future__ import annotations

import pytest
from engine_harness import LOOPS, Loop


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of a module that uses this runs with every loop of the engine."""
    monkeypatch.setattr(Loop, "name", request.param)
    return request.param
