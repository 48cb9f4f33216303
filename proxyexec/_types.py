"""Types by name, and what their special methods tell: what a proxy knows before it has a target.

Python, and code in C, look for special methods on an object's type, not on the object, so a proxy
cannot leave the answer to its target. What a type answers are its *traits*. They travel with a
reference, as the bits of a number, and there is one proxy class for each set of traits.

This module knows neither references nor stores.
"""

from __future__ import annotations

import enum
import sys
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from wrapt import BaseObjectProxy

__all__ = [
    "NEVER_PROXIED",
    "describe",
    "find_function",
    "find_type",
    "namespace_for",
    "patterns_of",
    "traits_of",
]

# Types that code in C, numpy's first of all, tells by their memory and not by their methods.
_SCALARS = (int, float, complex, str, bytes)

# The bits of type.__flags__ by which Python tells what matches a sequence or mapping pattern.
_MATCHES_SEQUENCE = 1 << 5
_MATCHES_MAPPING = 1 << 6


# Types of objects that programs compare with ``is``, or that are what they are by being where
# they are: None, True, False and other singletons, enum members, classes and modules.
NEVER_PROXIED = (
    type(None),
    bool,
    type(...),
    type(NotImplemented),
    type,
    types.ModuleType,
    enum.Enum,
)


def describe(kind: type) -> tuple[str, int]:
    """Return a type's name and its traits.

    The name is ``module:qualname`` where the type is found under it, and ``module.qualname``
    where it is not, as a local class, or one whose name has been given to another.
    """
    found = _described.get(kind)
    if found is None:
        name = f"{kind.__module__}:{kind.__qualname__}"
        if find_type(name) is not kind:
            name = _IN_TYPES.get(kind) or name.replace(":", ".")
        found = _described[kind] = name, traits_of(kind)
    return found


def find_type(name: str) -> type | None:
    """Return the type called ``module:qualname``, imported when necessary, if there is one."""
    module_name, found_by_name, qualname = name.partition(":")
    if not found_by_name:
        return None
    try:
        found: Any = sys.modules.get(module_name) or import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception:  # noqa: BLE001 - an import can raise anything; unpickling will tell
        return None
    return found if isinstance(found, type) else None


def find_function(function: Any) -> bool:
    """Tell whether a function or class can be found by its name, as pickle does."""
    found: Any = sys.modules.get(function.__module__ or "")
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


def traits_of(kind: type) -> int:
    """Return the traits of a type: one bit for each of ``_TRAITS`` that it has."""
    return sum(1 << bit for bit, has in enumerate(_TRAITS.values()) if has(kind))


def namespace_for(traits: int) -> dict[str, Any]:
    """Return what a proxy class must have, beside wrapt's methods, for its targets' traits.

    Raises:
        ValueError: there are no such traits.
    """
    if not (isinstance(traits, int) and 0 <= traits < 1 << len(_TRAITS)):
        raise ValueError(f"there are no traits {traits!r}")
    namespace: dict[str, Any] = {}
    for bit, trait in enumerate(_TRAITS):
        if not traits >> bit & 1:
            if trait in _TAKEN_AWAY:
                namespace[trait] = None
        elif trait in _FORWARDED:
            namespace[trait] = _FORWARDED[trait]
    return namespace


def patterns_of(traits: int) -> list[Any]:
    """Return the abstract base classes that make objects match the patterns their targets do."""
    return [
        _PATTERNS[trait]
        for bit, trait in enumerate(_TRAITS)
        if traits >> bit & 1 and trait in _PATTERNS
    ]


def _find(kind: type, name: str) -> Any:
    """A special method, found as Python does: not on the type's own type."""
    for base in kind.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return _ABSENT


def _has(kind: type, *names: str) -> bool:
    return all(_find(kind, name) is not None and _find(kind, name) is not _ABSENT for name in names)


def _test_for(name: str) -> Callable[[type], bool]:
    return lambda kind: _has(kind, name)


def _by_name(name: str) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        target = self.__wrapped__
        return getattr(type(target), name)(target, *args, **kwargs)

    method.__name__ = name
    return method


def _call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
    return self.__wrapped__(*args, **kwargs)


def _iter(self: Any) -> Any:
    return iter(self.__wrapped__)


def _getitem(self: Any, index: Any) -> Any:
    return self.__wrapped__[index]


def _buffer(self: Any, flags: int) -> memoryview:
    # Python asks this view for what the flags say, and releases it, hence the target's.
    return memoryview(self.__wrapped__)


def _fspath(self: Any) -> str | bytes:
    target = self.__wrapped__
    if isinstance(target, (str, bytes)):
        return target
    path: str | bytes = type(target).__fspath__(target)
    return path


def _array(self: Any, dtype: Any = None, copy: bool | None = None) -> Any:
    import numpy as np  # noqa: PLC0415 - it is there: nobody else asks

    target = self.__wrapped__
    return np.asarray(target, dtype) if copy is None else np.array(target, dtype, copy=copy)


