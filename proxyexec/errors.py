"""Everything that proxyexec raises, as one tree.

::

    ProxyExecError
    ├── ConnectorError ...        see proxyexec_connectors.errors
    │   └── ConnectorFullError ...
    │       └── StoreFullError    (OSError, ENOSPC)                  … says for what
    ├── SerializationError        (pickle.PicklingError, TypeError)  cannot be sent
    │   └── NoStrategyError                                          … by any strategy given
    ├── DeserializationError      (pickle.UnpicklingError)           cannot be made again
    │   ├── ArrivalError          (BrokenProcessPool)                … where it arrives
    │   └── ForeignPayloadError                                      … as this reader refuses it
    ├── PolicyError               (RuntimeError)                     should_proxy raised
    ├── StoreClosedError          (ValueError)                       used after close()
    ├── ObjectMissingError        (LookupError)                      evicted, or never stored
    ├── IntegrityError            (ValueError)                       not what was stored
    ├── TaskLostError             (RuntimeError)                     died with its executor
    ├── NotAProxyError            (TypeError)                        a proxy was expected
    ├── ConfigError               (ValueError)                       a configuration is none
    ├── CallRecordError           (ValueError)                       a call's record is none
    ├── ArchiveError              (ValueError)                       cannot be unpacked, or must not
    ├── TraceError                (ValueError)                       cannot be read
    ├── TuneError                 (RuntimeError)                     cannot be measured, or tried
    ├── CallDiedError             (BrokenProcessPool)                a call's process ended
    ├── CallTimeoutError          (TimeoutError)                     a call took too long
    ├── CommandError              (BrokenExecutor)                   a command gave no result
    └── RemoteError                                                  what cannot be made again here

Each is also the standard type that a caller would already catch. What is wrong with a call's
data reaches the caller through the call's future.
"""

from __future__ import annotations

import builtins
import errno
import functools
import pickle
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from typing import Any, cast

from proxyexec_connectors.errors import (
    ConnectorClosedError,
    ConnectorError,
    ConnectorFullError,
    ConnectorUnavailableError,
    CorruptObjectError,
    ForeignProcessError,
    MissingExtraError,
    NotDurableError,
    NotListableError,
    ProxyExecError,
    SessionMissingError,
    UnknownSchemeError,
    UnsafeDirectoryError,
)

__all__ = [
    "ArchiveError",
    "ArrivalError",
    "CallDiedError",
    "CallRecordError",
    "CallTimeoutError",
    "CommandError",
    "ConfigError",
    "ConnectorClosedError",
    "ConnectorError",
    "ConnectorFullError",
    "ConnectorUnavailableError",
    "CorruptObjectError",
    "DeserializationError",
    "ForeignPayloadError",
    "ForeignProcessError",
    "IntegrityError",
    "MissingExtraError",
    "NoStrategyError",
    "NotAProxyError",
    "NotDurableError",
    "NotListableError",
    "ObjectMissingError",
    "PolicyError",
    "ProxyExecError",
    "RemoteError",
    "SerializationError",
    "SessionMissingError",
    "StoreClosedError",
    "StoreFullError",
    "TaskLostError",
    "TraceError",
    "TuneError",
    "UnknownSchemeError",
    "UnsafeDirectoryError",
]


class SerializationError(ProxyExecError, pickle.PicklingError, TypeError):
    """An object cannot be turned into bytes; ``what`` says which one it is.

    Also of the built-in type of what pickling it raised, a :class:`RecursionError` for instance:
    the standard library's pools raise that itself.
    """

    def __init__(self, what: str, kind: str, reason: str) -> None:
        self.what, self.kind, self.reason = what, kind, reason
        super().__init__(f"{what}, of type {kind}, cannot be pickled: {reason}")

    def about(self, what: str) -> SerializationError:
        """The same error, of an object that is ``what`` to the caller."""
        # A serializer of somebody else's may raise a class with facts of its own.
        ours = type(self).__init__ is SerializationError.__init__
        return (type(self) if ours else SerializationError)(what, self.kind, self.reason)

    @staticmethod
    def like(cause: type[Exception]) -> type[SerializationError]:
        """Return the class of such errors that are caught as a ``cause`` would be."""
        return _serialization_error_like(next(filter(_is_built_in, cause.__mro__)))


