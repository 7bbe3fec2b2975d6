"""One-sided reads on the handles of UCX's own objects: the part of UCP that UCXX's Python interface leaves out.

UCXX makes contexts, workers and endpoints, and gives their C handles; memory, remote keys and reads are called here by
ctypes. All calls must come from the thread that uses the worker. Names and numbers are those of UCX's stable interface
(`ucp/api/ucp.h`, 1.10 and later).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeAlias

from baton.kv.transport import TransportError

Handle: TypeAlias = int
Get: TypeAlias = Callable[[int, int, int], Handle]

_OK, _IN_PROGRESS, _LAST_ERROR = 0, 1, -100
_FIELD_ADDRESS, _FIELD_LENGTH = 1 << 0, 1 << 1
_FIELD_MEMH = 1 << 8
_FIRST_ERROR_POINTER = (1 << 64) + _LAST_ERROR  # UCX returns a request, NULL, or a negative status as a pointer


class _MapParams(ctypes.Structure):
    _fields_ = [
        ("field_mask", ctypes.c_uint64),
        ("address", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("unused", ctypes.c_uint64 * 8),
    ]


class _RequestParam(ctypes.Structure):
    _fields_ = [
        ("op_attr_mask", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("before_memh", ctypes.c_void_p * 7),
        ("memh", ctypes.c_void_p),
        ("unused", ctypes.c_uint64 * 8),
    ]


class Ucp:
    """The functions of a loaded libucp that are needed here. Raises TransportError with UCX's reason."""

    def __init__(self, library: ctypes.CDLL, support: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t

        def function(owner: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            bound = getattr(owner, name)
            bound.restype, bound.argtypes = result, arguments
            return bound

        self._map = function(library, "ucp_mem_map", ctypes.c_int, pointer, pointer, pointer)
        self._unmap = function(library, "ucp_mem_unmap", ctypes.c_int, pointer, pointer)
        self._pack = function(library, "ucp_rkey_pack", ctypes.c_int, pointer, pointer, pointer, pointer)
        self._free_packed = function(library, "ucp_rkey_buffer_release", None, pointer)
        self._unpack = function(library, "ucp_ep_rkey_unpack", ctypes.c_int, pointer, pointer, pointer)
        self._destroy_key = function(library, "ucp_rkey_destroy", None, pointer)
        self._get = function(library, "ucp_get_nbx", pointer, pointer, pointer, size, ctypes.c_uint64, pointer, pointer)
        self._status = function(library, "ucp_request_check_status", ctypes.c_int8, pointer)
        self._free = function(library, "ucp_request_free", None, pointer)
        self._reason = function(support, "ucs_status_string", ctypes.c_char_p, ctypes.c_int8)

    def map(self, context: Handle, address: int, length: int) -> Handle:
        """Register memory with a context, until `unmap`."""
        params = _MapParams(_FIELD_ADDRESS | _FIELD_LENGTH, address, length)
        memory = ctypes.c_void_p()
        self._check(self._map(context, ctypes.byref(params), ctypes.byref(memory)), "registering memory")
        assert memory.value is not None
        return memory.value

    def unmap(self, context: Handle, memory: Handle) -> None:
        self._check(self._unmap(context, memory), "deregistering memory")

    def pack_key(self, context: Handle, memory: Handle) -> bytes:
        """What a peer needs, besides the address, to read from registered memory."""
        packed, size = ctypes.c_void_p(), ctypes.c_size_t()
        self._check(self._pack(context, memory, ctypes.byref(packed), ctypes.byref(size)), "packing a remote key")
        try:
            return ctypes.string_at(packed, size.value)
        finally:
            self._free_packed(packed)

    def unpack_key(self, endpoint: Handle, packed: bytes) -> Handle:
        key = ctypes.c_void_p()
        self._check(self._unpack(endpoint, packed, ctypes.byref(key)), "unpacking a remote key")
        assert key.value is not None
        return key.value

    def destroy_key(self, key: Handle) -> None:
        self._destroy_key(key)

    def reader(self, endpoint: Handle, key: Handle, memory: Handle, local_base: int, remote_base: int) -> Get:
        """A function (own offset, bytes, peer's offset) -> request that starts one read; 0: it is complete.

        Offsets are from the two bases. The request must be given to `finished` until that returns True.
        """
        get, param = self._get, ctypes.byref(_RequestParam(op_attr_mask=_FIELD_MEMH, memh=memory))

        def read(local: int, size: int, remote: int) -> Handle:
            request: Handle = get(endpoint, local_base + local, size, remote_base + remote, key, param) or 0
            if request >= _FIRST_ERROR_POINTER:
                self._check(request - (1 << 64), "a read")
            return request

        return read

    def finished(self, request: Handle) -> bool:
        """Whether a read is over; then the request is gone. Raises TransportError when it failed."""
        status = self._status(request)
        if status == _IN_PROGRESS:
            return False
        self._free(request)
        self._check(status, "a read")
        return True

    def _check(self, status: int, what: str) -> None:
        if status != _OK:
            raise TransportError(f"{what} failed: {self._reason(status).decode()}")
