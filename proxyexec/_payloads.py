"""Payloads: what strategies wrote, with a header that says which one, which version, which Python.

Whoever reads one looks at that first. See :mod:`proxyexec.serializers`, which is this with a door.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from proxyexec._serialize import PAYLOAD_MARK, PickleSerializer
from proxyexec._strategies import COMBINED, Strategy, carried, find, names, receive
from proxyexec.errors import (
    DeserializationError,
    ForeignPayloadError,
    MissingExtraError,
    NoStrategyError,
    ProxyExecError,
    name_of,
)

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

__all__ = ["PYTHON", "Payload", "Serializers", "data_in", "decode", "encode", "reader_of"]


@dataclass(frozen=True)
class Payload:
    """What a strategy made of an object.

    Args:
        strategy: its name.
        version: of the strategy.
        python: the minor version of Python that wrote it, ``"3.11"`` for instance.
        frames: what it wrote.
    """

    strategy: str
    version: int
    python: str
    frames: Frames

    def to_frames(self) -> Frames:
        """Return the frames, with one in front that says what they are.

        That is text, in ASCII: ``Pxpayload json 1 3.11``.
        """
        header = f"{_MAGIC} {self.strategy} {self.version} {self.python}"
        return [header.encode("ascii"), *self.frames]

    @classmethod
    def from_frames(cls, frames: Frames, *, what: str = "an object") -> Payload:
        """Return the payload in frames that :meth:`to_frames` made; nothing is loaded.

        Raises:
            ForeignPayloadError: they are not such frames; the error says ``what`` is not.
        """
        # No more of it than a header takes: it may be anything.
        start = bytes(memoryview(frames[0])[:_HEADER_BYTES]) if frames else b""
        match = _HEADER.fullmatch(start)
        if match is None:
            raise ForeignPayloadError(what, "it does not say which strategy wrote it")
        strategy, version, python = (fact.decode("ascii") for fact in match.groups())
        return cls(strategy, int(version), python, frames[1:])

    def to_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` can write.

        A dict of ``strategy``, ``version``, ``python``, ``encoding`` and ``body``: a value of JSON
        itself (encoding ``"json"``), a text (``"text"``), or a list of frames in base 64
        (``"base64"``).
        """
        strategy = find(self.strategy)
        encoding = getattr(strategy, "body", "base64")
        body: Any
        if encoding == "json":
            body = json.loads(_only(self.frames))
        elif encoding == "text":
            body = _only(self.frames).decode()
        else:
            encoding = "base64"
            body = [base64.b64encode(frame).decode("ascii") for frame in self.frames]
        return {
            "strategy": self.strategy,
            "version": self.version,
            "python": self.python,
            "encoding": encoding,
            "body": body,
        }

    @classmethod
    def from_json(cls, value: Any, *, what: str = "an object") -> Payload:
        """Return the payload that :meth:`to_json` made ``value`` of; nothing is loaded.

        Raises:
            ForeignPayloadError: it is no such value; the error says ``what`` is not.
        """
        try:
            strategy, version, python = value["strategy"], value["version"], value["python"]
            header = f"{_MAGIC} {strategy} {version} {python}"
            kinds = type(strategy), type(version), type(python)
            if kinds != (str, int, str) or not _HEADER.fullmatch(header.encode("ascii")):
                raise ValueError(
                    f"strategy, version, python: {strategy!r}, {version!r}, {python!r}"
                )
            return cls(strategy, version, python, _frames_in(value["encoding"], value["body"]))
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            reason = f"no payload in JSON: {type(error).__name__}: {error}"
            raise ForeignPayloadError(what, reason) from error


