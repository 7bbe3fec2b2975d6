"""Which checkpoint `baton up` serves: the one asked for, else a small random one, made once in the cache folder."""

from __future__ import annotations

import sys
from pathlib import Path

from baton.cli.up.child import ChildSpec, run_child
from baton.cli.up.output import Output
from baton.cli.up.plan import Model
from baton.cli.up.settings import UpSettings
from baton.core.errors import ConfigError, InternalError
from baton.runtime import environ

_CACHE_FOLDER = "models"
# In a process of its own: making it needs torch, which `baton up` itself does not load.
_MAKE = "import sys; from baton.testing.checkpoints import default_checkpoint; default_checkpoint(sys.argv[1])"


async def find_model(settings: UpSettings, output: Output) -> Model:
    """The model to serve. Raises ConfigError when the folder asked for is no checkpoint."""
    if settings.model is None:
        path = await _default(output)
    else:
        path = settings.model.expanduser().absolute()
        check_folder(path)
    return Model(path, settings.served_name or path.resolve().name)


def check_folder(path: Path) -> None:
    if not path.is_dir():
        raise ConfigError(f"--model {path}: no such folder; a Hugging Face checkpoint folder is expected")
    if not (path / "config.json").is_file():
        raise ConfigError(f"--model {path}: there is no config.json; a Hugging Face checkpoint folder is expected")


async def _default(output: Output) -> Path:
    folder = environ.cache_dir() / _CACHE_FOLDER
    path = _made_earlier(folder)
    if path is None:
        output.say(f"no --model given: making a small random model in {folder}, once")
        tail: list[str] = []
        command = (sys.executable, "-P", "-c", _MAKE, str(folder))
        code = await run_child(ChildSpec("model", "model", command), lambda pid: None, tail.append)
        path = _made_earlier(folder)
        if code != 0 or path is None:
            raise InternalError("the random model could not be made:\n  " + "\n  ".join(tail[-12:]))
    output.say(f"no --model given: serving the random model {path}; its answers are noise")
    return path


def _made_earlier(folder: Path) -> Path | None:
    """The checkpoint in `folder`; hidden folders are drafts of a process that makes one."""
    found = (path.parent for path in folder.glob("*/config.json") if not path.parent.name.startswith("."))
    return next(found, None)
