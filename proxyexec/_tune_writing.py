"""Writes a policy, and a store, down: as a configuration, or a line of Python."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from proxyexec.errors import TuneError

if TYPE_CHECKING:
    from proxyexec._tune_result import TuneCandidate

__all__ = ["as_python", "check_name", "merged", "write"]

# What JSON leaves as it is, but TOML and YAML do not take.
_UNPRINTABLE = re.compile(r"[\x7f-\x9f\ufffe\uffff]")

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def as_python(candidate: TuneCandidate, *, with_store: bool) -> str:
    """Return what makes an executor so, as a line of Python."""
    store = f"store={candidate.store!r}, " if with_store else ""
    # The classes of a program have no other name in it.
    policy = candidate.policy.python.replace("__main__.", "")
    return f"StoreExecutor(executor, {store}should_proxy={policy})"


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


def check_name(path: str) -> str:
    """Return how the name of a configuration's file ends.

    Raises:
        TuneError: it ends in nothing that is known here.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in (".json", ".toml", ".yaml", ".yml"):
        raise TuneError(path, "the name of a configuration ends in .json, .toml, .yaml or .yml")
    return ending


def write(path: str, data: Mapping[str, Any], *, like: str | None = None) -> None:
    """Write a configuration as JSON, TOML or YAML, as the name of its file ends.

    Args:
        path: of the file. Who may read what is there, may read what is written.
        data: the configuration.
        like: the path of one that it was made from: the same may read a new file.

    Raises:
        TuneError: the name ends in none of these, or it cannot be written.
    """
    if check_name(path) == ".toml":
        text = "\n".join(_toml(data, ())).strip() + "\n"
    else:  # all JSON is YAML
        text = _escaped(json.dumps(data, indent=2, ensure_ascii=False)) + "\n"
    try:
        _replace(os.path.realpath(path), text, _mode_of(path, like))  # a link stays one
    except OSError as error:
        raise TuneError(path, error.strerror or str(error)) from error


def _mode_of(*paths: str | None) -> int | None:
    """Return the permissions of the first of some files that is there."""
    for path in paths:
        if path is not None:
            try:
                return stat.S_IMODE(os.stat(path).st_mode)
            except FileNotFoundError:
                pass
    return None


def _replace(path: str, text: str, mode: int | None) -> None:
    """Put a text into a file, all of it or nothing."""
    temporary = f"{path}.{secrets.token_hex(4)}.new"
    descriptor = os.open(
        temporary,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
        0o666 if mode is None else 0o600,
    )
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


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
