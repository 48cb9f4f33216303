"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

__all__ = ["parse_size"]

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
