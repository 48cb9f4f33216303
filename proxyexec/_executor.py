"""``StoreExecutor``: submit, map and shutdown, with data in a store.

Here the parts meet: arguments are packed and leased, the task goes to the base executor, and
what it came to is unpacked for the future. Whatever fails, what the call had stored by then is
evicted. Nothing here knows backends or frameworks.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar

from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector

from proxyexec._adapters import adapt
from proxyexec._call import Call, ChunkCall, PassedCall, Tasks
from proxyexec._future import TaskFuture, failed_future, future_of
from proxyexec._map import chunked_results, results
from proxyexec._proxy import Proxy
from proxyexec._serialize import PickleSerializer
from proxyexec._store import Store
from proxyexec._task import (
    ChunkTask,
    Context,
    Task,
    blob_of,
)
from proxyexec.policy import ProxyNever, ShouldProxy

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Connector
    from typing_extensions import ParamSpec

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
            always are, when their task has ended. Without, the store is left open, too.
        close_store: whether the store is closed when the executor is shut down, the last result
            is gone, and no other executor uses it.
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
        self._tasks = Tasks(self._store, close_store=close_store, ownership=ownership)
        weakref.finalize(self, self._tasks.no_more).atexit = False

    @property
    def store(self) -> Store:
        """Where this executor keeps objects."""
        return self._store

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        What is wrong with the call's data (it cannot be pickled, the store is full, the policy
        raised) reaches the caller through the future.

        Raises:
            RuntimeError: the executor is shut down, or its pool broken.
        """
        if self._never and not self._needs_care(fn, args, kwargs):
            return self._start(PassedCall(self._tasks), fn, args, kwargs)
        context = self._context
        call = Call(self._tasks, context, self._crosses)
        # Most calls are small: see at a glance that there is nothing to pack.
        if not kwargs and all(map(context.passes, args)) and context.travels_by_name(fn):
            return self._start(call, Task(fn, fn, context, self._blob, call.key), args, kwargs)
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
        the iterator early, or dropping it half-way, cancels what has not started and evicts the
        rest. Dropped unread, it lets the tasks run, as the standard library's does.

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
        if not self._crosses:
            chunksize = 1
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
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
        return any(isinstance(value, Proxy) for value in (*args, *kwargs.values())) or (
            self._crosses and not self._context.travels_by_name(fn)
        )

    def _submit(
        self, kind: type[Task], call: Call, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> TaskFuture[Any]:
        try:
            travels = call.pack_function(fn)
            pack = call.pack_chunk if kind is ChunkTask else call.pack
            args = [pack(value, position, fn) for position, value in enumerate(args)]
            if kwargs:
                kwargs = {name: call.pack(value, name, fn) for name, value in kwargs.items()}
        except BaseException as error:
            call.end(error)
            if isinstance(error, Exception):
                return failed_future(error)
            raise
        call.seal()
        task = kind(fn, travels, self._context, self._blob, call.key)
        return self._start(call, task, args, kwargs)

    def _start(
        self, call: Call | PassedCall, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> TaskFuture[Any]:
        try:
            base = self._base.submit(fn, *args, **kwargs)
        except BaseException as error:
            call.end(error)
            raise
        return future_of(base, call)

    def _submit_chunk(self, fn: Any, chunk: Sequence[Sequence[Any]]) -> TaskFuture[list[Any]]:
        if self._never and not self._needs_care(fn, [x for one in chunk for x in one], {}):
            return self._start(PassedCall(self._tasks), _ApplyAll(fn), chunk, {})
        call = ChunkCall(self._tasks, self._context, self._crosses, len(chunk))
        return self._submit(ChunkTask, call, fn, chunk, {})


class _ApplyAll:
    """A chunk of calls that pass untouched."""

    def __init__(self, function: Any) -> None:
        self.function = function
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *chunk: Sequence[Any]) -> list[Any]:
        return [self.function(*arguments) for arguments in chunk]


def _as_store(store: Any) -> Store:
    if isinstance(store, Store):
        return store
    if isinstance(store, str):
        return Store.from_url(store)
    if callable(getattr(store, "get_many", None)):
        return Store(store.url, store)
    raise TypeError(f"store must be a Store, a connector, a URL or None, not {store!r}")
