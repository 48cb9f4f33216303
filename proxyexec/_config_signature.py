"""Calls of what has a name, checked against its signature before they are made."""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from inspect import Parameter
from types import SimpleNamespace
from typing import Any, NamedTuple

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from proxyexec._config_names import find
from proxyexec._config_secrets import masked

__all__ = ["Call"]

_BY_PLACE = {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
_STARS: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
_LONGEST = 200
_BY_NAME = {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY}


class Call(NamedTuple):
    """A call of what has a name.

    Args:
        name: of the callable.
        args: its first arguments.
        kwargs: arguments by name; of those that Python takes by place only, too.
    """

    name: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}

    def load(self) -> Callable[..., Any]:
        """Return the callable.

        Raises:
            ValueError: it is not there, or cannot be called.
        """
        found = find(self.name)
        if not callable(found):
            raise ValueError(f"{self.name!r} cannot be called")
        function: Callable[..., Any] = found
        return function

    def check(self, is_settled: Callable[[Any], bool], made: Callable[[Any], Any]) -> None:
        """See that the callable would take these arguments, as far as its signature tells.

        Args:
            is_settled: whether the value that an argument stands for is known already.
            made: returns that value.

        Raises:
            ValueError: it would not; names what is missing, unknown or of a wrong type, and what
                is accepted.
        """
        function = self.load()
        parameters = _parameters(function)
        if parameters is None:
            return
        placed = self._placed(parameters)
        hints = _hints(function)
        for parameter, name, value in placed:
            if parameter.name in hints and is_settled(value):
                hint = hints[parameter.name]
                if not hint.runs_code:
                    self._converted(hint, parameter, name, made(value), value)

    def make(self, made: Callable[[Any], Any]) -> Any:
        """Make the call.

        Args:
            made: returns what an argument stands for.

        Raises:
            ValueError: see :meth:`check`.
            Exception: what the callable raised.
        """
        function = self.load()
        parameters = _parameters(function)
        if parameters is None:
            return function(*map(made, self.args), **{k: made(v) for k, v in self.kwargs.items()})
        hints = _hints(function)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        by_place: dict[str, Any] = {}
        for parameter, name, value in self._placed(parameters):
            obj = made(value)
            if parameter.name in hints:
                obj = self._converted(hints[parameter.name], parameter, name, obj, value)
            if isinstance(name, int):
                args.append(obj)
            elif parameter.kind is Parameter.POSITIONAL_ONLY:
                by_place[parameter.name] = obj
            else:
                kwargs[name] = obj
        args += _filled(parameters[len(args) :], by_place)
        return function(*args, **kwargs)

    def _placed(self, parameters: list[Parameter]) -> list[tuple[Parameter, int | str, Any]]:
        """Return which parameter each argument is for, and how it was given: by place or name."""
        by_place = [one for one in parameters if one.kind in _BY_PLACE]
        rest = next((one for one in parameters if one.kind is Parameter.VAR_POSITIONAL), None)
        placed: list[tuple[Parameter, int | str, Any]] = []
        for place, value in enumerate(self.args):
            if place >= len(by_place) and rest is None:
                raise ValueError(
                    f"{self.name!r} takes {len(by_place)} arguments by place, not "
                    f"{len(self.args)}; {_accepted(parameters)}"
                )
            placed.append((by_place[place] if place < len(by_place) else rest, place, value))  # type: ignore[arg-type]
        given = {parameter.name for parameter, _, _ in placed}
        others = next((one for one in parameters if one.kind is Parameter.VAR_KEYWORD), None)
        named = {one.name: one for one in parameters if one.kind in _BY_NAME}
        for name, value in self.kwargs.items():
            parameter = named.get(name)
            if parameter is not None and name in given:
                if others is None or parameter.kind is not Parameter.POSITIONAL_ONLY:
                    raise ValueError(f"{self.name!r} is given {name!r} twice: by place and by name")
                parameter = others
            if parameter is None and others is None:
                close = difflib.get_close_matches(name, named, 1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise ValueError(
                    f"{self.name!r} has no argument {name!r}{hint}; {_accepted(parameters)}"
                )
            placed.append((parameter or others, name, value))  # type: ignore[arg-type]
            given.add(name)
        missing = [
            one.name
            for one in parameters
            if one.kind in _BY_NAME and one.default is Parameter.empty and one.name not in given
        ]
        if missing:
            lacks = " and ".join(map(repr, missing))
            raise ValueError(f"{self.name!r} lacks {lacks}; {_accepted(parameters)}")
        return placed

    def _converted(
        self, hint: _Hint, parameter: Parameter, name: int | str, obj: Any, given: Any
    ) -> Any:
        try:
            return hint.adapter.validate_python(obj)
        except TypeError:  # of a protocol that says nothing of objects
            return obj
        except ValidationError as error:
            safe = masked(given, name if isinstance(name, str) else parameter.name)
            # Types that check by code of their own quote what they are given.
            tells = safe != given or "${" in repr(given)
            quotes = ("value_error", "assertion_error") if tells else ()
            problems = "; ".join(
                ".".join(map(str, one["loc"]))
                + (": " if one["loc"] else "")
                + ("is refused" if one["type"] in quotes else one["msg"].lower())
                for one in error.errors(include_input=False, include_url=False)
            )
            shown = _shortened(repr(safe))
        what = f"argument {name!r} of {self.name!r}"
        raise ValueError(f"{what} cannot be {shown}: {problems}")


class _Hint(NamedTuple):
    """What checks an argument, as its annotation says."""

    adapter: TypeAdapter[Any]
    runs_code: bool
    """Whether checking calls what the type defines itself: that is for when the call is made."""


def names_by_place(name: str, count: int) -> list[str]:
    """Return what the first arguments of a call are called; ``""`` where Python does not know."""
    try:
        parameters = _parameters(find(name)) or []
    except ValueError:
        parameters = []
    names = [one.name for one in parameters if one.kind in _BY_PLACE]
    rest = next((one.name for one in parameters if one.kind is Parameter.VAR_POSITIONAL), "")
    return [*names[:count], *[rest] * (count - len(names))]


def _parameters(function: Callable[..., Any]) -> list[Parameter] | None:
    """Return the parameters of a callable; ``None`` where Python does not know."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _hints(function: Callable[..., Any]) -> dict[str, _Hint]:
    """Return what checks arguments, by the names of parameters that say what they take."""
    while isinstance(function, functools.partial):
        function = function.func
    target: Any = function
    if isinstance(function, type):
        target = _with_hints().get(function, function)
        target = target.__init__ if target.__init__ is not object.__init__ else target.__new__
    elif not inspect.isroutine(function):
        target = type(function).__call__
    target = inspect.unwrap(getattr(target, "__func__", target))
    adapters = {}
    for name, annotation in getattr(target, "__annotations__", {}).items():
        if name == "return":
            continue
        alone = SimpleNamespace(__annotations__={name: annotation})
        try:
            hints = typing.get_type_hints(
                alone, getattr(target, "__globals__", {}), include_extras=True
            )
        except Exception:  # noqa: BLE001, S112 - of a name that only type checkers see, say
            continue
        adapter = _adapter(hints[name])
        parts = [] if adapter is None else list(_parts(adapter.core_schema))
        # Iterables would arrive as something that can be gone through once.
        if adapter is not None and not any(one.get("type") == "generator" for one in parts):
            adapters[name] = _Hint(adapter, any(map(_runs_code, parts)))
    return adapters


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    for config in (ConfigDict(arbitrary_types_allowed=True), None):
        try:
            return TypeAdapter(hint, config=config)
        except PydanticUserError:
            continue
        except Exception:  # noqa: BLE001 - not all annotations are types
            return None
    return None


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the parts of what pydantic makes of an annotation."""
    if isinstance(schema, dict):
        yield schema
        for name, one in schema.items():
            if name not in ("metadata", "serialization"):
                yield from _parts(one)
    elif isinstance(schema, (list, tuple)):
        for one in schema:
            yield from _parts(one)


def _runs_code(part: Mapping[str, Any]) -> bool:
    """Tell whether pydantic calls something that is not its own for a part, or imports it."""
    function = part.get("function", part.get("default_factory"))
    if isinstance(function, dict):
        function = function["function"]
    if callable(function):
        home = (getattr(function, "__module__", None) or "builtins").partition(".")[0]
        imports = getattr(function, "__name__", "") == "import_string"
        return imports or home not in ("pydantic", "pydantic_core", "builtins")
    return part.get("type") == "call" or any(part.get(one) for one in ("custom_init", "post_init"))


@functools.cache
def _with_hints() -> dict[Any, Any]:
    """The standard library's pools do not say what they take; ours, which take the same, do."""
    from proxyexec import pools  # noqa: PLC0415 - only now, as that takes the executor's room in

    return {
        futures.ProcessPoolExecutor: pools.ProcessPoolExecutor,
        futures.ThreadPoolExecutor: pools.ThreadPoolExecutor,
    }


def _accepted(parameters: Sequence[Parameter]) -> str:
    shown = []
    for one in parameters:
        stars = _STARS.get(one.kind, "")
        default = repr(masked(one.default, one.name) if _is_json(one.default) else one.default)
        given = "" if one.default is Parameter.empty else f"={_shortened(default)}"
        shown.append(f"{stars}{one.name}{given}")
    return f"it takes {', '.join(shown)}" if shown else "it takes no arguments"


def _is_json(value: Any) -> bool:
    return isinstance(value, (str, int, float, list, dict))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _filled(parameters: Sequence[Parameter], by_place: dict[str, Any]) -> list[Any]:
    """Return arguments by place, with the defaults of those that are passed over."""
    only = [one for one in parameters if one.kind is Parameter.POSITIONAL_ONLY]
    last = max((at for at, one in enumerate(only) if one.name in by_place), default=-1)
    return [by_place.get(one.name, one.default) for one in only[: last + 1]]
