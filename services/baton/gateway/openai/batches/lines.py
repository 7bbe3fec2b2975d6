"""Lines of a batch: requests that come in, entries that go out, and the journal of what was answered."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

_MOST_LINES = 50_000  # OpenAI's limit


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One request. `number` counts from 1, empty lines too."""

    number: int
    custom_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no request; `custom_id` where it could be read."""

    number: int
    message: str
    custom_id: str | None = None


class TooManyLines(Exception):
    """A batch has at most 50,000 of them."""


def count_lines(path: Path) -> int:
    """Lines that are not empty. Raises TooManyLines."""
    count = 0
    with path.open("rb") as file:
        for line in file:
            count += not line.isspace()
            if count > _MOST_LINES:
                raise TooManyLines(f"A batch can have at most {_MOST_LINES} requests.")
    return count


def read_lines(path: Path, endpoint: str, limit_bytes: int) -> Iterator[RequestLine | BadLine]:
    """The lines that are not empty, in their order. A bad one, or one beyond `limit_bytes`, costs nothing else."""
    known: set[str] = set()
    with path.open("rb") as file:
        number = 0
        while line := file.readline(limit_bytes + 1):
            number += 1
            if len(line) > limit_bytes and not line.endswith(b"\n"):
                _skip_line(file.readline, limit_bytes)
                yield BadLine(number, f"The line is longer than this server's limit of {limit_bytes} bytes.")
            elif not line.isspace():
                yield _read(number, line, endpoint, known)


def _skip_line(readline: Any, limit_bytes: int) -> None:
    while (rest := readline(limit_bytes)) and not rest.endswith(b"\n"):
        pass


def _read(number: int, line: bytes, endpoint: str, known: set[str]) -> RequestLine | BadLine:
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return BadLine(number, f"The line is not valid JSON: {error}")
    if not isinstance(content, dict):
        return BadLine(number, "The line must be a JSON object.")
    custom_id, body = content.get("custom_id"), content.get("body")
    if not isinstance(custom_id, str):
        return BadLine(number, "Missing required parameter: 'custom_id', a string.")
    problem = _problem(content, endpoint)
    if custom_id in known:
        problem = f"The custom_id '{custom_id[:200]}' was used before in this batch."
    known.add(custom_id)
    if problem is not None or not isinstance(body, dict):
        return BadLine(number, problem or "Missing required parameter: 'body', an object.", custom_id)
    return RequestLine(number, custom_id, body)


def _problem(content: dict[str, Any], endpoint: str) -> str | None:
    if content.get("method") != "POST":
        return "Invalid value for 'method': it must be 'POST'."
    if content.get("url") != endpoint:
        return f"Invalid value for 'url': it must be '{endpoint}', the batch's endpoint."
    body = content.get("body")
    if isinstance(body, dict) and body.get("stream"):
        return "Invalid value for 'body.stream': answers of a batch are not streamed."
    return None


def answer_entry(line: RequestLine, request_id: str, status: int, body: Any) -> dict[str, Any]:
    """What becomes of a request that was answered, well or not."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": new_entry_id(), "custom_id": line.custom_id, "response": response, "error": None}


def error_entry(custom_id: str | None, code: str, message: str) -> dict[str, Any]:
    """What becomes of a line that was not run."""
    error = {"code": code, "message": message}
    return {"id": new_entry_id(), "custom_id": custom_id, "response": None, "error": error}


def new_entry_id() -> str:
    return f"batch_req_{secrets.token_hex(12)}"


class Journal:
    """Entries of the answered lines, appended one by one; what a killed gateway had half written is cut off."""

    def __init__(self, path: Path) -> None:
        self.done: set[int] = set()
        self.completed = 0
        self.failed = 0
        self._path = path
        whole_bytes = 0
        for record, size in _records(path):
            whole_bytes += size
            self._count(record)
        self._file = path.open("ab")
        os.truncate(path, whole_bytes)

    def add(self, number: int, entry: dict[str, Any], *, ok: bool) -> None:
        """Written to the system when this returns, not to the disk: it survives the process."""
        record = {"line": number, "ok": ok, "entry": entry}
        self._file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()
        self._count(record)

    def split(self, output: Path, errors: Path) -> None:
        """Write the entries of answers to `output`, all others to `errors`."""
        with output.open("wb") as good, errors.open("wb") as bad:
            for record, _ in _records(self._path):
                data = orjson.dumps(record["entry"], option=orjson.OPT_APPEND_NEWLINE)
                (good if record["ok"] else bad).write(data)

    def close(self) -> None:
        self._file.close()

    def _count(self, record: dict[str, Any]) -> None:
        self.done.add(record["line"])
        self.completed += record["ok"]
        self.failed += not record["ok"]


def _records(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The whole records and their sizes in bytes."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield orjson.loads(line), len(line)