class NoStrategyError(SerializationError):
    """None of the strategies given can turn an object into bytes.

    Args:
        what: which object it is.
        kind: the name of its type.
        reasons: for each strategy that was tried, its name and why it cannot.
    """

    def __init__(self, what: str, kind: str, reasons: Sequence[tuple[str, str]]) -> None:
        self.reasons = tuple(reasons)
        SerializationError.__init__(self, what, kind, "; ".join(map(": ".join, self.reasons)))
        self.args = (f"{what}, of type {kind}, cannot be sent: {self.reason}",)

    def about(self, what: str) -> NoStrategyError:
        return NoStrategyError(what, self.kind, self.reasons)


class DeserializationError(ProxyExecError, pickle.UnpicklingError):
    """An object cannot be made from its bytes again; ``what`` says which one it is."""

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(f"{what} cannot be unpickled: {reason}")


class ArrivalError(DeserializationError, BrokenProcessPool):
    """What a task was given, or its result, cannot be unpickled where it arrives.

    The standard library's pool breaks of it, hence the type. Here only this task fails.
    """


class ForeignPayloadError(DeserializationError):
    """A payload was refused, and nothing of it was loaded.

    It was written by a strategy, a version of one, or a Python that this reader does not have,
    or by a strategy that it does not allow; or it is no payload at all.
    """

    def __init__(self, what: str, reason: str) -> None:
        DeserializationError.__init__(self, what, reason)
        self.args = (f"{what} was not loaded: {reason}",)


def arrival_error(what: str, error: DeserializationError) -> DeserializationError:
    """Return what is to be raised where ``what`` arrives, when reading it raised ``error``."""
    kind = ForeignPayloadError if isinstance(error, ForeignPayloadError) else ArrivalError
    return kind(what, error.reason)


class PolicyError(ProxyExecError, RuntimeError):
    """A ``should_proxy`` policy raised when it was asked about an object."""

    def __init__(self, policy: str, what: str, kind: str, reason: str) -> None:
        self.policy, self.what, self.kind, self.reason = policy, what, kind, reason
        super().__init__(f"the policy {policy} failed on {what}, of type {kind}: {reason}")


