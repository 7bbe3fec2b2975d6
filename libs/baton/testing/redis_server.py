"""A private Redis server for a test: on a Unix socket, in memory only, ended with the test."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import TracebackType

from baton.runtime.redis_binary import bundled_redis_server, find_redis_server, private_server_command

__all__ = ["RedisServer", "bundled_redis_server", "find_redis_server"]

_START_S = 20.0


class RedisServer:
    """One server process of the binary `path`, listening on `socket_path` (at most 107 bytes long).

    May be started again after `stop` or `kill`: it comes back empty. Use as a context manager to have it ended.
    """

    def __init__(self, path: Path, socket_path: Path, *options: str) -> None:
        self._path = path
        self._socket_path = socket_path
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket_path}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it accepts connections."""
        self._socket_path.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [*private_server_command(self._path, self._socket_path), *self._options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_S
        while not self._socket_path.is_socket():
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._path} ended with code {self._process.returncode}")
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self._path} did not listen within {_START_S:g} s")
            time.sleep(0.005)

    def stop(self) -> None:
        """End it politely."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """End it like a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
