"""What a callable carries: data that travel with it to every task.

That are the arguments of a :class:`functools.partial`, the ``self`` of a bound method, the objects
that a closure or the defaults of parameters have captured, and, for a function whose code
travels, the globals that it mentions.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["FUNCTIONS", "callable_name", "carried_by"]

# Callables that are code, rather than objects that can be called.
FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.WrapperDescriptorType,
    functools.partial,
    type,
)


def callable_name(function: Any) -> str:
    """Return what a callable is called in messages; no proxy is resolved for that."""
    kind = type(function)
    if kind is types.FunctionType:  # as most are
        name: str = function.__qualname__
        return name
    if kind is functools.partial:
        return f"partial({callable_name(function.func)})"
    if issubclass(kind, FUNCTIONS):
        return str(getattr(function, "__qualname__", kind.__name__))
    return kind.__name__


def carried_by(function: Any, enters: Callable[[Any], bool] | None = None) -> list[Any]:
    """Return what a callable carries, and what the callables among that carry in their turn.

    Args:
        function: the callable.
        enters: tells of one of those whether what it carries matters; all do, if ``None``.
    """
    carried: list[Any] = []
    seen = {id(function)}
    pending = [function]
    while pending:
        for one in _carried_at_once(pending.pop()):
            if id(one) not in seen:
                seen.add(id(one))
                carried.append(one)
                if enters is None or enters(one):
                    pending.append(one)
    return carried


def _carried_at_once(function: Any) -> Iterator[Any]:
    kind = type(function)
    if issubclass(kind, functools.partial):
        yield function.func
        yield from function.args
        yield from function.keywords.values()
    elif kind is types.FunctionType:
        yield from _captured_by(function)
    elif kind in (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType):
        yield function.__self__
        yield getattr(function, "__func__", None)


def _captured_by(function: types.FunctionType) -> Iterator[Any]:
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not set yet
            continue
    known = function.__globals__
    for code in _codes_of(function.__code__):
        yield from (known[name] for name in code.co_names if name in known)


def _codes_of(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes_of(constant)
