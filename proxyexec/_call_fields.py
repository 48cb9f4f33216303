"""Records to and from JSON: files that are whole or not there, and fields that are checked.

Knows nothing of calls.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from proxyexec.errors import CallRecordError, ProxyExecError

__all__ = ["Fields", "absolute", "joined", "publish", "read_json", "unfinished", "write_json"]

T = TypeVar("T")

# What a field that is not there has, if it has to be.
_REQUIRED: Any = object()


class Fields:
    """The fields of one JSON object, each looked at by what is expected of it.

    Args:
        record: the name of what they are in, for messages.
        value: the object.
        known: what may be in there.
        prefix: leads to the object, in the record.

    Raises:
        CallRecordError: it is no object, or has a field that is not known.
    """

    def __init__(self, record: str, value: Any, known: Collection[str], prefix: str = "") -> None:
        self.record = record
        self._prefix = prefix
        if not isinstance(value, dict):
            raise CallRecordError(record, prefix or None, f"expected an object, not {_kind(value)}")
        self._value: dict[str, Any] = value
        unknown = sorted(value.keys() - set(known))
        if unknown:
            raise self.error(unknown[0], f"no such field; there are {', '.join(sorted(known))}")

    def __contains__(self, name: str) -> bool:
        return self._value.get(name) is not None

    def error(self, name: str, reason: str) -> CallRecordError:
        """Return the error that a field is to blame for."""
        return CallRecordError(self.record, self.path(name), reason)

    def path(self, name: str) -> str:
        """Return what leads to a field, in the record."""
        return f"{self._prefix}.{name}" if self._prefix else name

    def raw(self, name: str) -> Any:
        """Return whatever a field holds, ``None`` if it is not there."""
        return self._value.get(name)

    def text(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return a text."""
        return self._of(name, default, lambda one: isinstance(one, str), "a text")

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return a number."""
        return self._of(name, default, _is_number, "a number")

    def integer(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return an integer."""
        return self._of(name, default, _is_integer, "an integer")

    def items(self, name: str) -> list[Any]:
        """Return the items of a list, none if it is not there."""
        items: list[Any] = self._of(name, [], lambda one: isinstance(one, list), "a list")
        return items

    def entries(self, name: str) -> dict[str, Any]:
        """Return the entries of an object, none if it is not there."""
        entries: dict[str, Any] = self._of(name, {}, lambda one: isinstance(one, dict), "an object")
        return entries

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts, none if it is not there."""
        items = self.items(name)
        for number, one in enumerate(items):
            if not isinstance(one, str):
                raise self.error(f"{name}[{number}]", f"expected a text, not {_kind(one)}")
        return tuple(items)

    def made(self, name: str, make: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return what is made of a field, for whose mistakes the field is to blame."""
        try:
            return make(*args, **kwargs)
        except CallRecordError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, ProxyExecError) as error:
            raise self.error(name, str(error)) from error

    def format(self, name: str, version: int) -> None:
        """Check that the record is of this format, and of a version that is known here."""
        found = self.text("format")
        if found != name:
            raise self.error("format", f"expected {name!r}, not {found!r}")
        written = self.integer("version")
        if written != version:
            raise self.error("version", f"{written} was written, and {version} is read here")

    def _of(self, name: str, default: Any, fits: Callable[[Any], bool], expected: str) -> Any:
        value = self._value.get(name)
        if value is None:
            if default is _REQUIRED:
                raise self.error(name, f"expected {expected}, and it is missing")
            return default
        if not fits(value):
            raise self.error(name, f"expected {expected}, not {_kind(value)}")
        return value


def read_json(path: str) -> Any:
    """Return what a file holds.

    Raises:
        CallRecordError: it cannot be read, or is no JSON.
    """
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except OSError as error:
        raise CallRecordError(
            path, None, f"it cannot be read: {error.strerror or error}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CallRecordError(path, None, f"it is no JSON: {error}") from error


def write_json(
    path: str, record: Mapping[str, Any], *, replace: bool = True, durable: bool = True
) -> bool:
    """Write a record to a file; see :func:`publish`."""
    return publish(path, json.dumps(record).encode(), replace=replace, durable=durable)


def unfinished(path: str) -> str:
    """Return what the names of files begin with that are to become the one at a path."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.")


def publish(path: str, data: bytes, *, replace: bool = True, durable: bool = True) -> bool:
    """Have a file appear with all of its contents, for nobody else to read.

    Args:
        path: of the file.
        data: the contents.
        replace: whether to replace one that is there.
        durable: whether that is so after a failure of the machine, too.

    Returns:
        Whether it is there now with these contents.
    """
    other = f"{unfinished(path)}{os.urandom(8).hex()}"
    try:
        descriptor = os.open(other, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:  # or there may be the name, and nothing in it
                os.fsync(descriptor)
        if replace:
            os.replace(other, path)
            return True
        try:
            os.link(other, path)
        except FileExistsError:
            return False
        except OSError:  # there are file systems without links
            if os.path.lexists(path):
                return False
            os.replace(other, path)
        return True
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(other)


def absolute(path: str | None, base: str | None) -> str | None:
    """Return a path in a record, relative to a directory, as one that is not; if there is one."""
    return None if path is None else joined(path, base)


def joined(path: str, base: str | None) -> str:
    """Return a path in a record, relative to a directory, as one that is not."""
    return os.path.abspath(os.path.join(base or os.curdir, path))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGE


def _is_number(value: Any) -> bool:
    # JSON has no others, though Python reads and writes them.
    return (isinstance(value, float) and math.isfinite(value)) or _is_integer(value)


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)


# Nothing that is counted here comes near to it.
_LARGE = 1 << 63

_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    type(None): "null",
}
