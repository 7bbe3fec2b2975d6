"""Which checkpoint `baton up` serves: the one asked for, else the model that comes with Baton."""

from __future__ import annotations

from pathlib import Path

from baton.cli.up.plan import Model
from baton.cli.up.settings import UpSettings
from baton.core.errors import ConfigError
from baton.models import TINY, bundled


def find_model(settings: UpSettings) -> Model:
    """The model to serve. Raises ConfigError when the folder asked for is no checkpoint."""
    if settings.model is None:
        path = bundled(TINY)
    else:
        path = settings.model.expanduser().absolute()
        _check_folder(path)
    return Model(path, settings.served_name or path.resolve().name)


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise ConfigError(f"--model {path}: no such folder; a Hugging Face checkpoint folder is expected")
    if not (path / "config.json").is_file():
        raise ConfigError(f"--model {path}: there is no config.json; a Hugging Face checkpoint folder is expected")
