"""Sizes in bytes: as people write them, and of objects whose pickle need not be made to know."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

__all__ = ["parse_size", "size_bound"]

_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt])?(i)?b?", re.IGNORECASE)


def parse_size(size: int | str) -> int:
    """Turn ``"1 MB"`` (10⁶), ``"1 MiB"`` (2²⁰) or a number into bytes.

    Raises:
        ValueError: it is negative, or not a size.
    """
    if isinstance(size, str):
        found = _SIZE.fullmatch(size.strip())
        if found is None:
            raise ValueError(f"not a size: {size!r}; write 1000000, '1 MB' or '1.5 MiB'")
        number, prefix, binary = found.groups()
        base = 1024 if binary else 1000
        exponent = " kmgt".index((prefix or " ").lower())
        return round(float(number) * float(base**exponent))
    if size < 0:
        raise ValueError(f"a size cannot be negative: {size}")
    return int(size)


def size_bound(obj: Any) -> int | None:
    """Return an upper bound for the serialized size in bytes of a *plain* object.

    Plain objects contain no others: numbers, strings, arrays of them. ``None`` is the answer
    for all else: exact types only, for what a subclass pickles is its own affair.
    """
    kind = type(obj)
    bound = _BOUNDS.get(kind)
    if bound is None:
        if kind.__name__ != "ndarray" or kind.__module__ != "numpy":
            return None
        bound = _BOUNDS[kind] = _array_bound
    return bound(obj)


def _array_bound(array: Any) -> int | None:
    # One letter for each kind of number; others (objects, records, dates) carry more.
    return array.nbytes + 512 if array.dtype.char in "?bhilqpBHILQPefdgFDG" else None


_BOUNDS: dict[type, Callable[[Any], int | None]] = {
    type(None): lambda _: 32,
    bool: lambda _: 32,
    int: lambda obj: obj.bit_length() // 8 + 32,
    float: lambda _: 32,
    complex: lambda _: 96,
    str: lambda obj: 4 * len(obj) + 32,
    bytes: lambda obj: len(obj) + 32,
}
