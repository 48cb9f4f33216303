"""What is in the records of calls and results, as it travels: payloads.

A payload is loaded when it is asked for, not when the record is read.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures.process import _RemoteTraceback
from typing import Any

from proxyexec._call_fields import Fields
from proxyexec._payloads import PYTHON, reader_of
from proxyexec._strategies import find
from proxyexec.errors import CallRecordError, ProxyExecError, RemoteError, name_of
from proxyexec.serializers import Payload, Serializers, decode, encode

__all__ = ["CallPayloads", "Raised", "payload_in"]


class CallPayloads:
    """Function and arguments of a call as they travel.

    Args:
        function: of the function.
        both: of the arguments and the keyword arguments, as a list of two. So an object that is
            passed twice is one object.
        args: of each argument, if they travel one by one.
        kwargs: of each keyword argument, then.
    """

    def __init__(
        self,
        function: Payload,
        both: Payload | None,
        args: Sequence[Payload] = (),
        kwargs: Mapping[str, Payload] | None = None,
    ) -> None:
        self._function = function
        self._both = both
        self._args = args
        self._kwargs = dict(kwargs or {})

    @classmethod
    def of(
        cls,
        name: str,
        call: tuple[Any, tuple[Any, ...], dict[str, Any]],
        serializers: Serializers,
    ) -> CallPayloads:
        """Serialize a call."""
        function, args, kwargs = call
        code = encode(function, serializers.code, what=f"the function {name}", code=True)
        try:
            both = encode([list(args), kwargs], serializers.data, what=f"the arguments of {name}")
        except ProxyExecError:
            for place, value in [*enumerate(args), *kwargs.items()]:
                # Who reads the error wants to know which one it is.
                encode(value, serializers.data, what=f"argument {place!r} of {name}")
            raise
        return cls(code, both)

    @classmethod
    def from_fields(cls, fields: Fields) -> CallPayloads:
        """Read a record's."""
        function = payload_in(fields, "function", fields.raw("function"), code=True)
        if "arguments" in fields:
            for other in ("args", "kwargs"):
                if other in fields:
                    raise fields.error(other, "the record has arguments as well, which are all")
            return cls(function, payload_in(fields, "arguments", fields.raw("arguments")))
        args = [
            payload_in(fields, f"args[{number}]", one)
            for number, one in enumerate(fields.items("args"))
        ]
        kwargs = {
            name: payload_in(fields, f"kwargs.{name}", one)
            for name, one in fields.entries("kwargs").items()
        }
        return cls(function, None, args, kwargs)

    @property
    def name(self) -> str:
        """What the function is called, as far as one can tell without loading it."""
        if self._function.strategy == "reference":
            return bytes(self._function.frames[0]).decode().rpartition(":")[2]
        return "the function"

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a record."""
        fields: dict[str, Any] = {"function": self._function.to_json()}
        if self._both is not None:
            fields["arguments"] = self._both.to_json()
        else:
            fields["args"] = [one.to_json() for one in self._args]
            fields["kwargs"] = {name: one.to_json() for name, one in self._kwargs.items()}
        return fields

    def load(
        self, name: str, allowed: Sequence[str] | None
    ) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Return function and arguments."""
        parts = [(self._function, f"the function {name}")]
        if self._both is not None:
            parts.append((self._both, f"the arguments of {name}"))
        places = [*enumerate(self._args), *self._kwargs.items()]
        parts += [(one, f"argument {place!r} of {name}") for place, one in places]
        for payload, what in parts:  # before any of them is loaded
            reader_of(payload, allowed, what)
        function, *values = [decode(payload, allowed=allowed, what=what) for payload, what in parts]
        if not callable(function):
            raise CallRecordError("the record", "function", f"{function!r:.80} cannot be called")
        if self._both is None:
            number = len(self._args)
            return (
                function,
                tuple(values[:number]),
                dict(zip(self._kwargs, values[number:], strict=True)),
            )
        [both] = values
        if type(both) is list and list(map(type, both)) == [list, dict]:
            return function, tuple(both[0]), both[1]
        reason = "expected a list of arguments, and an object of keyword arguments"
        raise CallRecordError("the record", "arguments", reason)


