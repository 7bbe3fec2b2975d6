"""API keys in a file: JSON, `{"keys": [...]}`, for its owner only. Written whole: readers never see a part of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from baton.core.errors import ConfigError
from baton.gateway.auth.key import ApiKey


class _Content(msgspec.Struct):
    keys: list[ApiKey] = []


class KeyFile:
    """The keys of one file. Changes by several processes at once are made one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None

    def __str__(self) -> str:
        return str(self.path)

    def changed(self) -> list[ApiKey] | None:
        """All keys; None when the file is the same as at the last call that returned. Raises ConfigError."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise ConfigError(f"cannot read the API keys in {self.path}: {error.strerror}") from error
        version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if version == self._seen:
            return None
        keys = self.read()
        self._seen = version
        return keys

    def read(self) -> list[ApiKey]:
        """All keys. Raises ConfigError when the file is missing or is none of ours."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_Content).keys
        except OSError as error:
            raise ConfigError(f"cannot read the API keys in {self.path}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.path} is no file of API keys: {error}") from error

    def add(self, key: ApiKey) -> None:
        """Raises ConfigError when the file cannot be read or written. It is made when there is none."""
        with self._locked():
            self._write([*(self.read() if self.path.exists() else ()), key])

    def remove(self, id: str) -> bool:
        """False when there is no such key. Raises ConfigError."""
        with self._locked():
            keys = self.read()
            rest = [key for key in keys if key.id != id]
            if len(rest) < len(keys):
                self._write(rest)
        return len(rest) < len(keys)

    def _write(self, keys: Sequence[ApiKey]) -> None:
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        text = msgspec.json.format(msgspec.json.encode(_Content(list(keys))), indent=1)
        try:
            draft.touch(mode=0o600)
            draft.write_bytes(text + b"\n")
            draft.replace(self.path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise ConfigError(f"cannot write the API keys to {self.path}: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The folder is what is locked: the file itself is replaced."""
        try:
            folder = os.open(self.path.absolute().parent, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"cannot write the API keys to {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
