"""Arrays of numbers to frames and back, without pickle.

Pickling an array with its buffer out of band takes a hundred steps in Python and ends in a dozen
bytes: a type, a shape, an order. Here these are written as such, in a tenth of the time. This
is for exact ``numpy.ndarray`` of native numbers, contiguous either way; all else is pickled.

Imports numpy only where there are arrays.
"""

from __future__ import annotations

import copyreg
import functools
import pickle
import struct
from importlib import import_module
from typing import TYPE_CHECKING, Any

from proxyexec_connectors._copying import bytearray_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["array_in", "frames_of_array", "is_array_type"]

# The type of the numbers, the order, whether the array can be written to; then the shape.
_HEADER = struct.Struct("<cc?")

# Smaller arrays are copied into a pickle: a frame costs more than it saves.
_SMALLEST = 2048

# Types of numbers, as numpy abbreviates them. Others have more to them than that.
_NUMBERS = frozenset("?bhilqpBHILQPefdgFDG")
_CHARS = frozenset(char.encode() for char in _NUMBERS)


def is_array_type(kind: Any) -> bool:
    """Tell whether a type is ``numpy.ndarray``, and pickled in the usual way."""
    return (
        kind.__name__ == "ndarray"
        and kind.__module__ == "numpy"
        and kind not in copyreg.dispatch_table
    )


def frames_of_array(array: Any, *, writable: bool) -> tuple[bytes, memoryview] | None:
    """Return what an array is, and its memory; ``None`` if it has to be pickled.

    Args:
        array: of exactly the type ``numpy.ndarray``.
        writable: whether it arrives writable, even if it is not.
    """
    kind, flags = array.dtype, array.flags
    if (
        array.nbytes < _SMALLEST
        or kind.char not in _NUMBERS
        or kind.isbuiltin != 1  # as are those in another byte order
        or kind.metadata is not None
    ):
        return None
    if flags.c_contiguous:
        order, buffer = b"C", array
    elif flags.f_contiguous:
        order, buffer = b"F", array.T
    else:
        return None
    header = _HEADER.pack(_as_pickled(kind.char), order, writable or flags.writeable)
    shape = struct.pack(f"<{array.ndim}q", *array.shape)
    return header + shape, pickle.PickleBuffer(buffer).raw()


@functools.lru_cache(maxsize=64)
def _as_pickled(char: str) -> bytes:
    """Return how a type arrives: of two for the same numbers, pickle knows one."""
    numpy = import_module("numpy")
    arriving: str = numpy.dtype(numpy.dtype(char).str).char
    return arriving.encode()


def array_in(header: bytes, buffer: Buffer) -> Any:
    """Return the array that :func:`frames_of_array` described, in the memory of ``buffer``.

    Raises:
        Exception: the header does not describe the buffer.
    """
    char, order, writable = _HEADER.unpack_from(header)
    # Others would have numpy take the bytes for addresses of objects, or for nothing.
    if char not in _CHARS:
        raise ValueError(f"{char!r} is no type of numbers")
    shape = struct.unpack(f"<{(len(header) - _HEADER.size) // 8}q", header[_HEADER.size :])
    if shape == (-1,):  # numpy would work it out; it refuses other negative lengths
        raise ValueError("an array of negative length")
    view = memoryview(buffer)
    if writable and view.readonly:
        view = memoryview(bytearray_of(view))
    elif not writable:
        view = view.toreadonly()
    numpy = import_module("numpy")
    array = numpy.ndarray(shape, char.decode(), view, order=order.decode())
    if array.nbytes != view.nbytes:
        raise ValueError(f"an array of {array.nbytes} bytes in {view.nbytes}")
    return array
