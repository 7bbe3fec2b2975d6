"""The private folder of one running `baton up`: Unix sockets and the status file; it is gone afterwards.

A lock on `lock` says that its owner lives. A folder whose owner was killed is found by the next start and removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from baton.core.errors import ConfigError

_PREFIX = "baton-up-"
_LOCK = "lock"
_LONGEST_SOCKET_NAME = 24  # unified-63.sock, with room to spare
_MAX_SOCKET_PATH = 107  # sun_path on Linux, less the final zero


@contextmanager
def runtime_dir(path: Path | None) -> Iterator[Path]:
    """A folder that is this process's alone while the context lasts, removed at its end.

    `path`: use this one (made when missing); it must be empty, or left over by a killed owner. Raises ConfigError.
    """
    if path is None:
        _sweep(Path(tempfile.gettempdir()))
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    path = path.absolute()
    if len(str(path)) + 1 + _LONGEST_SOCKET_NAME > _MAX_SOCKET_PATH:
        raise ConfigError(f"runtime folder {path} is too long for Unix sockets; give a shorter one with --runtime-dir")
    made = not path.exists()
    lock = _claim(path)
    try:
        yield path
    finally:
        _empty(path)
        if made or path.name.startswith(_PREFIX):
            path.rmdir()
        os.close(lock)


def _claim(path: Path) -> int:
    """Make the folder, lock it, remove what a dead owner left. Returns the descriptor that holds the lock."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        foreign = any(path.iterdir()) and not (path / _LOCK).exists()
        if foreign:
            raise ConfigError(f"runtime folder {path} holds other files; give an empty or new one")
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot use runtime folder {path}: {error.strerror}") from error
    if not _try_lock(lock):
        os.close(lock)
        raise ConfigError(f"runtime folder {path} belongs to a running baton up; give another one")
    _empty(path, keep=_LOCK)
    return lock


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _empty(path: Path, keep: str = "") -> None:
    for entry in path.iterdir():
        if entry.name == keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _sweep(parent: Path) -> None:
    """Remove this user's folders whose owner is gone."""
    for path in parent.glob(f"{_PREFIX}*"):
        try:
            if path.stat().st_uid != os.getuid():
                continue
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # not ours, or just being made or removed
        try:
            if _try_lock(lock):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)
