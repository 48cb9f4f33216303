"""Configurations from files, from mappings, and from the environment."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from proxyexec._config_lives import PersistentExecutor
from proxyexec._config_names import allowing
from proxyexec._config_stack import StoreExecutorSpec, located
from proxyexec.errors import ConfigError, MissingExtraError, name_of

__all__ = ["PREFIX", "load", "read"]

PREFIX = "PROXYEXEC_"
"""What the names of environment variables start with."""

_FORMATS = {".json": "json", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}

_MOST_VALUES = 100_000

# What a text alone stands for, in the parts that have more to them.
_ALONE = {"executor": "type", "store": "url"}


def load(
    source: Any = None, *, allow: Sequence[str] | None = None, environment: bool = True
) -> StoreExecutorSpec:
    """Return a checked configuration; see :meth:`proxyexec.StoreExecutor.from_config`.

    Args:
        source: the path of a file, a mapping, a specification, or ``None``.
        allow: modules that may be imported, with all that are in them; any for ``None``.
        environment: whether environment variables fill in what it does not say.

    Raises:
        ConfigError: something is wrong with it; says where, and what.
        OSError: the file cannot be read.
        MissingExtraError: what reads such a file is not installed.
    """
    if source is None and environment:
        source = os.environ.get(f"{PREFIX}CONFIG") or None
    name = ""
    is_file = isinstance(source, (str, os.PathLike))
    if is_file:
        name = os.fspath(source)
        data = read(name)
    elif isinstance(source, StoreExecutorSpec):
        data = {field: getattr(source, field) for field in source.model_fields_set}
    elif source is None or isinstance(source, Mapping):
        data = dict(source or {})
    else:
        raise TypeError(
            "a configuration is a path, a mapping or a StoreExecutorSpec, not of type "
            f"{name_of(type(source))}"
        )
    variables: list[str] = []
    if environment:
        given, variables = _from_environment()
        # What a program says, it means; a file is for all places where it is used.
        data = _merged(data, given) if is_file else _merged(given, data)
    try:
        with allowing(allow):
            return StoreExecutorSpec.model_validate(data)
    except ValidationError as error:
        where = " with ".join(filter(None, [name, ", ".join(variables)]))
        raise ConfigError(located(error), where) from None


def read(path: str) -> dict[str, Any]:
    """Return what a file of JSON, TOML or YAML says, unchecked.

    Raises:
        ConfigError: it is none of these, or no mapping.
        OSError: it cannot be read.
        MissingExtraError: what reads such a file is not installed.
    """
    ending = os.path.splitext(path)[1].lower()
    form = _FORMATS.get(ending)
    if form is None:
        known = ", ".join(_FORMATS)
        raise ConfigError([("", f"the name of a configuration ends in one of {known}")], path)
    with open(path, "rb") as file:
        blob = file.read()
    try:
        data = _READERS[form](blob.decode("utf-8-sig"))  # with the mark of some editors, or not
        _refuse_endless(data)
    except ImportError as error:
        raise MissingExtraError(f"a configuration in {form.upper()}", "config") from error
    except RecursionError:
        raise ConfigError([("", f"this {form.upper()} is nested too deeply")], path) from None
    except Exception as error:  # noqa: BLE001 - each reader has its own
        raise ConfigError([("", f"this is no {form.upper()}: {_reason(error)}")], path) from None
    if not isinstance(data, dict):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        raise ConfigError([("", f"a configuration is a mapping, and this is {kind}")], path)
    return data


class _Variables(EnvSettingsSource):
    """Environment variables. A part can be given by a text, and more of it beside that."""

    def prepare_field_value(
        self, field_name: str, field: Any, value: Any, value_is_complex: bool
    ) -> Any:
        alone = None if value is None else _of_json(value, only=(dict, list))
        beside = self.explode_env_vars(field_name, field, self.env_vars)
        if not beside:
            return alone
        if not isinstance(alone, dict):
            alone = {} if alone is None else {_ALONE.get(field_name, "kind"): alone}
        return {**alone, **_texts_read(beside)}


class _Environment(BaseSettings):
    """What environment variables can say; checked together with what others say."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,
    )

    executor: Any = None
    store: Any = None
    should_proxy: Any = None
    ownership: Any = None
    close_store: Any = None
    lazy: Any = None
    nested: Any = None
    dedupe: Any = None
    serializers: Any = None
    task_group: Any = None
    task_group_max_age: Any = None

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        return (_Variables(settings_cls),)


