"""Names of callables: ``"module:qualname"``, found by imports and nothing else.

A name leads from a module through classes to what it names, never through another module, an
instance, or what Python keeps for itself (``__globals__``). So whoever may import some modules
only, gets at what those define, and not at what they have imported.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from proxyexec.errors import name_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CONTEXT",
    "TUPLE",
    "USUAL_POOL",
    "allowing",
    "find",
    "name_and_arguments",
    "name_of_callable",
]

_FORM = 'write "module:qualname", like "concurrent.futures:ThreadPoolExecutor"'

USUAL_POOL = "concurrent.futures:ProcessPoolExecutor"
"""The executor of configurations that name none."""

TUPLE, CONTEXT = "builtins:tuple", "multiprocessing:get_context"
"""What tuples, and contexts of multiprocessing, are written down as."""

# In all configurations, as we write them ourselves; and nothing else of these modules.
_ALWAYS_ALLOWED = {USUAL_POOL, TUPLE, CONTEXT}

# Prefixes of the modules that may be imported, while a configuration is loaded that may not import
# others.
_allowed: ContextVar[tuple[str, ...] | None] = ContextVar("_allowed", default=None)


@contextlib.contextmanager
def allowing(prefixes: Sequence[str] | None) -> Iterator[None]:
    """Have :func:`find` import only modules that start with one of ``prefixes``, within.

    Args:
        prefixes: names of modules, with all that are in them; ``None`` for all modules.

    Raises:
        TypeError: it is a single text.
    """
    if isinstance(prefixes, str):
        raise TypeError(f"allow must be a list of modules, like [{prefixes!r}]")
    before = _allowed.set(None if prefixes is None else tuple(prefixes))
    try:
        yield
    finally:
        _allowed.reset(before)


def find(name: str) -> Any:
    """Return what a name stands for, imported if need be.

    Raises:
        ValueError: it is no name, stands for nothing, or is not allowed; the message says which.
    """
    module_name, qualname = _parts(name)
    _check_allowed(module_name, name)
    try:
        # Asked for as import does, so that a package's module need not have been imported before.
        found: Any = import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _unimportable(name, error) from error
    where = module_name
    for part in qualname.split("."):
        if not (isinstance(found, type) or found is sys.modules.get(module_name)):
            raise ValueError(f"{name!r} leads through {where!r}, which is no class")
        try:
            inner = getattr(found, part)
        except AttributeError:
            close = difflib.get_close_matches(part, dir(found), 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name!r} is not there: {where!r} has no {part!r}{hint}") from None
        except Exception as error:  # of a module that imports what it has when it is asked for it
            raise _unimportable(name, error) from error
        found = inner
        home = _home(found)
        if home is not None:
            _check_allowed(home, name)
        where = f"{where}.{part}"
    if isinstance(found, ModuleType):
        raise ValueError(f"{name!r} is a module; {_FORM}")
    return found


def name_of_callable(function: Any) -> str:
    """Return the name of a function, a class, or a method that is bound to a class.

    Raises:
        ValueError: it has none that others can find it by; the message says why.
    """
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type):  # a class method, of a subclass perhaps
        module, qualname = owner.__module__, f"{owner.__qualname__}.{function.__name__}"
    elif inspect.ismethod(function):
        raise ValueError(
            f"the method {function.__qualname__!r} is bound to an object, which has no name; give "
            "a function, a class, or a method of a class"
        )
    else:
        module = getattr(function, "__module__", None) or ""
        qualname = getattr(function, "__qualname__", None) or ""
    if not (module and qualname) or not callable(function):
        kind = name_of(type(function))
        raise ValueError(f"an object of type {kind} has no name: give a function or a class")
    name = _shortest(module, qualname, function)
    try:
        with allowing(None):
            found = find(name)
    except ValueError as error:
        raise ValueError(f"{qualname!r} cannot be found by its name: {error}") from error
    if found != function:  # methods that are bound are made anew
        raise ValueError(f"{name!r} is another object than the one that was given")
    return name


def name_and_arguments(function: Callable[..., Any]) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the name of a callable, and the arguments that a :class:`functools.partial` adds.

    Raises:
        ValueError: it has no name.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        args = [*function.args, *args]
        kwargs = {**function.keywords, **kwargs}
        function = function.func
    return name_of_callable(function), args, kwargs


def _unimportable(name: str, error: BaseException) -> ValueError:
    return ValueError(f"{name!r} cannot be imported: {type(error).__name__}: {error}")


def _parts(name: Any) -> tuple[str, str]:
    if not isinstance(name, str):
        raise ValueError(f"a name is a text, not of type {name_of(type(name))}; {_FORM}")
    module, found, qualname = name.partition(":")
    if "<lambda>" in qualname:
        raise ValueError(f"{name!r} is a lambda, which has no name; define it with def")
    if "<locals>" in qualname:
        raise ValueError(
            f"{name!r} is defined inside of a function, where nobody can find it; define it at the "
            "top level of a module"
        )
    parts = [*module.split("."), *qualname.split(".")]
    if not found or not all(part.isidentifier() for part in parts):
        raise ValueError(f"{name!r} is not a name; {_FORM}")
    if any(part.startswith("__") for part in qualname.split(".")):
        raise ValueError(f"{name!r} has a name in it that is Python's own")
    return module, qualname


def _check_allowed(module: str, name: str) -> None:
    allowed = _allowed.get()
    if (
        allowed is None
        or name in _ALWAYS_ALLOWED
        or any(module == one or module.startswith(f"{one}.") for one in allowed)
    ):
        return
    listed = ", ".join(allowed) or "none"
    raise ValueError(f"{name!r} is of the module {module!r}, which is not allowed; {listed} is")


def _home(found: Any) -> str | None:
    """Return the name of the module that defines a function or class.

    Other objects do not tell, and are of the module that has them.
    """
    while True:
        if isinstance(found, functools.partial):
            found = found.func
        elif isinstance(typing.get_origin(found), type):  # list[int], which can be called as well
            found = typing.get_origin(found)
        else:
            break
    if not (isinstance(found, type) or inspect.isroutine(found)):
        return None
    # Methods that are written in C say which class they are of.
    owner = getattr(found, "__objclass__", None)
    return getattr(found, "__module__", None) or getattr(owner, "__module__", None) or "builtins"


def _shortest(module: str, qualname: str, function: Any) -> str:
    """Return the name by which one imports something: of a package, where that exports it."""
    first, _, rest = qualname.partition(".")
    packages = module.split(".")
    for length in range(1, len(packages)):
        package = sys.modules.get(".".join(packages[:length]))
        found = getattr(package, first, None)
        if isinstance(found, type) and found.__module__ == module:
            with contextlib.suppress(AttributeError):
                target = functools.reduce(getattr, rest.split("."), found) if rest else found
                if target == function:
                    return f"{'.'.join(packages[:length])}:{qualname}"
    return f"{module}:{qualname}"