class StoreClosedError(ProxyExecError, ValueError):
    """A store was used after it had been closed."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"the store {name!r} is closed; its objects are gone")


class StoreFullError(ConnectorFullError):
    """There is no room in a store for an object; ``what`` says which one it is.

    Either the place is full, of which ``free`` bytes are left (``None`` if nobody knows), or the
    store's quota is, of which ``taken`` bytes are taken. ``needed`` is the object's size in bytes.
    """

    def __init__(
        self,
        what: str,
        url: str,
        needed: int,
        free: int | None = None,
        quota: int | None = None,
        taken: int | None = None,
    ) -> None:
        self.what, self.url, self.needed, self.free = what, url, needed, free
        self.quota, self.taken = quota, taken
        if quota is None:
            left = "" if free is None else f", where {free:,} bytes are free"
            where = f"in {url}{left}; evict objects, or give the store more space"
        else:
            where = (
                f"in the store at {url}, which may hold {quota:,} bytes and holds {taken or 0:,}; "
                "let go of results, or give the store a larger max_bytes"
            )
        OSError.__init__(self, errno.ENOSPC, f"no room for {what}, of {needed:,} bytes, {where}")

    def about(self, what: str) -> StoreFullError:
        """The same error, of an object that is ``what`` to the caller."""
        return StoreFullError(what, self.url, self.needed, self.free, self.quota, self.taken)


class ObjectMissingError(ProxyExecError, LookupError):
    """There is nothing under a key: it was evicted, has expired, or its session has ended."""

    def __init__(self, key: str, url: str) -> None:
        self.key, self.url = key, url
        super().__init__(
            f"no object {key!r} in {url}: it was evicted, or the store that held it was closed; "
            "keep its proxy, future or store for as long as it is needed"
        )


class IntegrityError(ProxyExecError, ValueError):
    """What is stored under a key is not what was stored there, or nobody here can tell.

    Nothing of it was unpickled.
    """

    def __init__(self, key: str, url: str, reason: str) -> None:
        self.key, self.url, self.reason = key, url, reason
        super().__init__(f"object {key!r} in {url} is not to be trusted: {reason}")


class TaskLostError(ProxyExecError, RuntimeError):
    """A task of a group has not ended, and nobody is running it; it was not to be run again."""

    def __init__(self, task: str, name: str, group: str) -> None:
        self.task, self.name, self.group = task, name, group
        super().__init__(
            f"task {task} of group {group!r}, a call of {name}, has no outcome, and whoever was to "
            "run it is gone; reload_tasks() submits such tasks again"
        )


class NotAProxyError(ProxyExecError, TypeError):
    """A function of proxies got something else."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(f"expected a proxyexec.Proxy, not an object of type {kind}")


class ConfigError(ProxyExecError, ValueError):
    """A configuration is wrong, or describes what cannot be made here.

    Args:
        problems: where, as a path with dots, and what is wrong there.
        source: where it came from.
    """

    def __init__(self, problems: Sequence[tuple[str, str]], source: str = "") -> None:
        self.problems, self.source = list(problems), source
        lines = [f"{where}: {what}" if where else what for where, what in self.problems]
        start = f"{source}: " if source else ""
        if len(lines) > 1:
            start = f"{source or 'this configuration'} has {len(lines)} problems:\n  "
        super().__init__(start + "\n  ".join(lines))


class CallRecordError(ProxyExecError, ValueError):
    """A record of a call, or of its result, is none; ``field`` says which part of it.

    ``record`` is the file's name, or what the record is where it has none.
    """

    def __init__(self, record: str, field: str | None, reason: str) -> None:
        self.record, self.field, self.reason = record, field, reason
        where = record if field is None else f"{record}: {field}"
        super().__init__(f"{where}: {reason}")


class ArchiveError(ProxyExecError, ValueError):
    """An archive cannot be unpacked, or must not be; ``member`` says because of which part."""

    def __init__(self, archive: str, member: str | None, reason: str) -> None:
        self.archive, self.member, self.reason = archive, member, reason
        where = archive if member is None else f"{archive}: {member!r}"
        super().__init__(f"{where}: {reason}")


