"""Frames of the local socket: a little-endian uint32 length, then one msgpack message of `baton.kv.local`."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from baton.core.errors import InternalError
from baton.kv.local import AgentMessage, Message, WorkerMessage

MAX_FRAME_BYTES = 64 << 20
_LENGTH = struct.Struct("<I")


def encode(message: Message) -> bytes:
    """One frame. Safe to call from any thread."""
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise InternalError(f"a {type(message).__name__} of {len(body)} bytes exceeds a frame's {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Cuts a byte stream into messages; keeps what is not complete yet."""

    def __init__(self, kind: object) -> None:
        self._decoder: msgspec.msgpack.Decoder[object] = msgspec.msgpack.Decoder(kind)
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[object]:
        """The messages that `data` completes. Raises InternalError when the stream cannot be understood."""
        self._pending += data
        at = 0
        try:
            while len(self._pending) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._pending, at)
                if length > MAX_FRAME_BYTES:
                    raise InternalError(f"a frame of {length} bytes on the local socket exceeds {MAX_FRAME_BYTES}")
                end = at + _LENGTH.size + length
                if len(self._pending) < end:
                    break
                body = bytes(self._pending[at + _LENGTH.size : end])
                at = end
                yield self._decode(body)
        finally:
            del self._pending[:at]

    def _decode(self, body: bytes) -> object:
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise InternalError(f"a message on the local socket cannot be read: {error}") from error


def from_worker() -> FrameDecoder:
    """Decoder of the agent's side: yields WorkerMessage."""
    return FrameDecoder(WorkerMessage)


def from_agent() -> FrameDecoder:
    """Decoder of the worker's side: yields AgentMessage."""
    return FrameDecoder(AgentMessage)
