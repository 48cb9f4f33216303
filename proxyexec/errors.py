"""Everything that proxyexec raises, as one tree.

::

    ProxyExecError
    ├── ConnectorError ...        see proxyexec_connectors.errors
    │   └── ConnectorFullError ...
    │       └── StoreFullError    (OSError, ENOSPC)                  … says for what
    ├── SerializationError        (pickle.PicklingError, TypeError)  cannot be sent
    ├── DeserializationError      (pickle.UnpicklingError)           cannot be made again
    │   └── ArrivalError          (BrokenProcessPool)                … where it arrives
    ├── PolicyError               (RuntimeError)                     should_proxy raised
    ├── StoreClosedError          (ValueError)                       used after close()
    ├── ObjectMissingError        (LookupError)                      evicted, or never stored
    ├── IntegrityError            (ValueError)                       not what was stored
    ├── TaskLostError             (RuntimeError)                     died with its executor
    └── NotAProxyError            (TypeError)                        a proxy was expected

Each is also the standard type that a caller would already catch. What is wrong with a call's
data reaches the caller through the call's future.
"""

from __future__ import annotations

import builtins
import errno
import functools
import pickle
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
    ProxyExecError,
    SessionMissingError,
    UnknownSchemeError,
    UnsafeDirectoryError,
)

__all__ = [
    "ArrivalError",
    "ConnectorClosedError",
    "ConnectorError",
    "ConnectorFullError",
    "ConnectorUnavailableError",
    "CorruptObjectError",
    "DeserializationError",
    "ForeignProcessError",
    "IntegrityError",
    "MissingExtraError",
    "NotAProxyError",
    "NotDurableError",
    "ObjectMissingError",
    "PolicyError",
    "ProxyExecError",
    "SerializationError",
    "SessionMissingError",
    "StoreClosedError",
    "StoreFullError",
    "TaskLostError",
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

    @staticmethod
    def like(cause: type[Exception]) -> type[SerializationError]:
        """Return the class of such errors that are caught as a ``cause`` would be."""
        return _serialization_error_like(next(filter(_is_built_in, cause.__mro__)))


class DeserializationError(ProxyExecError, pickle.UnpicklingError):
    """An object cannot be made from its bytes again; ``what`` says which one it is."""

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(f"{what} cannot be unpickled: {reason}")


class ArrivalError(DeserializationError, BrokenProcessPool):
    """What a task was given, or its result, cannot be unpickled where it arrives.

    The standard library's pool breaks of it, hence the type. Here only this task fails.
    """


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