class TraceError(ProxyExecError, ValueError):
    """A file is no trace, is damaged, or of a version that is not known here."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"the trace {path!r} cannot be read: {reason}")


class TuneError(ProxyExecError, RuntimeError):
    """Tuning could not go on: what would be measured, or tried out, failed; says why."""

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(f"{what}: {reason}")


class CallDiedError(ProxyExecError, BrokenProcessPool):
    """The process of a call ended before the call had: by ``os._exit``, or a signal.

    ``status`` is its exit status; below 0, it is the number of the signal that killed it. Pools of
    processes break of that, hence the type. Here only this call fails.
    """

    def __init__(self, called: str, status: int) -> None:
        self.called, self.status = called, status
        super().__init__(
            f"the process that ran {called} {ending(status)} before the call had ended"
        )


if sys.version_info >= (3, 11):
    _AnyTimeoutError = TimeoutError
else:

    class _AnyTimeoutError(FutureTimeoutError, TimeoutError):
        """What a caller may look out for; from 3.11 on, both are one."""


class CallTimeoutError(ProxyExecError, _AnyTimeoutError):
    """A call, ``called``, took longer than ``seconds``, and was ended."""

    def __init__(self, called: str, seconds: float) -> None:
        self.called, self.seconds = called, seconds
        super().__init__(f"{called} took longer than {seconds:g} s, and was ended")


class CommandError(ProxyExecError, BrokenExecutor):
    """A command that was to run a call, ``called``, gave no result.

    ``command`` is what was run, ``reason`` says what became of it, and ``stderr`` is the end of
    what it wrote there.
    """

    def __init__(self, called: str, command: Sequence[str], reason: str, stderr: str) -> None:
        self.called, self.command, self.reason = called, tuple(command), reason
        self.stderr = stderr
        tail = f"; its standard error ends with:\n{stderr}" if stderr else ""
        super().__init__(
            f"the command for {called} gave no result: {' '.join(command)!r} {reason}{tail}"
        )


class RemoteError(ProxyExecError):
    """Stands for an exception of another process that cannot be made again in this one.

    Also of the built-in type that the exception was of, if that is one: a ``ValueError``, say.
    ``type_name``, ``message`` and ``traceback`` are the exception's; ``reason`` says what is
    missing.
    """

    def __init__(self, type_name: str, message: str, traceback: str, reason: str) -> None:
        self.type_name, self.message, self.traceback = type_name, message, traceback
        self.reason = reason
        super().__init__(f"{type_name}: {message} (of another type, as {reason})")

    @staticmethod
    def like(base: str) -> type[RemoteError]:
        """Return the class of such errors that are caught as one of this built-in type is."""
        return _remote_error_like(base)


def ending(status: int) -> str:
    """Say how a process ended, from its exit status: below 0, the number of a signal."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was killed by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"was killed by signal {-status}"


@functools.cache
def _remote_error_like(base: str) -> type[RemoteError]:
    kind = getattr(builtins, base, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or not _is_built_in(kind):
        return RemoteError
    if issubclass(RemoteError, kind):
        return RemoteError

    def reduce(self: RemoteError) -> tuple[Any, ...]:
        facts = self.type_name, self.message, self.traceback, self.reason
        return _remote_error, (base, *facts), self.__dict__

    namespace = {
        "__doc__": RemoteError.__doc__,
        "__module__": __name__,
        "__reduce__": reduce,
        "__str__": Exception.__str__,
    }
    try:
        made = type("RemoteError", (RemoteError, kind), namespace)
        made("type", "message", "traceback", "reason")
    except TypeError:  # one that is made of facts of its own: a UnicodeDecodeError
        return RemoteError
    return cast("type[RemoteError]", made)


def _remote_error(base: str, *facts: str) -> RemoteError:
    """Unpickle an error that is one of a built-in type as well."""
    return RemoteError.like(base)(*facts)


def _is_built_in(kind: type) -> bool:
    # A group is made of errors, which there are none of.
    return getattr(builtins, kind.__name__, None) is kind and "Group" not in kind.__name__


@functools.cache
def _serialization_error_like(kind: Any) -> type[SerializationError]:
    if issubclass(SerializationError, kind):
        return SerializationError

    def reduce(self: SerializationError) -> tuple[Any, ...]:
        return _serialization_error, (kind, self.what, self.kind, self.reason), self.__dict__

    # Some write what they have been given in a way of their own.
    namespace = {
        "__doc__": SerializationError.__doc__,
        "__module__": __name__,
        "__reduce__": reduce,
        "__str__": Exception.__str__,
    }
    made = type("SerializationError", (SerializationError, kind), namespace)
    return cast("type[SerializationError]", made)


def _serialization_error(kind: Any, *facts: str) -> SerializationError:
    """Unpickle an error that is one of a built-in type as well."""
    return _serialization_error_like(kind)(*facts)


def name_of(kind: type) -> str:
    """The name of a type as it stands in messages."""
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