# The next two are called for proxies only because numpy looks at types: again with the targets.


def _array_ufunc(self: Any, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
    return getattr(ufunc, method)(*_targets(inputs), **_targets(kwargs))


def _array_function(self: Any, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
    return function(*_targets(args), **_targets(kwargs))


def _targets(value: Any) -> Any:
    """``value`` with the proxies in its lists, tuples and dictionaries replaced."""
    kind = type(value)
    if issubclass(kind, BaseObjectProxy):
        return value.__wrapped__
    # Subclasses too: numpy would call us for a proxy that is left in one, again and again.
    if issubclass(kind, list):
        return [_targets(one) for one in value]
    if issubclass(kind, tuple):
        return tuple(_targets(one) for one in value)
    if kind is dict:
        return {key: _targets(one) for key, one in value.items()}
    return value


_ABSENT: Any = object()

# Every trait, with the test for it. Its position is its bit. Most are the special methods of the
# same name, and whoever lacks the trait lacks the method. The exceptions say why.
_TRAITS: dict[str, Callable[[type], bool]] = {
    **{
        name: _test_for(name)
        for name in (
            "__aenter__",
            "__aexit__",
            "__aiter__",
            "__anext__",
            "__array_function__",
            "__await__",
            "__buffer__",
            "__call__",
            "__delete__",
            "__enter__",
            "__exit__",
            "__get__",
            "__hash__",
            "__iter__",
            "__len__",
            "__length_hint__",
            "__next__",
            "__set__",
            "__set_name__",
        )
    },
    # numpy makes arrays of these by looking at their memory; it asks others by attributes.
    "__array__": lambda kind: issubclass(kind, _SCALARS) and not _has(kind, "__array__"),
    # Any object can be an operand beside an array, and None forbids just that.
    "__array_ufunc__": lambda kind: _find(kind, "__array_ufunc__") is not None,
    # ``in`` falls back on iteration, and reversed() on positions, but not past a None.
    "__contains__": lambda kind: (
        _find(kind, "__contains__") is not None
        and any(_has(kind, name) for name in ("__contains__", "__iter__", "__getitem__"))
    ),
    "__reversed__": lambda kind: (
        _find(kind, "__reversed__") is not None
        and (_has(kind, "__reversed__") or _has(kind, "__len__", "__getitem__"))
    ),
    # What is a str or bytes needs no method to be taken for a path.
    "__fspath__": lambda kind: issubclass(kind, (str, bytes)) or _has(kind, "__fspath__"),
    # wrapt's makes a mapping. Written in Python it also makes a sequence, which iter(), numpy and
    # pandas look for; whoever looks at a dict or a str looks at its memory.
    "__getitem__": lambda kind: (
        _has(kind, "__getitem__")
        and not issubclass(kind, (dict, str, bytes))
        # numpy's scalars, and classes that set __iter__ to None, are no sequences.
        and (
            _has(kind, "__iter__")
            or not isinstance(_find(kind, "__getitem__"), types.WrapperDescriptorType)
        )
        and _find(kind, "__iter__") is not None
    ),
    # str is a Sequence that does not match, and numpy's arrays match and are none.
    "sequence": lambda kind: bool(
        kind.__flags__ & _MATCHES_SEQUENCE and issubclass(kind, Sequence)
    ),
    "mapping": lambda kind: bool(kind.__flags__ & _MATCHES_MAPPING and issubclass(kind, Mapping)),
}

_PATTERNS: dict[str, Any] = {"sequence": Sequence, "mapping": Mapping}

# What wrapt's proxies have of themselves, always. None in a class says that it cannot do it.
_TAKEN_AWAY = frozenset(
    {
        "__aenter__",
        "__aexit__",
        "__array_ufunc__",
        "__contains__",
        "__enter__",
        "__exit__",
        "__hash__",
        "__len__",
        "__reversed__",
    }
)

# What wrapt's proxies lack, or have in a form that will not do.
_FORWARDED: dict[str, Callable[..., Any]] = {
    **{
        name: _by_name(name)
        for name in (
            "__aiter__",
            "__anext__",
            "__await__",
            "__delete__",
            "__get__",
            "__length_hint__",
            "__next__",
            "__set__",
            "__set_name__",
        )
    },
    "__array__": _array,
    "__array_function__": _array_function,
    "__array_ufunc__": _array_ufunc,
    "__buffer__": _buffer,
    "__call__": _call,
    "__fspath__": _fspath,
    "__getitem__": _getitem,
    "__iter__": _iter,
}

# Python's own types that are not found where they say they are: functions, generators, …. Of
# several names for one, the first in the module is the plain one.
_IN_TYPES = {
    kind: f"types:{name}"
    for name, kind in reversed(list(vars(types).items()))
    if isinstance(kind, type)
}

_described: weakref.WeakKeyDictionary[type, tuple[str, int]] = weakref.WeakKeyDictionary()
