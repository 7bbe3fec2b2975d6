"""One batch: what is known of it, on disk and for clients."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
Ending = Literal["completed", "expired", "cancelled"]
OVER: tuple[Status, ...] = ("completed", "failed", "expired", "cancelled")


class Batch(msgspec.Struct, kw_only=True):
    """Times are seconds since 1970. `key_id`: the API key whose limits it uses; empty = none was asked for.

    `ending`: what it becomes when its files are written. `total`: lines of the input that are not empty.
    """

    id: str
    tenant: str
    key_id: str
    cache_salt: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    output_ttl_s: float = 0.0
    status: Status = "validating"
    ending: Ending | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] = msgspec.field(default_factory=list)
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    def body(self) -> dict[str, Any]:
        """OpenAI's batch object; what has not happened is left out."""
        names = (
            "id", "endpoint", "input_file_id", "completion_window", "status", "output_file_id", "error_file_id",
            "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at",
            "cancelling_at", "cancelled_at", "metadata",
        )  # fmt: skip
        told = {name: value for name in names if (value := getattr(self, name)) is not None}
        counts = {"total": self.total, "completed": self.completed, "failed": self.failed}
        errors = {"errors": {"object": "list", "data": self.errors}} if self.errors else {}
        return {**told, "object": "batch", "request_counts": counts, **errors}
