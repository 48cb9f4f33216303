"""``StoreExecutor``: submit, map and shutdown, with data in a store.

Here the parts meet: arguments are packed and leased, the task goes to the base executor, and
what it came to is unpacked for the future. Whatever fails, what the call had stored by then is
evicted. Nothing here knows backends or frameworks.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor
from typing import TYPE_CHECKING, Any, TypeVar

from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector

from proxyexec._adapters import adapt
from proxyexec._future import Deferred, TaskFuture
from proxyexec._map import chunked_results, results
from proxyexec._proxy import Proxy, is_proxy, lease_of, make_proxy, reference_of
from proxyexec._serialize import PickleSerializer
from proxyexec._store import Store, store_at
from proxyexec._task import ChunkTask, Context, Inline, Stored, Task, blob_of, chunk_key
from proxyexec.policy import ProxyNever, ShouldProxy

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Connector
    from typing_extensions import ParamSpec

    from proxyexec._ownership import Lease

    P = ParamSpec("P")

__all__ = ["StoreExecutor"]

R = TypeVar("R")


class StoreExecutor(Executor):
    """An executor that moves references instead of data, around one that runs tasks.

    Arguments and results that the policy wants go into a store, once; the base executor carries
    references. What a call stored is evicted when nobody can need it any more: an argument when
    its task has ended, a result when its future and its proxies are gone.

    Args:
        executor: the base executor; shut down with this one.
        store: a :class:`Store`, a connector, or a URL. ``None`` keeps objects in memory for a
            pool of threads, in shared memory and files otherwise.
        should_proxy: a policy, or any callable that tells of an object whether it is worth
            storing. ``None`` is :class:`~proxyexec.policy.ProxyNever`: calls pass through
            untouched.
        ownership: whether results are evicted when nobody holds them any more. Arguments
            always are, when their task has ended.
        close_store: whether the store is closed when the executor is shut down and the last
            result is gone.
        lazy: whether functions and callers get proxies. If not, they get the objects
            themselves: functions when they are called, callers when they ask for the result.

    Raises:
        TypeError: ``executor`` cannot submit, ``store`` is no store, or ``should_proxy`` cannot
            be called.
        ValueError: the store is owned by another process.
    """

    def __init__(
        self,
        executor: Any,
        store: Store | Connector | str | None = None,
        should_proxy: ShouldProxy | None = None,
        *,
        ownership: bool = True,
        close_store: bool = True,
        lazy: bool = True,
    ) -> None:
        base = adapt(executor)
        policy = ProxyNever() if should_proxy is None else should_proxy
        if not callable(policy):
            raise TypeError(f"should_proxy must be callable, like ProxySize('1 MB'): {policy!r}")
        self._base = base.executor
        self._crosses = base.crosses
        self._never = type(policy) is ProxyNever
        if store is None:
            store = FileConnector() if base.crosses else MemoryConnector()
        self._store = _as_store(store)
        if not self._store.is_owner:
            raise ValueError(
                f"the store {self._store.name!r} is owned by another process; open one here"
            )
        serializer = self._store.serializer
        if base.main == "value" and type(serializer) is PickleSerializer:
            serializer = PickleSerializer(main="value")
        self._context = Context(self._store, policy, serializer, lazy, os.getpid())
        self._blob = blob_of(self._context) if base.crosses else b""
        self._tasks = _Tasks(self._store, close_store=close_store, ownership=ownership)
        weakref.finalize(self, self._tasks.no_more).atexit = False

    @property
    def store(self) -> Store:
        """Where this executor keeps objects."""
        return self._store

    def submit(  # type: ignore[override]  # proxies stand for what they are proxies of
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskFuture[R]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        What is wrong with the call's data (it cannot be pickled, the store is full, the policy
        raised) reaches the caller through the future.

        Raises:
            RuntimeError: the executor is shut down, or its pool broken.
        """
        self._tasks.add()
        call = _Call(self._tasks, self._context)
        if self._never and not self._needs_care(fn, args, kwargs):
            return self._start(call, fn, args, kwargs)
        return self._submit(Task, call, fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Return an iterator of ``fn`` applied to the items of the iterables, in order.

        Each item is judged by the policy. Results are let go of as they are consumed; closing
        the iterator early, or dropping it, cancels what has not started and evicts the rest.

        Args:
            fn: takes as many arguments as there are iterables.
            iterables: drawn from at once, or as results are consumed if ``buffersize`` is given.
            timeout: seconds from this call within which each result has to be there.
            chunksize: how many items a task gets; 1 in a pool of threads, whatever is given.
            buffersize: how many tasks may be under way ahead of the results consumed.

        Raises:
            ValueError: ``chunksize`` or ``buffersize`` is below 1.
            TypeError: ``buffersize`` is not an integer.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1 or not self._crosses:
            return results(self.submit, fn, iterables, timeout, buffersize)
        return chunked_results(self._submit_chunk, fn, iterables, timeout, buffersize, chunksize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the base executor down, as :meth:`concurrent.futures.Executor.shutdown` does.

        The store is closed (if it is to be) when the last task has ended and the last result is
        gone: results can be read after this.
        """
        self._base.shutdown(wait=wait, cancel_futures=cancel_futures)
        self._tasks.no_more()

    def _needs_care(self, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Tell whether a call that no policy wants to look at must not pass as it is.

        Proxies that a user made have to be kept alive, and lambdas have to be made picklable.
        """
        return (
            any(map(is_proxy, args))
            or any(map(is_proxy, kwargs.values()))
            or self._context.pack_function(fn, crossing=self._crosses).travels is not fn
        )

    def _submit(
        self, kind: type[Task], call: _Call, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> TaskFuture[Any]:
        name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        try:
            packed = call.take(self._context.pack_function(fn, crossing=self._crosses))
            pack = call.pack_chunk if kind is ChunkTask else call.pack
            args = [
                pack(value, f"argument {position} of {name}", self._crosses)
                for position, value in enumerate(args)
            ]
            if kwargs:
                kwargs = {
                    key: call.pack(value, f"argument {key!r} of {name}", self._crosses)
                    for key, value in kwargs.items()
                }
        except BaseException as error:
            call.reject(error)
            if not isinstance(error, Exception):
                raise
            future: TaskFuture[Any] = TaskFuture()
            future.set_exception(error)
            return future
        task = kind(fn, packed, self._context, self._blob, call.key)
        return self._start(call, task, args, kwargs)

    def _start(
        self, call: _Call, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> TaskFuture[Any]:
        future: TaskFuture[Any] = TaskFuture()
        try:
            base = self._base.submit(fn, *args, **kwargs)
        except BaseException as error:
            call.reject(error)
            raise
        future.follow(base, call)
        return future

    def _submit_chunk(self, fn: Any, chunk: Sequence[Sequence[Any]]) -> TaskFuture[list[Any]]:
        self._tasks.add()
        call = _ChunkCall(self._tasks, self._context, len(chunk))
        if self._never and not self._needs_care(fn, [x for one in chunk for x in one], {}):
            return self._start(call, _ApplyAll(fn), chunk, {})
        return self._submit(ChunkTask, call, fn, chunk, {})


class _ApplyAll:
    """A chunk of calls that pass untouched."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *chunk: Sequence[Any]) -> list[Any]:
        return [self.function(*arguments) for arguments in chunk]


class _Tasks:
    """The tasks of one executor that are in flight, and what happens after the last one."""

    def __init__(self, store: Store, *, close_store: bool, ownership: bool) -> None:
        self.store = store
        self.ownership = ownership
        # Results of tasks whose pool broke: other workers may have been writing when their
        # futures failed, so these keys are evicted once more when all workers are gone.
        self.doubtful: list[str] = []
        self._close_store = close_store
        self._in_flight = 0
        self._ended = False
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            if self._ended:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._in_flight += 1

    def done(self) -> None:
        with self._lock:
            self._in_flight -= 1
            last = self._ended and not self._in_flight
        if last:
            self._finish()

    def no_more(self) -> None:
        with self._lock:
            first, self._ended = not self._ended, True
            last = first and not self._in_flight
        if last:
            self._finish()

    def _finish(self) -> None:
        self.store.evict_soon(self.doubtful)
        if self._close_store:
            self.store.close_when_released()


class _Call:
    """One call, seen from the client: what it holds, and what becomes of its outcome."""

    __slots__ = ("_context", "_leases", "_tasks", "key")

    def __init__(self, tasks: _Tasks, context: Context) -> None:
        self._tasks = tasks
        self._context = context
        self._leases: list[Lease] = []
        self.key = context.store.new_key()

    def pack(self, obj: Any, what: str, crossing: bool) -> Any:
        """Make an argument ready to travel, and hold what it needs until the task has ended."""
        context = self._context
        packed = context.pack(obj, context.store.new_key(), what, crossing=crossing)
        return self.take(packed)

    def pack_chunk(self, arguments: Sequence[Any], what: str, crossing: bool) -> Any:
        return tuple(self.pack(value, what, crossing) for value in arguments)

    def take(self, packed: Any) -> Any:
        travels, key, proxies = packed
        if key is not None:
            self._leases.append(self._context.store.take(key, _leases_on(proxies)))
        elif proxies:
            self._leases.extend(_leases_on(proxies))
        return travels

    def accept(self, outcome: Any) -> Any:
        try:
            return self._open(outcome, self.key)
        except BaseException as error:
            self._evict(error)
            raise
        finally:
            self._end()

    def reject(self, error: BaseException | None) -> None:
        self._evict(error)
        self._end()

    def _open(self, outcome: Any, key: str) -> Any:
        """Turn an outcome into what the caller gets."""
        if type(outcome) is Inline:
            return self._context.load(outcome)
        if type(outcome) is not Stored:
            return outcome
        reference = outcome.reference
        store = store_at(reference.address)
        lease = store.join(reference.key)
        if lease is None and reference.key == key and self._tasks.ownership:
            companions = _leases_on(map(make_proxy, outcome.embedded))
            lease = store.take(key, companions)
        if self._context.lazy:
            return make_proxy(reference, lease)
        return Deferred(lambda: store.get(reference), lease)

    def _keys(self) -> list[str]:
        return [self.key]

    def _evict(self, error: BaseException | None) -> None:
        keys = self._keys()
        self._context.store.evict_soon(keys)
        if isinstance(error, BrokenExecutor):
            self._tasks.doubtful.extend(keys)

    def _end(self) -> None:
        for lease in self._leases:
            lease.release()
        self._leases.clear()
        self._tasks.done()


class _ChunkCall(_Call):
    """Several calls that travel together."""

    __slots__ = ("_length",)

    def __init__(self, tasks: _Tasks, context: Context, length: int) -> None:
        super().__init__(tasks, context)
        self._length = length

    def _open(self, outcome: Any, key: str) -> Any:
        return [
            super(_ChunkCall, self)._open(one, chunk_key(key, number))
            for number, one in enumerate(outcome)
        ]

    def _keys(self) -> list[str]:
        return [chunk_key(self.key, number) for number in range(self._length)]


def _leases_on(proxies: Iterable[Proxy]) -> list[Lease]:
    """New leases on the objects that proxies hold a lease on."""
    joined = (
        store_at(reference_of(proxy).address).join(reference_of(proxy).key)
        for proxy in proxies
        if lease_of(proxy) is not None
    )
    return [lease for lease in joined if lease is not None]


def _as_store(store: Any) -> Store:
    if isinstance(store, Store):
        return store
    if isinstance(store, str):
        return Store.from_url(store)
    if callable(getattr(store, "get_many", None)):
        return Store(store.url, store)
    raise TypeError(f"store must be a Store, a connector, a URL or None, not {store!r}")
