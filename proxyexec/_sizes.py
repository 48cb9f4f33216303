"""Sizes in bytes: as people write them, and of objects whose pickle need not be made to know.

Two kinds of objects tell their size. *Plain* ones contain no others: numbers, strings, arrays of
numbers. *Data* are plain ones and those made of such: data frames, tables, sparse matrices.
Libraries are told by names, so that none has to be imported.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any

__all__ = [
    "TINY",
    "about_size",
    "container_bound",
    "data_size",
    "format_size",
    "holds_data",
    "parse_size",
    "root_of",
    "size_bound",
]

_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt])?(i)?b?", re.IGNORECASE)
_MOST_DIGITS = 100  # a float has no more than some 300


def parse_size(size: int | str) -> int:
    """Turn ``"1 MB"`` (10⁶), ``"1 MiB"`` (2²⁰) or a number into bytes.

    Raises:
        ValueError: it is negative, or not a size.
    """
    if isinstance(size, str):
        found = _SIZE.fullmatch(size.strip())
        if found is None or len(found[1]) > _MOST_DIGITS:
            raise ValueError(f"not a size: {size!r}; write 1000000, '1 MB' or '1.5 MiB'")
        number, prefix, binary = found.groups()
        base = 1024 if binary else 1000
        exponent = " kmgt".index((prefix or " ").lower())
        return round(float(number) * float(base**exponent))
    if size < 0:
        raise ValueError(f"a size cannot be negative: {size}")
    return int(size)


def format_size(size: float) -> str:
    """Return a number of bytes as people write it, with three digits: ``"1.5 MB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if abs(size) < 1000 else f"{size:,.0f} TB"


def size_bound(obj: Any) -> int | None:
    """Return an upper bound for the serialized size in bytes of a *plain* object.

    Plain objects contain no others: numbers, strings, arrays of them. ``None`` is the answer
    for all else: exact types only, for what a subclass pickles is its own affair.
    """
    kind = type(obj)
    bound = _BOUNDS.get(kind)
    if bound is None:
        if kind.__module__ != "numpy":
            return None
        bound = _numpy_bound(kind)
        if bound is None:
            return None
        _BOUNDS[kind] = bound
    return bound(obj)


def container_bound(obj: Any) -> int | None:
    """Return an upper bound for the serialized size of a small container of plain objects.

    ``None`` is the answer for all else: larger ones are pickled to know.
    """
    return _bound_inside(obj, [_LOOKED_AT]) if type(obj) in _CONTAINERS else None


def _bound_inside(container: Any, left: list[int]) -> int | None:
    kind = type(container)
    left[0] -= len(container)
    if left[0] < 0:
        return None
    total = 32
    for item in container if kind is not dict else (*container, *container.values()):
        bound = size_bound(item)
        if bound is None:
            bound = _bound_inside(item, left) if type(item) in _CONTAINERS else None
            if bound is None:
                return None
        total += bound
    return total


def data_size(obj: Any) -> int | None:
    """Return about how many bytes an object holds that consists of data; ``None`` for all else."""
    kind: Any = type(obj)
    measure = _measure_of(kind)
    return None if measure is None else measure(obj)


def about_size(obj: Any) -> int:
    """Return about how many bytes an object takes serialized, where that is known at once.

    0 is the answer for all else, and for numbers.
    """
    kind = type(obj)
    if kind in TINY:
        return 0
    if kind is str:
        return len(obj) if obj.isascii() else sys.getsizeof(obj)
    try:
        return data_size(obj) or container_bound(obj) or 0
    except Exception:  # noqa: BLE001 - objects of others, which may be anything
        return 0


def holds_data(kind: type) -> bool:
    """Tell whether objects of a type may consist of data."""
    return _measure_of(kind) is not None


@functools.lru_cache(maxsize=1024)
def _measure_of(kind: type) -> Callable[[Any], int | None] | None:
    if kind in _BUILTIN_DATA:
        return len
    for base in kind.__mro__:
        found = _MEASURES.get((root_of(base), base.__name__))
        if found is not None:
            return found
    return None


def root_of(kind: type) -> str:
    """Return the name of the package that a type is from."""
    # Types made by Cython may have something else than text there.
    return str(kind.__module__).partition(".")[0]


def _of_array(array: Any) -> int | None:
    return None if array.dtype.hasobject else int(array.nbytes)


def _of_series(series: Any) -> int | None:
    return None if series.dtype == _OBJECT else int(series.memory_usage(index=False))


def _of_frame(frame: Any) -> int | None:
    if any(dtype == _OBJECT for dtype in frame.dtypes):
        return None
    return int(frame.memory_usage(index=False).sum())


def _of_sparse(matrix: Any) -> int | None:
    # Of those without the attribute (lists of lists, dicts of keys), nothing is known.
    data = getattr(matrix, "data", None)
    return _of_array(data) if hasattr(data, "dtype") else None


def _nbytes(obj: Any) -> int | None:
    return int(obj.nbytes)


def _numpy_bound(kind: type) -> Callable[[Any], int | None] | None:
    if kind.__name__ == "ndarray":
        return _array_bound
    names = {base.__name__ for base in kind.__mro__}
    return _scalar_bound if names & {"number", "bool", "bool_"} else None


def _scalar_bound(scalar: Any) -> int:
    return int(scalar.nbytes) + 256


def _array_bound(array: Any) -> int | None:
    # One letter for each kind of number; others (objects, records, dates) carry more.
    return array.nbytes + 512 if array.dtype.char in "?bhilqpBHILQPefdgFDG" else None


TINY: frozenset[type] = frozenset({type(None), bool, int, float, complex})
"""Types whose objects are not worth measuring."""

_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})

# In so many objects at most it is looked for plain ones; more are pickled faster than looked at.
_LOOKED_AT = 128

# As numpy and pandas name the type of what holds any objects.
_OBJECT = "object"

_BUILTIN_DATA = frozenset({str, bytes, bytearray})

_MEASURES: dict[tuple[str, str], Callable[[Any], int | None]] = {
    ("numpy", "ndarray"): _of_array,
    ("pandas", "DataFrame"): _of_frame,
    ("pandas", "Series"): _of_series,
    ("polars", "DataFrame"): lambda frame: int(frame.estimated_size()),
    ("polars", "Series"): lambda series: int(series.estimated_size()),
    ("pyarrow", "Array"): _nbytes,
    ("pyarrow", "ChunkedArray"): _nbytes,
    ("pyarrow", "RecordBatch"): _nbytes,
    ("pyarrow", "Table"): _nbytes,
    ("scipy", "_spbase"): _of_sparse,
    ("scipy", "spmatrix"): _of_sparse,
    ("torch", "Tensor"): _nbytes,
}

_BOUNDS: dict[type, Callable[[Any], int | None]] = {
    type(None): lambda _: 32,
    bool: lambda _: 32,
    int: lambda obj: obj.bit_length() // 8 + 32,
    float: lambda _: 32,
    complex: lambda _: 96,
    str: lambda obj: 4 * len(obj) + 32,
    bytes: lambda obj: len(obj) + 32,
}
