"""Typed errors <-> gRPC status.

A BatonError leaves a server as the matching status code, its message as details, and the whole error in the
trailing metadata key `baton-error-bin` (a serialized `Error`), from which a client makes the same class again.
"""

from __future__ import annotations

from typing import Any

import grpc

from baton.core.errors import (
    BatonError,
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestTooLarge,
    Unavailable,
)
from baton.rpc.convert import error_from_pb, error_to_pb
from baton.rpc.v1 import common_pb2 as pb

ERROR_METADATA_KEY = "baton-error-bin"

_STATUS: list[tuple[type[BatonError], grpc.StatusCode]] = [
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (RequestTooLarge, grpc.StatusCode.INVALID_ARGUMENT),
    (ModelNotFound, grpc.StatusCode.NOT_FOUND),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Cancelled, grpc.StatusCode.CANCELLED),
    (InternalError, grpc.StatusCode.INTERNAL),
]


def status_code(error: BaseException) -> grpc.StatusCode:
    for cls, code in _STATUS:
        if isinstance(error, cls):
            return code
    return grpc.StatusCode.UNAVAILABLE if isinstance(error, BatonError) else grpc.StatusCode.INTERNAL


async def abort(context: grpc.aio.ServicerContext, error: BaseException) -> None:
    """End the call with the status that belongs to `error`. Never returns normally."""
    message = error_to_pb(error)
    await context.abort(status_code(error), message.message, ((ERROR_METADATA_KEY, message.SerializeToString()),))


def from_rpc_error(error: grpc.aio.AioRpcError) -> BatonError:
    """The typed error behind a failed call; a broken connection becomes Unavailable."""
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == ERROR_METADATA_KEY:
            return error_from_pb(pb.Error.FromString(value if isinstance(value, bytes) else value.encode("latin-1")))
    details = error.details() or error.code().name
    by_code: dict[grpc.StatusCode, type[BatonError]] = {code: cls for cls, code in reversed(_STATUS)}
    return by_code.get(error.code(), Unavailable)(details)
