"""Writes a policy, and a store, down: as a configuration, or a line of Python."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from proxyexec.errors import TuneError

if TYPE_CHECKING:
    from proxyexec._tune_result import TuneCandidate

__all__ = ["as_python", "merged", "write"]

# What JSON leaves as it is, but TOML and YAML do not take.
_UNPRINTABLE = re.compile(r"[\x7f-\x9f\ufffe\uffff]")

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def as_python(candidate: TuneCandidate, *, with_store: bool) -> str:
    """Return what makes an executor so, as a line of Python."""
    store = f"store={candidate.store!r}, " if with_store else ""
    return f"StoreExecutor(executor, {store}should_proxy={candidate.policy.python})"


def merged(data: Mapping[str, Any], candidate: TuneCandidate, store: str | None) -> dict[str, Any]:
    """Return a configuration with a policy, and a store, in place of its own.

    Args:
        data: the configuration.
        candidate: has the policy.
        store: the URL; ``None`` to leave the store as it is.

    Raises:
        TuneError: the policy cannot stand in a configuration.
    """
    if candidate.policy.config is None:
        raise TuneError(candidate.policy.name, "no configuration can say this policy")
    changed = dict(data)
    changed["should_proxy"] = candidate.policy.config
    if store is not None:
        before = changed.get("store")
        more = (
            {name: one for name, one in before.items() if name != "url"}
            if isinstance(before, Mapping)
            else {}
        )
        changed["store"] = {"url": store, **more} if more else store
    return changed


def write(path: str, data: Mapping[str, Any]) -> None:
    """Write a configuration as JSON, TOML or YAML, as the name of its file ends.

    Raises:
        TuneError: it ends in none of these, or cannot be written.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending in (".json", ".yaml", ".yml"):  # all JSON is YAML
        text = _escaped(json.dumps(data, indent=2, ensure_ascii=False)) + "\n"
    elif ending == ".toml":
        text = "\n".join(_toml(data, ())).strip() + "\n"
    else:
        raise TuneError(path, "the name of a configuration ends in .json, .toml, .yaml or .yml")
    temporary = f"{path}.new"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise TuneError(path, error.strerror or str(error)) from error


def _toml(data: Mapping[str, Any], where: tuple[str, ...]) -> list[str]:
    """Return lines of TOML: what is plain, then a table for each mapping."""
    lines = [f"{_key(name)} = {_value(one)}" for name, one in data.items() if not _is_table(one)]
    for name, one in data.items():
        if _is_table(one):
            path = (*where, name)
            lines += ["", f"[{'.'.join(map(_key, path))}]", *_toml(one, path)]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {_value(one)}" for name, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return _escaped(json.dumps(value, ensure_ascii=False))
    if value is None:
        raise TuneError("a configuration in TOML", "it has no word for null")
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    if isinstance(value, float):
        return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(str(value), repr(value))
    return str(value)  # dates and times are written as they are read


def _escaped(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