def encode(
    obj: Any,
    strategies: str | Sequence[str],
    *,
    what: str = "an object",
    code: bool = False,
) -> Payload:
    """Return a payload for an object, by the first of some strategies that can.

    Args:
        obj: the object.
        strategies: the name of one, or several in order; ``"combined"`` is the usual list for
            code.
        what: what the object is to the caller, for messages: ``"argument 0 of f"``.
        code: whether it is a function, and strategies for code are meant.

    Raises:
        ValueError: there is no such strategy.
        NoStrategyError: none can; the error lists the reason of each.
        MissingExtraError: the only one needs a library that is not installed.
    """
    return _encoded(obj, _checked("strategies", strategies, "code" if code else "data"), what)


def _encoded(obj: Any, chosen: Sequence[str], what: str) -> Payload:
    reasons: list[tuple[str, str]] = []
    first: Exception | None = None
    try:
        for name in chosen:
            try:
                strategy = _known(name)
                return Payload(name, strategy.version, PYTHON, strategy.dumps(obj))
            except Exception as error:  # objects raise what they like when they are serialized
                if isinstance(error, MissingExtraError) and len(chosen) == 1:
                    raise
                reasons.append((name, f"{type(error).__name__}: {error}"))
                first = first or error
        raise NoStrategyError(what, name_of(type(obj)), reasons) from first
    finally:
        del first  # its traceback refers to this frame, which has the object


def decode(
    payload: Payload, *, allowed: str | Sequence[str] | None = None, what: str = "an object"
) -> Any:
    """Return the object that a payload was made of.

    Args:
        payload: the payload.
        allowed: name of the strategy that may have written it, or several; any that is known if
            ``None``.
        what: what it is to the caller, for messages.

    Raises:
        ForeignPayloadError: its strategy is not allowed or not known, or it was written by another
            version of that, or by a Python that this one cannot read from. Nothing was loaded.
        MissingExtraError: its strategy needs a library that is not installed.
        DeserializationError: loading it raised.
    """
    strategy = reader_of(payload, allowed, what)
    try:
        return strategy.loads(payload.frames)
    except (ProxyExecError, KeyboardInterrupt):
        raise
    except BaseException as error:  # an object that exits must not end who fetches it
        reason = f"{type(error).__name__}: {error}"
        raise DeserializationError(what, reason) from error


