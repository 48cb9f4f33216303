"""What travels between client and worker, and what runs in the worker.

An object travels as a reference (:class:`Stored`), in serialized form (:class:`Inline`), or as
it is. :meth:`Context.pack` decides, in the client for arguments and in the worker for results;
:meth:`Context.unpack` undoes it on the other side. A :class:`Task` is what the base executor is
given to call.

This module knows nothing of futures and leases: those are the client's.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Sequence
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle
from proxyexec_connectors._layout import flatten, pieces, split

from proxyexec._proxy import (
    Proxy,
    Reference,
    embedding,
    extract,
    is_proxy,
    is_resolved,
    make_proxy,
    reference_of,
)
from proxyexec._serialize import Candidate, Serializer
from proxyexec._sizes import size_bound
from proxyexec._store import Store, store_at
from proxyexec._types import find_function
from proxyexec.errors import ProxyExecError, SerializationError
from proxyexec.policy import Policy, ShouldProxy, is_proxied

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

__all__ = ["ChunkOutcome", "ChunkTask", "Context", "Inline", "Packed", "Stored", "Task"]


class Stored(NamedTuple):
    """An object that travels as a reference."""

    reference: Reference
    embedded: tuple[Reference, ...] = ()
    """What the stored object itself refers to."""


class Inline:
    """An object that travels in its serialized form."""

    __slots__ = ("blob",)

    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def __reduce__(self) -> tuple[Any, ...]:
        return Inline, (self.blob,)


class ChunkOutcome(list[Any]):
    """What came of several calls that travelled together."""


class Packed(NamedTuple):
    """An object ready to travel."""

    travels: Any
    """What is sent: :class:`Stored`, :class:`Inline`, or the object."""
    key: str | None = None
    """The key under which it was stored just now, if it was."""
    proxies: Sequence[Proxy] = ()
    """Proxies that it is or contains: their objects are needed for as long as it is."""


class Context(NamedTuple):
    """What client and workers of one executor have in common."""

    store: Store
    policy: ShouldProxy
    serializer: Serializer
    lazy: bool
    client: int
    """The client's process id."""

    def passes(self, obj: Any) -> bool:
        """Tell that an object travels as it is, where that is known at a glance."""
        bound = size_bound(obj)
        policy = self.policy
        return bound is not None and isinstance(policy, Policy) and policy.dismisses(obj, bound)

    def pack(self, obj: Any, key: str, what: str, *, crossing: bool) -> Packed:
        """Make an object ready to travel.

        Args:
            obj: the object.
            key: where to store it, if it is to be stored.
            what: what it is to the caller, for messages.
            crossing: whether it goes to another process, where objects cannot go as they are.

        Raises:
            ProxyExecError: it cannot be serialized or stored, or the policy raised.
        """
        proxy: Proxy | None = None
        if is_proxy(obj):
            if not is_resolved(obj) or type(extract(obj)) in _ATOMS:
                return Packed(Stored(reference_of(obj)), None, [obj])
            proxy, obj = obj, extract(obj)
        candidate = Candidate(obj, self.serializer, what)
        if type(obj) in _ATOMS:
            if is_proxied(self.policy, candidate):
                return Packed(Stored(self.store.keep(obj, key, candidate.frames)), key)
            return Packed(obj)
        with embedding() as proxies:
            try:
                if proxy is not None and _is_unchanged(reference_of(proxy), candidate.frames):
                    return Packed(Stored(reference_of(proxy)), None, [proxy])
                proxied = is_proxied(self.policy, candidate)
            except SerializationError:
                if crossing:
                    raise
                proxied = False  # a lock, say: threads can pass it on as it is
            if not proxied and not crossing:
                return Packed(obj)
            frames = candidate.frames
        if not proxied:
            return Packed(Inline(_join(frames)), None, proxies)
        reference = self.store.keep(obj, key, frames)
        embedded = tuple(map(reference_of, proxies))
        return Packed(Stored(reference, embedded), key, proxies)

    def travels_by_name(self, function: Any) -> bool:
        """Tell whether workers find a callable by its name."""
        return (
            type(function) in _BY_NAME
            and find_function(function)
            and not (getattr(self.serializer, "main", "") == "value" and _is_in_main(function))
        )

    def pack_function(self, function: Any, *, crossing: bool) -> Packed:
        """Make a callable ready to travel: by name where that is enough, in full otherwise."""
        if not crossing or self.travels_by_name(function):
            return Packed(function)
        with embedding() as proxies:
            frames = Candidate(function, self.serializer, "the function").frames
        return Packed(Inline(_join(frames)), None, proxies)

    def unpack(self, travelled: Any) -> Any:
        """Turn what has travelled into what a function is to get."""
        kind = type(travelled)
        if kind is Stored:
            reference = travelled.reference
            return (
                make_proxy(reference) if self.lazy else store_at(reference.address).get(reference)
            )
        return self.load(travelled) if kind is Inline else travelled

    def unpack_all(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """Unpack the arguments of a call. What travelled once is one object here, too."""
        objects = {
            id(one): self.unpack(one) for one in (*args, *kwargs.values()) if type(one) in _SEALED
        }
        if not objects:
            return args, kwargs
        return (
            [objects.get(id(one), one) for one in args],
            {name: objects.get(id(one), one) for name, one in kwargs.items()},
        )

    def load(self, inline: Inline) -> Any:
        """Make an object from its serialized form."""
        return self.serializer.loads(split(inline.blob))

    def deliver(self, result: Any, key: str, what: str) -> Any:
        """Make a result ready to travel to the client."""
        if self.passes(result):
            return result
        return self.pack(result, key, what, crossing=os.getpid() != self.client).travels


class Task:
    """A call on its way to the worker; what the base executor is given to call.

    Looks like the function that it calls: executors show names to their users.
    """

    def __init__(
        self, function: Any, travels: Any, context: Context, blob: bytes, key: str
    ) -> None:
        self._function = function
        self._travels = travels
        self._context: Context | None = context
        self._blob = blob
        self._key = key
        self.__module__ = getattr(function, "__module__", __name__)

    def __getattr__(self, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__doc__"):
            return getattr(self._function, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _task, (self._travels, self._blob, self._key)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        context = self._context or context_from(self._blob)
        function = self._travels
        if type(function) is Inline:
            function = context.load(function)
        arguments, kwargs = context.unpack_all(args, kwargs)
        result = function(*arguments, **kwargs)
        del arguments, kwargs  # inputs are let go before the result takes its place
        return context.deliver(result, self._key, "the result")


class ChunkTask(Task):
    """Several calls of one function, for ``map`` with a ``chunksize``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _chunk_task, (self._travels, self._blob, self._key)

    def __call__(self, /, *chunk: tuple[Any, ...]) -> ChunkOutcome:
        context = self._context or context_from(self._blob)
        function = context.unpack(self._travels)
        return ChunkOutcome(
            context.deliver(
                function(*context.unpack_all(arguments, {})[0]),
                chunk_key(self._key, number),
                "a result",
            )
            for number, arguments in enumerate(chunk)
        )


def chunk_key(key: str, number: int) -> str:
    """The key of the result of a chunk's call ``number``."""
    return f"{key}.{number}"


def blob_of(context: Context) -> bytes:
    """Serialize a context, once for all tasks of an executor."""
    blob: bytes = cloudpickle.dumps(tuple(context), protocol=5)
    return blob


def context_from(blob: bytes) -> Context:
    """The context of a serialized form; made once in each worker."""
    context = _context_from(blob)
    if context.store.closed:  # by a task that was given it
        _context_from.cache_clear()
        context = _context_from(blob)
    return context


@functools.lru_cache(maxsize=64)
def _context_from(blob: bytes) -> Context:
    return Context(*pickle.loads(blob))


def _task(travels: Any, blob: bytes, key: str, cls: type[Task] = Task) -> Task:
    """Unpickle a task. What can fail waits until the task is called, where it has a future."""
    task = cls.__new__(cls)
    task._travels, task._context, task._blob, task._key = travels, None, blob, key
    return task


def _chunk_task(travels: Any, blob: bytes, key: str) -> Task:
    return _task(travels, blob, key, ChunkTask)


def _is_unchanged(reference: Reference, frames: Frames) -> bool:
    """Tell whether the object that a reference leads to still is what ``frames`` represent."""
    try:
        stored = store_at(reference.address).fetch(reference.key)
    except ProxyExecError:  # its store is closed, or out of reach: the value is what we have
        return False
    return (
        stored is not None
        and len(stored) == len(frames)
        and all(map(_equal, map(flatten, stored), map(flatten, frames)))
    )


def _equal(one: memoryview, other: memoryview) -> bool:
    # memoryviews compare item by item; a bytearray compares as memory.
    return one.nbytes == other.nbytes and all(
        bytearray(one[start : start + _COMPARED]) == other[start : start + _COMPARED]
        for start in range(0, one.nbytes, _COMPARED)
    )


def _join(frames: Frames) -> bytes:
    parts, _ = pieces(frames)
    return b"".join(parts)


def _is_in_main(function: Any) -> bool:
    return getattr(function, "__module__", None) == "__main__"


# How much is compared at a time: what the processor's cache holds.
_COMPARED = 1 << 18

# Types of what stands for something else on its way.
_SEALED = frozenset({Inline, Stored})

# Types whose objects cannot contain others and cannot change.
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})

# Types of callables that pickle knows by their names.
_BY_NAME = frozenset({FunctionType, BuiltinFunctionType, type})
