"""Arguments in a configuration: values of JSON, and what stands for other objects.

::

    {"$name": "package.module:function"}                    the function, or class, itself
    {"$call": "multiprocessing:get_context",                what a call of it returns
     "args": [...], "kwargs": {"method": "spawn"}}

A mapping that has a key starting with ``$`` is one of these or an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.context import BaseContext
from typing import Any

from proxyexec._config_names import CONTEXT, TUPLE, find, name_and_arguments
from proxyexec._config_secrets import expanded, has_reference
from proxyexec._config_signature import Call
from proxyexec.errors import name_of

__all__ = ["CALL", "NAME", "checked", "is_settled", "made"]

NAME, CALL = "$name", "$call"

_KEYS = {NAME: {NAME}, CALL: {CALL, "args", "kwargs"}}


def checked(value: Any, where: str) -> Any:
    """Return a value as it stands in a configuration; what is named has to be there.

    Args:
        value: of JSON, or a callable that has a name, a tuple, or a context of multiprocessing.
        where: it is, for messages.

    Raises:
        ValueError: a configuration cannot hold it.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        has_reference(value)  # which sees that they are written as they should be
        return str.__str__(value)  # of a member of an enumeration, its text
    if isinstance(value, Mapping):
        return _checked_mapping(value, where)
    if isinstance(value, list):
        return [checked(one, f"{where}[{place}]") for place, one in enumerate(value)]
    return _checked_object(value, where)


def _checked_object(value: Any, where: str) -> Any:
    """Return what stands for an object that JSON has not."""
    if isinstance(value, tuple):
        return {CALL: TUPLE, "args": [checked(list(value), where)]}
    if isinstance(value, BaseContext):
        method = value.get_start_method()
        return {CALL: CONTEXT, "kwargs": {"method": method}}
    to_value = getattr(value, "as_value", None)  # a specification of a call
    if callable(to_value) and not isinstance(value, type):
        return to_value()
    if callable(value):
        try:
            name, args, kwargs = name_and_arguments(value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if not (args or kwargs):
            return {NAME: name}
        partial = {CALL: "functools:partial", "args": [{NAME: name}, *args], "kwargs": kwargs}
        return checked(partial, where)
    raise ValueError(
        f"{where} is of type {name_of(type(value))}, which a configuration cannot hold; give what "
        'JSON has, a function or class that has a name, or {"$call": "module:qualname", ...}'
    )


def is_settled(value: Any) -> bool:
    """Tell whether a value is known without the environment, and without calling anything."""
    if isinstance(value, str):
        return not has_reference(value)
    if isinstance(value, dict):
        return CALL not in value and all(map(is_settled, value.values()))
    return not isinstance(value, list) or all(map(is_settled, value))


def made(value: Any) -> Any:
    """Return what a value of a configuration stands for. Calls are made, references replaced.

    Raises:
        ValueError: a variable is not set.
        Exception: what a call raised.
    """
    if isinstance(value, str):
        return expanded(value)
    if isinstance(value, list):
        return [made(one) for one in value]
    if not isinstance(value, dict):
        return value
    if NAME in value:
        return find(value[NAME])
    if CALL in value:
        call = Call(value[CALL], value.get("args", ()), value.get("kwargs", {}))
        return call.make(made)
    return {key: made(one) for key, one in value.items()}


def _checked_mapping(value: Mapping[Any, Any], where: str) -> Any:
    keys = list(value)
    if not all(isinstance(key, str) for key in keys):
        raise ValueError(f"{where} is a mapping with keys that are no texts")
    marks = [key for key in keys if key.startswith("$")]
    if not marks:
        return {key: checked(one, f"{where}[{key!r}]") for key, one in value.items()}
    mark = marks[0]
    extra = set(keys) - _KEYS.get(mark, set())
    if mark not in _KEYS or extra:
        raise ValueError(
            f'{where}: keys that start with "$" are for {{"$name": "module:qualname"}} and '
            '{"$call": "module:qualname", "args": [...], "kwargs": {...}}, not '
            f"for {', '.join(map(repr, keys))}"
        )
    try:
        if mark == NAME:
            find(value[NAME])
            return {NAME: value[NAME]}
        args, kwargs = value.get("args", []), value.get("kwargs", {})
        if not (isinstance(args, (list, tuple)) and isinstance(kwargs, Mapping)):
            raise ValueError("args must be a list, and kwargs a mapping")
        args = checked(list(args), where)
        kwargs = {name: checked(one, f"{where}[{name!r}]") for name, one in kwargs.items()}
        Call(value[CALL], args, kwargs).check(is_settled, made)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    call: dict[str, Any] = {CALL: value[CALL]}
    if args:
        call["args"] = args
    if kwargs:
        call["kwargs"] = kwargs
    return call
