"""Workers and `baton up` with models that read in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baton.cli.up.model import suited
from baton.cli.up.plan import Model
from baton.cli.up.settings import UpSettings
from baton.core.errors import ConfigError
from baton.worker.build_encoder import build_encoder
from baton.worker.settings import WorkerSettings


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["XLMRobertaModel"]}))
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"agent_socket": "agent.sock"}, "run it as `baton unified`"), ({"deterministic": True}, "deterministic is not")],
)
def test_settings_that_cannot_work(encoder: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(WorkerSettings(model=str(encoder), **settings))


def test_up_starts_unified_workers(encoder: Path) -> None:
    model = Model(encoder, "m")
    for given, expected in (({}, 1), ({"prefill": 2, "decode": 2, "unified": 3}, 3)):
        settings = suited(UpSettings(**given), model)
        assert (settings.prefill, settings.decode, settings.unified) == (0, 0, expected)
    (encoder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    settings = suited(UpSettings(), model)
    assert (settings.prefill, settings.decode, settings.unified) == (1, 1, 0)
    (encoder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        suited(UpSettings(), model)
