"""What an object is, by how its stored form begins; nothing is unpickled, hence nothing run.

For those who look from outside: a type is what the bytes say, and may be none. See
``_serialize`` and ``_payloads`` for the forms, and :mod:`pickletools` for what a pickle says.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import pickletools
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from proxyexec_connectors.listing import ObjectStart

__all__ = ["type_of"]

# Steps of a pickle that are followed.
_STEPS_AT_MOST = 5000

_NUMBERS = {
    "?": "bool",
    **dict(zip("bhilq", ("int8", "int16", "int32", "int64", "int64"), strict=True)),
    **dict(zip("BHILQ", ("uint8", "uint16", "uint32", "uint64", "uint64"), strict=True)),
    **dict(zip("efdg", ("float16", "float32", "float64", "longdouble"), strict=True)),
    **dict(zip("FDG", ("complex64", "complex128", "clongdouble"), strict=True)),
}


def type_of(start: ObjectStart) -> str:
    """Return what the type of an object seems to be; empty if that cannot be told."""
    with contextlib.suppress(Exception):  # they may be anybody's bytes
        return _type_of(start)
    return ""


def _type_of(start: ObjectStart) -> str:
    envelope, *others = start.starts
    kind = envelope[:1]
    if kind in (b"b", b"a"):
        return "bytes" if kind == b"b" else "bytearray"
    if kind == b"n":
        # After the envelope's own five bytes: the type of the numbers, their order, and a flag.
        char, header = envelope[5:6].decode("ascii"), envelope[8:]
        shape = struct.unpack(f"<{len(header) // 8}q", header)
        return f"numpy.ndarray {_NUMBERS[char]}[{', '.join(map(str, shape))}]"
    if kind in (b"p", b"i"):
        return _Stack().type_of(others[0])
    if kind == b"P":
        strategy = envelope.split()[1].decode("ascii")
        return f"by {strategy}"
    if kind == b"{":
        facts = json.loads(envelope)
        return f"{facts['kind']} {facts.get('name', '')}".rstrip()
    return ""


class _Made(NamedTuple):
    """What is on the stack of a pickle, as far as it is of interest."""

    type: str
    value: str = ""
    """Of a text; of a class, or a function, its name."""


_MARK = _Made("mark")
_CLASS = "class"


# How much is taken from the stack to fill what is below it.
_FILLED_BY = {"BUILD": 1, "APPEND": 1, "SETITEM": 2}


class _Stack:
    """The stack of a pickle, of types in place of objects."""

    def __init__(self) -> None:
        self._stack: list[_Made] = []
        self._memo: dict[int, _Made] = {}

    def type_of(self, stream: bytes) -> str:
        """Return the type of what a pickle holds, of which this is the beginning."""
        # Where it ends too early, what comes first is what all the rest goes into.
        with contextlib.suppress(ValueError):
            for number, (operation, argument, _) in enumerate(pickletools.genops(stream)):
                if operation.name == "STOP" or number == _STEPS_AT_MOST:
                    break
                self._follow(operation, argument)
        made = next(iter(self._stack), _Made(_first(stream)))
        if made.type == _CLASS:
            return made.value
        return "tuple" if made is _MARK else made.type.removeprefix("builtins.")

    def _follow(self, operation: Any, argument: Any) -> None:
        name, stack = operation.name, self._stack
        if name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name.endswith("PUT"):
            self._memo[int(argument)] = stack[-1]
        elif name.endswith("GET"):
            stack.append(self._memo[int(argument)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _FILLED_BY:
            del stack[-_FILLED_BY[name] :]
        elif name in ("APPENDS", "SETITEMS", "ADDITEMS"):
            while stack.pop() is not _MARK:
                pass
        elif not self._make(name, argument):
            self._apply(operation, argument)

    def _make(self, name: str, argument: Any) -> bool:
        """Follow a step that names a class or calls one; tell whether it is such a step."""
        stack = self._stack
        if name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Made(_CLASS, f"{module.value}.{attribute.value}"))
        elif name == "GLOBAL":
            stack.append(_Made(_CLASS, str(argument).replace(" ", ".")))
        elif name in ("NEWOBJ", "NEWOBJ_EX"):
            del stack[-1 if name == "NEWOBJ" else -2 :]
            stack.append(_Made(stack.pop().value))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_Made(_result_of(function.value, arguments.value)))
        else:
            return False
        return True

    def _apply(self, operation: Any, argument: Any) -> None:
        stack = self._stack
        taken: list[_Made] = []
        before = [one.name for one in operation.stack_before]
        if "mark" in before:
            while stack[-1] is not _MARK:
                taken.insert(0, stack.pop())
            stack.pop()
            before = before[: before.index("mark")]
        for _ in before:
            taken.insert(0, stack.pop())
        for one in operation.stack_after:
            kind = one.obtype[0] if isinstance(one.obtype, tuple) else one.obtype
            value = (
                argument
                if isinstance(argument, str)
                else next((each.value for each in taken if each.type == _CLASS), "")
            )
            is_frozen = operation.name == "FROZENSET"
            made = "frozenset" if is_frozen else getattr(kind, "__name__", one.name)
            stack.append(_Made(made, value))


def _first(stream: bytes) -> str:
    """The type of what a pickle begins with, which is too long to be followed: a text, say."""
    place = 2 if stream[:1] == pickle.PROTO else 0
    place += 9 if stream[place : place + 1] == pickle.FRAME else 0
    code = stream[place : place + 1].decode("latin-1")
    for operation in pickletools.opcodes:
        if operation.code == code and operation.stack_after:
            return getattr(operation.stack_after[0].obtype, "__name__", "")
    return ""


def _result_of(function: str, first: str) -> str:
    """What a function makes, the first class among whose arguments is known."""
    if function.startswith("numpy.") and function.endswith(("._reconstruct", "._frombuffer")):
        return first or "numpy.ndarray"
    if function == "copyreg._reconstructor":
        return first
    if function.endswith("._make_function"):  # cloudpickle's
        return "function"
    return function
