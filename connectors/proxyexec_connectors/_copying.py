"""Copies of large memory, while other threads run: Python's own ones keep all of them waiting.

A copy of 100 MB takes some hundredths of a second, several times that where its pages are new.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from proxyexec_connectors._layout import flatten
from proxyexec_connectors._mapping import LONG_COPY, Address

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["bytearray_of", "bytes_of"]


def bytes_of(buffer: Buffer) -> bytes:
    """Return a copy as ``bytes``; what is ``bytes`` already is its own."""
    if type(buffer) is bytes:
        return buffer
    view = flatten(buffer)
    return bytes(view) if view.nbytes < LONG_COPY else _filled(_new_bytes, view)


def bytearray_of(buffer: Buffer) -> bytearray:
    """Return a copy as ``bytearray``."""
    view = flatten(buffer)
    return bytearray(view) if view.nbytes < LONG_COPY else _filled(_new_bytearray, view)


def _filled(new: Any, view: memoryview) -> Any:
    # Without content, as long as nobody else knows it; that is how C makes one piece by piece.
    copy = new(None, view.nbytes)
    with Address(copy) as target, Address(view) as source:
        ctypes.memmove(target, source, view.nbytes)  # which lets go of the GIL
    return copy


_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytearray = ctypes.pythonapi.PyByteArray_FromStringAndSize
for _new in (_new_bytes, _new_bytearray):
    _new.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)
    _new.restype = ctypes.py_object