def _from_environment() -> tuple[dict[str, Any], list[str]]:
    """Return what environment variables say, and which ones do."""
    environment = _Environment()
    said = {name: getattr(environment, name) for name in environment.model_fields_set}
    starts = [f"{PREFIX}{name.upper()}" for name in said]
    variables = [
        name
        for name in sorted(os.environ)
        if any(name.upper() == start or name.upper().startswith(f"{start}__") for start in starts)
    ]
    return said, variables


def _merged(data: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` with what is ``above`` it in its place, part by part."""
    merged = {**data, **above}
    for name in data.keys() & above.keys():
        below, over = (_as_mapping(name, one) for one in (data[name], above[name]))
        if below is not None and over is not None and not _replaces(over, below):
            merged[name] = _deeply(below, over)
    return merged


def _as_mapping(name: str, part: Any) -> dict[str, Any] | None:
    """Return a part as a mapping, its arguments where they belong; ``None`` if it is none."""
    if isinstance(part, str) and name in _ALONE:
        part = {_ALONE[name]: part}
    if not isinstance(part, Mapping):
        return None
    if name != "executor":
        return dict(part)
    fields = PersistentExecutor.model_fields
    beside = {key: one for key, one in part.items() if key not in fields}
    known = {key: one for key, one in part.items() if key in fields}
    kwargs = known.get("kwargs", {})
    if not isinstance(kwargs, Mapping):
        return dict(part)
    return {**known, "kwargs": {**kwargs, **beside}}


def _replaces(over: Mapping[str, Any], below: Mapping[str, Any]) -> bool:
    """Tell that it is about something else: the rest of what was said is not for that."""
    return any(key in over and over[key] != below.get(key) for key in ("type", "kind"))


def _deeply(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**below, **over}
    for name in below.keys() & over.keys():
        if isinstance(below[name], Mapping) and isinstance(over[name], Mapping):
            merged[name] = _deeply(below[name], over[name])
    return merged


def _texts_read(value: Any) -> Any:
    """Return what texts say as JSON; those that are none say themselves."""
    if isinstance(value, dict):
        return {name: _texts_read(one) for name, one in value.items()}
    return _of_json(value)


def _of_json(text: Any, only: tuple[type, ...] = (object,)) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, only) else text


def _read_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice} is there twice")
    return mapping


def _read_toml(text: str) -> Any:
    tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return tomllib.loads(text)


def _read_yaml(text: str) -> Any:
    yaml = import_module("yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
            return node

    return yaml.load(text, Loader)


def _refuse_endless(data: Any) -> None:
    """Refuse what a few aliases of YAML make of a short text: a value in itself, or millions."""
    count, left = 0, [data]
    while left:
        one = left.pop()
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        count += len(inner)
        if count > _MOST_VALUES:
            raise ValueError(f"it has more than {_MOST_VALUES:,} values")
        left.extend(inner)


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, in one line and without quoting it."""
    mark = getattr(error, "problem_mark", None)  # of YAML, whose own text quotes lines
    if mark is not None:
        problem = getattr(error, "problem", None) or "it cannot be read"
        # A password that starts with "!" or "*" is a tag or an alias.
        problem = re.sub(r"\s*'[^']{2,}'.*", "", problem, flags=re.DOTALL)
        return f"{problem}, line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno}, column {error.colno}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


_READERS: dict[str, Callable[[str], Any]] = {
    "json": _read_json,
    "toml": _read_toml,
    "yaml": _read_yaml,
}