@dataclass(frozen=True)
class Serializers:
    """Which strategies the parts of calls travel by; each a name, or several to try in order.

    Also a serializer of stores, by the strategies for data: ``Store.from_url(url,
    serializer=Serializers(data="json"))``.

    Args:
        code: for functions. ``"combined"`` is by reference where that is possible, else
            cloudpickle, else dill.
        data: for arguments, and for what is stored by hand.
        results: for results, tried in the worker; as ``data`` if ``None``.
        allowed: what data may have been written by, to be read; anything that is known if
            ``None``. Functions are read if a strategy of ``code`` wrote them, and not otherwise.

    Raises:
        ValueError: a name is not known, or is not for that; or ``allowed`` leaves out one that
            ``data`` or ``results`` use.
        TypeError: what is given is not one or several names.
    """

    code: str | Sequence[str] = "combined"
    data: str | Sequence[str] = ("pickle", "cloudpickle")
    results: str | Sequence[str] | None = None
    allowed: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        # As tuples: hashable, and nobody changes them.
        data = _checked("data", self.data, "data")
        results = data if self.results is None else _checked("results", self.results, "data")
        object.__setattr__(self, "code", _checked("code", self.code, "code"))
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "results", results)
        if self.allowed is not None:
            allowed = _checked("allowed", self.allowed, "data")
            object.__setattr__(self, "allowed", allowed)
            left_out = sorted({*data, *results}.difference(allowed))
            if left_out:
                raise ValueError(
                    f"allowed={list(allowed)} leaves out {', '.join(left_out)}, "
                    "which data or results use"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        facts = self.code, self.data, self.results, self.allowed
        return _serializers, (facts, carried(self.names()))

    def names(self) -> tuple[str, ...]:
        """Return the names of all strategies that it takes to use these."""
        wanted = {*self.code, *self.data, *(self.results or ()), *(self.allowed or ())}
        return tuple(sorted(wanted))

    def dumps(self, obj: Any) -> Frames:
        """Return frames for data; see :class:`proxyexec.Serializer`."""
        return _encoded(obj, self.data, "an object").to_frames()

    def loads(self, frames: Frames) -> Any:
        """Return the data in frames; see :class:`proxyexec.Serializer`."""
        if self.allowed is None and bytes(memoryview(frames[0])[:1]) != PAYLOAD_MARK:
            return PickleSerializer().loads(frames)  # of before the store was used with these
        return data_in(frames, self.allowed)


def data_in(frames: Frames, allowed: str | Sequence[str] | None = None) -> Any:
    """Return the data in the frames of a payload, by any strategy for data if none are named."""
    return decode(
        Payload.from_frames(frames), allowed=names("data") if allowed is None else allowed
    )


def _serializers(facts: tuple[Any, ...], strategies: Any) -> Serializers:
    """Unpickle serializers, with the strategies of third parties that they name."""
    receive(strategies)
    return Serializers(*facts)


def _checked(
    what: str, given: str | Sequence[str], kind: Literal["code", "data"]
) -> tuple[str, ...]:
    """Return names of strategies, known ones for ``kind``, without any twice."""
    listed = (given,) if isinstance(given, str) else given
    if not isinstance(listed, Sequence) or not all(isinstance(name, str) for name in listed):
        raise TypeError(f"{what} must be the name of a strategy, or several: {given!r}")
    expanded: list[str] = []
    for name in listed:
        expanded.extend(COMBINED if name == "combined" and kind == "code" else [name])
    if not expanded:
        raise ValueError(f"{what} names no strategy")
    for name in expanded:
        if name not in names(kind) and (find(name) is None or name not in names(kind)):
            known = ", ".join([*names(kind), *(["combined"] if kind == "code" else [])])
            raise ValueError(f"{what}: there is no strategy {name!r} for {kind}; known are {known}")
    return tuple(dict.fromkeys(expanded))


def _known(name: str) -> Strategy:
    strategy = find(name)
    assert strategy is not None  # noqa: S101 - names have been checked
    return strategy


def reader_of(payload: Payload, allowed: str | Sequence[str] | None, what: str) -> Strategy:
    """Return the strategy that can load a payload, or refuse it."""
    name = payload.strategy
    if isinstance(allowed, str):  # in which other names may be
        allowed = (allowed,)
    if allowed is not None and name not in allowed:
        permitted = ", ".join(allowed) or "nothing"
        raise ForeignPayloadError(what, f"it is {name!r}, and only {permitted} is allowed here")
    strategy = find(name)
    if strategy is None:
        known = ", ".join(names())
        raise ForeignPayloadError(what, f"there is no strategy {name!r} here; known are {known}")
    if payload.version != strategy.version:
        raise ForeignPayloadError(
            what,
            f"version {payload.version} of the strategy {name!r} wrote it, and this is version "
            f"{strategy.version}",
        )
    if payload.python != PYTHON and not strategy.portable:
        raise ForeignPayloadError(
            what,
            f"Python {payload.python} wrote it as {name!r}, which only that can read, "
            f"and this is Python {PYTHON}",
        )
    return strategy


def _only(frames: Frames) -> bytes:
    (frame,) = frames
    return bytes(frame)


def _frames_in(encoding: Any, body: Any) -> Frames:
    if encoding == "json":
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return [text.encode()]
    if encoding == "text" and isinstance(body, str):
        return [body.encode()]
    if encoding == "base64" and isinstance(body, list):
        return [base64.b64decode(frame, validate=True) for frame in body]
    raise ValueError(f"a body of encoding {encoding!r} that is {type(body).__name__}")


PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""The version that this Python's payloads say."""

_MAGIC = f"{PAYLOAD_MARK.decode()}xpayload"
_HEADER = re.compile(
    _MAGIC.encode() + rb" ([a-z0-9][a-z0-9._-]*) ([0-9]{1,9}) ([0-9]{1,3}\.[0-9]{1,3})"
)
_HEADER_BYTES = 256
