"""Whether two objects are the same to the last bit, and where they are not.

Stricter than ``==``: types are exact, not-a-number is equal to itself, minus zero is not zero,
arrays have the same flags, dictionaries the same order, and what is one object twice on one
side is so on the other, cycles included. Proxies on the first side count as their targets.
"""

from __future__ import annotations

import copyreg
import enum
import math
import mmap
import struct
import types
from collections.abc import Iterator
from typing import Any

from proxyexec import extract

# Compared by value only: whether two of these are one object is nobody's promise.
_ATOMS = (int, str, bytes, float, complex, bool, type(None))

_BY_IDENTITY = (type, types.ModuleType, enum.Enum)


def difference(one: Any, other: Any) -> str:
    """Say where two objects differ first, or ``""`` if they do not."""
    return next(_Comparison().compare(one, other, "it"), "")


class _Comparison:
    """What has been seen so far, of both sides."""

    def __init__(self) -> None:
        self._partners: dict[int, int] = {}
        self._reverse: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def compare(self, one: Any, other: Any, at: str) -> Iterator[str]:
        one = extract(one)
        if one is other:
            return
        if type(one) is not type(other):
            yield f"{at}: {type(one)} {one!r:.200} is not of {type(other)} {other!r:.200}"
        elif issubclass(type(other), _BY_IDENTITY):
            if one is not other:
                yield f"{at}: {one!r} is not {other!r}"
        elif type(other) in _ATOMS:
            if _bits(one) != _bits(other):
                yield f"{at}: {one!r:.200} != {other!r:.200}"
        elif not self._is_empty_tuple(other) and not self._is_known(one, other):
            if self._partners.get(id(one)) != id(other) or self._reverse.get(id(other)) != id(one):
                yield f"{at}: is one object with another on one side only"
            else:
                yield from self._contents(one, other, at)

    def _is_empty_tuple(self, obj: Any) -> bool:
        return type(obj) is tuple and not obj  # there is but one

    def _is_known(self, one: Any, other: Any) -> bool:
        known = id(one) in self._partners and self._partners[id(one)] == id(other)
        self._kept += [one, other]
        self._partners.setdefault(id(one), id(other))
        self._reverse.setdefault(id(other), id(one))
        return known

    def _contents(self, one: Any, other: Any, at: str) -> Iterator[str]:
        kind = type(other)
        module = kind.__module__.partition(".")[0]
        if kind is list or kind is tuple:
            yield from self._sequences(one, other, at)
        elif kind is dict:
            yield from self._sequences(list(one), list(other), f"keys of {at}")
            for (key, value), counterpart in zip(one.items(), other.values(), strict=False):
                yield from self.compare(value, counterpart, f"{at}[{key!r:.50}]")
        elif kind is set or kind is frozenset:
            yield from self._sequences(sorted(one, key=repr), sorted(other, key=repr), at)
        elif kind is bytearray:
            if one != other:
                yield f"{at}: {one!r:.200} != {other!r:.200}"
        elif kind is types.FunctionType or kind is types.CodeType:
            yield from self._functions(one, other, at)
        elif kind is types.BuiltinFunctionType or kind is types.MethodType:
            yield from self.compare(one.__name__, other.__name__, f"{at}.__name__")
            yield from self.compare(one.__self__, other.__self__, f"{at}.__self__")
        elif kind is mmap.mmap:
            return  # of the same type
        elif isinstance(other, BaseException):
            yield from self._errors(one, other, at)
        elif module == "numpy" and hasattr(other, "__array_interface__") or _is_array(other):
            yield from self._arrays(one, other, at)
        elif module == "pandas":
            yield from self._frames(one, other, at)
        elif module == "torch" and hasattr(other, "numpy"):
            yield from self._tensors(one, other, at)
        else:
            yield from self._reduced(one, other, at)

    def _sequences(self, one: Any, other: Any, at: str) -> Iterator[str]:
        if len(one) != len(other):
            yield f"{at}: {len(one)} items are not {len(other)}"
        if all(type(part) in _ATOMS for part in other) and _all_bits(one) == _all_bits(other):
            return
        for number, (part, counterpart) in enumerate(zip(one, other, strict=False)):
            yield from self.compare(part, counterpart, f"{at}[{number}]")

    def _functions(self, one: Any, other: Any, at: str) -> Iterator[str]:
        if one is not other and getattr(one, "__code__", one) != getattr(other, "__code__", other):
            yield f"{at}: {one!r} is not {other!r}"

    def _errors(self, one: Any, other: Any, at: str) -> Iterator[str]:
        yield from self.compare(one.args, other.args, f"{at}.args")
        yield from self.compare(vars(one), vars(other), f"vars({at})")
        for name in ("__context__", "__suppress_context__", "__cause__"):
            mine, theirs = getattr(one, name), getattr(other, name)
            if type(mine).__name__ != "_RemoteTraceback":
                yield from self.compare(mine, theirs, f"{at}.{name}")
            elif type(theirs) is not type(mine):
                yield f"{at}.{name}: {mine!r} is no {theirs!r}"

    def _arrays(self, one: Any, other: Any, at: str) -> Iterator[str]:
        yield from self._dtypes(one.dtype, other.dtype, f"{at}.dtype")
        flags = ("c_contiguous", "f_contiguous", "writeable", "aligned")
        for name in ("shape", *flags):
            mine = getattr(one if name == "shape" else one.flags, name)
            theirs = getattr(other if name == "shape" else other.flags, name)
            if mine != theirs:
                yield f"{at}: {name} {mine} is not {theirs}"
        yield from self.compare(getattr(one, "__dict__", {}), getattr(other, "__dict__", {}), at)
        if hasattr(other, "mask"):
            one, other = one.data, other.data  # the rest is in the dictionaries
        if other.dtype.hasobject or other.dtype.kind == "T":
            yield from self._sequences(one.ravel().tolist(), other.ravel().tolist(), at)
        elif other.dtype.names:
            for name in other.dtype.names:  # without what lies between them
                yield from self._arrays(one[name], other[name], f"{at}[{name!r}]")
        elif _values(one) != _values(other):
            yield f"{at}: {one!r:.200} != {other!r:.200}"

    def _dtypes(self, one: Any, other: Any, at: str) -> Iterator[str]:
        if (one, one.isnative, one.metadata) != (other, other.isnative, other.metadata):
            yield f"{at}: {one!r} is not {other!r}"

    def _frames(self, one: Any, other: Any, at: str) -> Iterator[str]:
        kind = type(other).__name__
        if kind == "DataFrame":
            yield from self.compare(one.columns, other.columns, f"{at}.columns")
            for number in range(other.shape[1]):
                mine, theirs = one.iloc[:, number], other.iloc[:, number]
                yield from self.compare(mine.array, theirs.array, f"{at}.iloc[:, {number}]")
        elif kind == "Series":
            yield from self.compare(one.array, other.array, f"{at}.array")
        if hasattr(other, "index") and hasattr(other, "attrs"):
            yield from self.compare(one.index, other.index, f"{at}.index")
            yield from self.compare(one.attrs, other.attrs, f"{at}.attrs")
            if one.flags != other.flags:
                yield f"{at}.flags: {one.flags} is not {other.flags}"
            yield from self.compare(getattr(one, "name", 0), getattr(other, "name", 0), at)
        else:
            yield from self._reduced(one, other, at)

    def _tensors(self, one: Any, other: Any, at: str) -> Iterator[str]:
        for name in ("dtype", "shape", "requires_grad", "device"):
            if getattr(one, name) != getattr(other, name):
                yield f"{at}.{name} is not the same"
        if one.stride() != other.stride() or not bool((one == other).all()):
            yield f"{at}: {one!r} != {other!r}"

    def _reduced(self, one: Any, other: Any, at: str) -> Iterator[str]:
        """Compare what the objects say is needed to make them again."""
        mine, theirs = _parts(one), _parts(other)
        if isinstance(theirs, str):
            if one is not other:
                yield f"{at}: {one!r} is not {other!r}"
            return
        yield from self.compare(mine, theirs, f"{at}:{type(other).__name__}")


def _is_array(obj: Any) -> bool:
    return any(f"{one.__module__}.{one.__name__}" == "numpy.ndarray" for one in type(obj).__mro__)


def _values(array: Any) -> bytes:
    """The bytes of an array's values; those of long doubles are padded with anything."""
    if array.dtype.char in "gG":
        array = array.astype("f8" if array.dtype.char == "g" else "c16")
    values: bytes = array.tobytes("A")
    return values


def _bits(atom: Any) -> Any:
    if type(atom) is float:
        return struct.pack("d", math.copysign(math.nan, atom) if atom != atom else atom)
    if type(atom) is complex:
        return _bits(atom.real), _bits(atom.imag)
    return atom


def _all_bits(atoms: Any) -> list[Any]:
    return [(type(one), _bits(one)) for one in map(extract, atoms)]


def _parts(obj: Any) -> Any:
    """What pickle would take of an object, iterators drawn to their end."""
    if type(obj) is object:
        return ["object"]
    reduce = copyreg.dispatch_table.get(type(obj))
    parts = reduce(obj) if reduce else obj.__reduce_ex__(4)
    if isinstance(parts, str):
        return parts
    return [list(part) if place in (3, 4) and part else part for place, part in enumerate(parts)]
