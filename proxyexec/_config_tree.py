"""Configurations as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from proxyexec._config_policy import (
    AdaptivePolicy,
    AllPolicy,
    AlwaysPolicy,
    AnyPolicy,
    CustomPolicy,
    NeverPolicy,
    NotPolicy,
    SizePolicy,
    TypePolicy,
)
from proxyexec._config_secrets import masked, masked_url, unset
from proxyexec._config_values import CALL, NAME
from proxyexec._sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proxyexec._config_stack import StoreExecutorSpec

__all__ = ["tree_of", "warnings_of"]


class _Node(NamedTuple):
    text: str
    below: Sequence[_Node] = ()


def tree_of(spec: StoreExecutorSpec) -> list[str]:
    """Return the lines of a tree that shows a configuration, without its secrets."""
    stack = [_executor(spec.executor), _store(spec.store), _policy(spec.should_proxy)]
    stack[-1] = stack[-1]._replace(text=f"should_proxy: {stack[-1].text}")
    if spec.serializers is not None:
        stack.append(_Node("serializers", _options(spec.serializers, ())))
    shown = {"version", "executor", "store", "should_proxy", "serializers"}
    stack += _options(spec, shown)
    return list(_lines(_Node("StoreExecutor", stack)))


def warnings_of(spec: StoreExecutorSpec) -> list[str]:
    """Return what a user may want to know of a configuration, though it is right."""
    warnings = []
    if spec.should_proxy is None or isinstance(spec.should_proxy, NeverPolicy):
        warnings.append(
            'nothing goes through the store: say what should, as in should_proxy = "1 MB"'
        )
    names = dict.fromkeys(_unset(spec.model_dump()))
    return [*warnings, *(f"the environment variable {name} is not set here" for name in names)]


def _unset(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from unset(value)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _unset(one)
    elif isinstance(value, list):
        for one in value:
            yield from _unset(one)


def _executor(spec: Any) -> _Node:
    life = "shared, shut down by its owner" if spec.life == "persistent" else "shut down with it"
    below = [_value(name, one) for name, one in masked(spec.kwargs).items()]
    for field in ("submit_method", "map_method", "shutdown_method"):
        default = type(spec).model_fields[field].default
        if getattr(spec, field) != default:
            below.append(_Node(f"{field}: {getattr(spec, field) or 'none'}"))
    return _Node(f"executor: {spec.type} ({life})", below)


def _store(spec: Any) -> _Node:
    if spec is None:
        return _Node("store: in memory, or in shared memory and files, as the executor needs it")
    below = _options(spec, {"url", "serializer", "max_bytes", "cache_bytes"})
    if spec.serializer is not None:
        below.insert(0, _value("serializer", masked(spec.serializer.as_value())))
    for name in ("max_bytes", "cache_bytes"):
        if getattr(spec, name):
            below.append(_Node(f"{name}: {format_size(getattr(spec, name))}"))
    return _Node(f"store: {masked_url(spec.url)}", below)


def _policy(spec: Any) -> _Node:
    match spec:
        case None | NeverPolicy():
            return _Node("nothing")
        case AlwaysPolicy():
            return _Node("everything")
        case SizePolicy():
            return _Node(f"at least {format_size(spec.minimum)}")
        case AdaptivePolicy():
            return _Node("what is cheaper to store", _options(spec, {"kind"}))
        case TypePolicy():
            return _Node(f"instances of {' or '.join(spec.types)}")
        case AllPolicy():
            return _Node("all of", [_policy(one) for one in spec.policies])
        case AnyPolicy():
            return _Node("any of", [_policy(one) for one in spec.policies])
        case NotPolicy():
            return _Node("not", [_policy(spec.policy)])
        case CustomPolicy():
            below = [_value(name, one) for name, one in masked(spec.kwargs or {}).items()]
            return _Node(f"as {spec.policy} says", below)
        case _:
            return _Node(str(spec.kind))


def _options(spec: Any, shown: Any) -> list[_Node]:
    """Return what differs from what is usual."""
    return [
        _value(name, masked(getattr(spec, name), name))
        for name, field in type(spec).model_fields.items()
        if name not in shown and getattr(spec, name) != field.default
    ]


def _value(name: str, value: Any) -> _Node:
    if isinstance(value, dict):
        if NAME in value:
            return _Node(f"{name}: {value[NAME]}")
        if CALL in value:
            below = [_value(str(at), one) for at, one in enumerate(value.get("args", ()))]
            below += [_value(key, one) for key, one in value.get("kwargs", {}).items()]
            return _Node(f"{name}: {value[CALL]}(...)", below)
        return _Node(name, [_value(key, one) for key, one in value.items()])
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return _Node(f"{name}: {', '.join(value)}")
    if isinstance(value, bool):
        return _Node(f"{name}: {'yes' if value else 'no'}")
    return _Node(f"{name}: {'none' if value is None else value}")


def _lines(node: _Node) -> Iterator[str]:
    yield node.text
    for one in node.below:
        is_last = one is node.below[-1]
        first, *others = _lines(one)
        yield f"{'└── ' if is_last else '├── '}{first}"
        for line in others:
            yield f"{'    ' if is_last else '│   '}{line}"
