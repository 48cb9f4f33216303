"""Types by name, and their special methods: what a proxy must know before it has its target."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any

from wrapt import BaseObjectProxy

__all__ = ["describe", "find_function", "find_type", "namespace_for", "special_methods"]

# Special methods that wrapt's proxies lack, and how each is forwarded. Where the name is the
# whole story, None stands for "call the method of that name".
_ADDED = (
    "__aiter__",
    "__anext__",
    "__await__",
    "__array_function__",
    "__array_priority__",
    "__array_ufunc__",
    "__buffer__",
    "__call__",
    "__delete__",
    "__fspath__",
    "__get__",
    "__iter__",
    "__length_hint__",
    "__next__",
    "__release_buffer__",
    "__set__",
    "__set_name__",
)

# Special methods that wrapt's proxies always have, and by which programs and abstract base
# classes tell what an object can do. None in a class says that it cannot.
_TAKEN_AWAY = (
    "__aenter__",
    "__aexit__",
    "__contains__",
    "__enter__",
    "__exit__",
    "__hash__",
    "__len__",
    "__reversed__",
)


def describe(kind: type) -> tuple[str, tuple[str, ...]]:
    """Return a type's name, and its special methods where the name will not be enough."""
    found = _described.get(kind)
    if found is None:
        name = f"{kind.__module__}:{kind.__qualname__}"
        elsewhere = kind.__module__ != "__main__" and find_type(name) is kind
        found = _described[kind] = name, () if elsewhere else special_methods(kind)
    return found


def find_type(name: str) -> type | None:
    """Return the type called ``module:qualname``, imported when necessary, if there is one."""
    module_name, _, qualname = name.partition(":")
    module = sys.modules.get(module_name)
    try:
        found: Any = module or import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found if isinstance(found, type) else None


def find_function(function: Any) -> bool:
    """Tell whether a function or class can be found by its name, as pickle does."""
    found: Any = sys.modules.get(function.__module__ or "")
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


@functools.lru_cache(maxsize=1024)
def special_methods(kind: type) -> tuple[str, ...]:
    """Return the names of a type's special methods that make a difference to its proxies."""
    return tuple(name for name in _TOLD_APART if getattr(kind, name, None) is not None)


def namespace_for(methods: tuple[str, ...], target_of: Callable[[Any], Any]) -> dict[str, Any]:
    """Return what a proxy class needs beside wrapt's methods to have exactly ``methods``."""
    namespace: dict[str, Any] = {name: None for name in _TAKEN_AWAY if name not in methods}
    for name in _ADDED:
        if name in methods:
            namespace[name] = _FORWARDED.get(name, _by_name)(name, target_of)
    if "__getitem__" in methods and "__iter__" not in methods:
        # iter() of a class with only __getitem__ asks for a sequence's slot, which is made
        # from a method written in Python, not from wrapt's for mappings.
        namespace["__getitem__"] = _by_name("__getitem__", target_of)
    return namespace


def _by_name(name: str, target_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        target = target_of(self)
        return getattr(type(target), name)(target, *args, **kwargs)

    method.__name__ = name
    return method


def _forward_call(name: str, target_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def __call__(self: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        return target_of(self)(*args, **kwargs)

    return __call__


def _forward_iter(name: str, target_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def __iter__(self: Any) -> Any:  # noqa: N807
        return iter(target_of(self))

    return __iter__


def _forward_priority(name: str, target_of: Callable[[Any], Any]) -> Any:
    return property(lambda self: target_of(self).__array_priority__)


def _forward_ufunc(name: str, target_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def __array_ufunc__(  # noqa: N807
        self: Any, ufunc: Any, method: str, *inputs: Any, **kwargs: Any
    ) -> Any:
        # Called for proxies only because numpy looks at types: do it again with the targets.
        if "out" in kwargs:
            kwargs["out"] = _targets(kwargs["out"], target_of)
        return getattr(ufunc, method)(*_targets(inputs, target_of), **kwargs)

    return __array_ufunc__


def _forward_function(name: str, target_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def __array_function__(  # noqa: N807
        self: Any, function: Any, types: Any, args: Any, kwargs: Any
    ) -> Any:
        return function(*_targets(args, target_of), **_targets(kwargs, target_of))

    return __array_function__


def _targets(value: Any, target_of: Callable[[Any], Any]) -> Any:
    """``value`` with the proxies in its lists, tuples and dictionaries replaced."""
    kind = type(value)
    if kind in (list, tuple):
        return kind(_targets(one, target_of) for one in value)
    if kind is dict:
        return {key: _targets(one, target_of) for key, one in value.items()}
    return target_of(value) if issubclass(kind, BaseObjectProxy) else value


_FORWARDED = {
    "__array_function__": _forward_function,
    "__array_priority__": _forward_priority,
    "__array_ufunc__": _forward_ufunc,
    "__call__": _forward_call,
    "__iter__": _forward_iter,
}

_TOLD_APART = (*_ADDED, *_TAKEN_AWAY, "__getitem__")

_described: weakref.WeakKeyDictionary[type, tuple[str, tuple[str, ...]]] = (
    weakref.WeakKeyDictionary()
)
