"""Files in a folder: `<id>.data` beside `<id>.json`, which says whose it is. Several gateways may share the folder.

All methods block: call them on a thread. A file is there once its `.json` is.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from baton.core.errors import ConfigError, InvalidRequest, RequestTooLarge
from baton.gateway.openai.errors import NotFound
from baton.gateway.settings import GatewaySettings

_ID = re.compile(r"file-[0-9a-f]{24}")


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds since 1970."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int

    def body(self) -> dict[str, Any]:
        """OpenAI's file object."""
        told = {
            name: getattr(self, name) for name in ("id", "bytes", "created_at", "expires_at", "filename", "purpose")
        }
        return {**told, "object": "file", "status": "processed"}


class NoFolder(InvalidRequest):
    code = "not_implemented"
    http_status = 501


class FileStore:
    """Files of all tenants below `folder`. Together they take at most `limit_bytes`; each is deleted in its time."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    @classmethod
    def of_gateway(cls, settings: GatewaySettings) -> FileStore:
        """Raises NoFolder where the gateway was given none."""
        return cls(folder_of(settings, "files"), settings.files_bytes)

    def room_bytes(self) -> int:
        """What another file may have."""
        return max(0, self._limit_bytes - sum(path.stat().st_size for path in self._folder.glob("*.data")))

    def add(self, content: BinaryIO, *, tenant: str, filename: str, purpose: str, ttl_s: float) -> StoredFile:
        """Keep what `content` holds from where it stands. Raises RequestTooLarge when there is no room."""
        id = new_file_id()
        path = self._folder / f"{id}.part"
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(content, file)
            if path.stat().st_size > self.room_bytes():
                raise RequestTooLarge(f"This server has no room for another file of {path.stat().st_size} bytes.")
            return self.adopt(path, id=id, tenant=tenant, filename=filename, purpose=purpose, ttl_s=ttl_s)
        finally:
            path.unlink(missing_ok=True)

    def adopt(self, path: Path, *, id: str, tenant: str, filename: str, purpose: str, ttl_s: float) -> StoredFile:
        """Make the finished file `path`, which lies on the same disk, the stored file `id`; again does no harm."""
        now = int(time.time())
        stored = StoredFile(
            id=id,
            tenant=tenant,
            filename=filename,
            purpose=purpose,
            bytes=path.stat().st_size,
            created_at=now,
            expires_at=now + int(ttl_s),
        )
        path.replace(self._folder / f"{id}.data")
        write_whole(self._folder / f"{id}.json", msgspec.json.encode(stored))
        return stored

    def get(self, id: str, tenant: str) -> StoredFile:
        """Raises NotFound: there is none, it has expired, or it is another tenant's."""
        found = self._read(self._folder / f"{id}.json") if _ID.fullmatch(id) else None
        if found is None or found.tenant != tenant or found.expires_at <= time.time():
            raise NotFound(f"No such File object: {id[:200]}", param="id")
        return found

    def path(self, id: str) -> Path:
        """Where the content of a file lies that `get` has found."""
        return self._folder / f"{id}.data"

    def of(self, tenant: str) -> list[StoredFile]:
        """All of one tenant, the oldest first."""
        now = time.time()
        files = [file for file in self._all() if file.tenant == tenant and file.expires_at > now]
        return sorted(files, key=lambda file: (file.created_at, file.id))

    def delete(self, id: str, tenant: str) -> None:
        """Raises NotFound."""
        self._remove(self.get(id, tenant).id)

    def sweep(self) -> None:
        """Delete what has expired."""
        for file in self._all():
            if file.expires_at <= time.time():
                self._remove(file.id)

    def _remove(self, id: str) -> None:
        (self._folder / f"{id}.json").unlink(missing_ok=True)
        (self._folder / f"{id}.data").unlink(missing_ok=True)

    def _all(self) -> Iterator[StoredFile]:
        found = (self._read(path) for path in self._folder.glob("*.json"))
        return (file for file in found if file is not None)

    def _read(self, path: Path) -> StoredFile | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=StoredFile)
        except FileNotFoundError:
            return None  # another gateway has deleted it


def folder_of(settings: GatewaySettings, part: str) -> Path:
    """Where files or batches lie, which is there then. Raises NoFolder, and ConfigError where it cannot be made."""
    if not settings.files_dir:
        raise NoFolder("This gateway keeps no files and no batches: it was started without --files-dir.")
    folder = Path(settings.files_dir) / part
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"files_dir {settings.files_dir!r} cannot be used: {error.strerror}") from error
    return folder


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, whatever happens meanwhile."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