class Raised:
    """An exception as it travels: what it is in words, and the exception where that can be.

    Args:
        kind: the name of its type.
        base: the built-in type that it is of.
        message: what it says.
        trace: the text of its traceback.
        payload: the exception, if a strategy can do it.
    """

    def __init__(
        self, kind: str, base: str, message: str, trace: str, payload: Payload | None
    ) -> None:
        self._kind = kind
        self._base = base
        self._message = message
        self._trace = trace
        self._payload = payload

    @classmethod
    def of(cls, error: BaseException, results: str | Sequence[str]) -> Raised:
        """Serialize an exception."""
        base = next(one for one in type(error).__mro__ if one.__module__ == "builtins")
        try:
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        except Exception:  # noqa: BLE001 - it may be anything that an exception does when asked
            trace = ""
        try:
            message = str(error)
        except Exception as failed:  # noqa: BLE001 - as above
            message = f"<no text, as str() raised {type(failed).__name__}>"
        try:
            payload = encode(error, results, what=f"what was raised, a {name_of(type(error))}")
        except ProxyExecError:
            payload = None
        return cls(name_of(type(error)), base.__name__, message, trace, payload)

    @classmethod
    def from_fields(cls, fields: Fields) -> Raised:
        """Read a record's."""
        inner = Fields(fields.record, fields.raw("exception"), _EXCEPTION_FIELDS, "exception")
        payload = inner.raw("payload")
        return cls(
            inner.text("type"),
            inner.text("base", "Exception"),
            inner.text("message"),
            inner.text("traceback", ""),
            None if payload is None else payload_in(inner, "payload", payload),
        )

    @classmethod
    def from_json(cls, value: Any) -> Raised:
        """Read what :meth:`to_json` returned.

        Raises:
            CallRecordError: it is something else.
        """
        return cls.from_fields(Fields("what was raised", {"exception": value}, ("exception",)))

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a record."""
        return {
            "type": self._kind,
            "base": self._base,
            "message": self._message,
            "traceback": self._trace,
            "payload": None if self._payload is None else self._payload.to_json(),
        }

    def load(self, name: str, allowed: Sequence[str] | None) -> BaseException:
        """Return the exception, or one that says what it was."""
        try:
            error = self._decoded(name, allowed)
        except Exception as failed:  # noqa: BLE001 - it is said what it was, and what was wrong
            reason = str(failed)
            error = RemoteError.like(self._base)(self._kind, self._message, self._trace, reason)
        if self._trace:
            shown: Any = f'\n"""\n{self._trace}"""'
            error.__cause__ = _RemoteTraceback(shown)  # as pools do
        return error

    def _decoded(self, name: str, allowed: Sequence[str] | None) -> BaseException:
        if self._payload is None:
            raise ValueError("it could not be serialized")
        error = decode(self._payload, allowed=allowed, what=f"what {name} raised")
        if not isinstance(error, BaseException):
            raise TypeError(f"what was serialized is no exception: {error!r:.80}")
        return error


def payload_in(fields: Fields, name: str, value: Any, *, code: bool = False) -> Payload:
    """Return the payload in a field.

    What can be known of it need not be said: the version of its strategy, the encoding, and, if
    any can read it, the version of Python.
    """
    if value is None:
        raise fields.error(name, "expected a payload, and it is missing")
    known = ("strategy", "version", "python", "encoding", "body")
    inner = Fields(fields.record, value, known, fields.path(name))
    written = inner.text("strategy")
    strategy = find(written)
    filled = dict(value)
    if strategy is not None:
        filled.setdefault("version", strategy.version)
        encoding = getattr(strategy, "body", "base64")
        if filled.setdefault("encoding", encoding) != encoding:
            raise inner.error("encoding", f"{written!r} is written as {encoding!r}")
        if strategy.portable:
            filled.setdefault("python", PYTHON)
    for needed in known:
        if needed not in filled:
            raise inner.error(needed, f"it is missing, and unknown for the strategy {written!r}")
    return fields.made(name, Payload.from_json, filled, what="it")


_EXCEPTION_FIELDS = ("type", "base", "message", "traceback", "payload")
