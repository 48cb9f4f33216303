"""asyncio's face of :class:`~proxyexec.StoreExecutor`: nothing that takes long is done on the loop.

Calls are handed over by a :class:`~proxyexec._packing.Packer`, data are fetched by threads, and
what becomes of a task is told to the loop by the thread that learns it. A handle *is* an
:class:`asyncio.Future`, so all that waits for one of these waits for a task.

No logic of executors, policies or stores is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from proxyexec._ahead import results_in_order
from proxyexec._call import Call
from proxyexec._map import checked_buffersize
from proxyexec._mapped import MappedFunction
from proxyexec._packing import PackedExecutor, Packer, Submission
from proxyexec._progress import Counting, MapProgress, ShowProgress
from proxyexec._proxy import extract, is_proxy, is_resolved

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Connector
    from typing_extensions import ParamSpec, Self

    from proxyexec._config_stack import StoreExecutorSpec
    from proxyexec._explain import Explanation
    from proxyexec._future import TaskFuture
    from proxyexec._leaks import Leaks
    from proxyexec._payloads import Serializers
    from proxyexec._stats import Stats
    from proxyexec._store import Store
    from proxyexec._trace_writer import TraceWriter
    from proxyexec.policy import ShouldProxy

    P = ParamSpec("P")

__all__ = ["AsyncStoreExecutor", "Handle"]

R = TypeVar("R")

# A map runs ahead of its reader by so many tasks a worker.
_AHEAD = 2

# Threads that fetch what is asked for; started as they are needed.
_FETCHERS = 4


class Handle(asyncio.Future[R]):
    """What stands for a task: awaited for its result, and an argument of further calls.

    It is an :class:`asyncio.Future`: :func:`asyncio.wait`, :func:`asyncio.gather`,
    :func:`asyncio.shield` and the like take it. Made by executors, not by hand.
    """

    _submission: Submission
    _pending: _Pending
    _dependents: weakref.WeakSet[Handle[Any]] | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the task, and the calls that need its result.

        Before its arguments are packed, the call never becomes a task. A task that has started
        runs to its end, and its result is evicted then.

        Returns:
            Whether this handle is cancelled by this; ``False`` if it was done.
        """
        if self.done():
            return asyncio.Future.cancel(self, msg)  # has no effect, but for what is logged
        to_cancel: list[Handle[Any]] = [self]
        while to_cancel:  # not by recursion: chains may be long
            handle = to_cancel.pop()
            if not handle.done():
                asyncio.Future.cancel(handle, msg)
                handle._pending.discard()
                handle._submission.cancel()
                to_cancel.extend(handle._dependents or ())
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a handle cannot be sent to a task inside of something else; pass it as an argument of "
            "its own, as in submit(function, *handles), and it is replaced by its result"
        )

    # For executors; not part of the public interface.

    def _is_needed_by(self, other: Handle[Any]) -> None:
        """Cancel ``other``, too, when this one is cancelled. Weakly: who is pending is held."""
        if self._dependents is None:
            self._dependents = weakref.WeakSet()
        if self.done():
            self._log_traceback = False
        else:
            self._dependents.add(other)

    def _settle(self, error: BaseException | None, result: Any) -> None:
        """See what has become of the task."""
        if self.done():  # it was cancelled
            return
        self._pending.discard()
        if error is None:
            self.set_result(result)
            return
        self.set_exception(error)
        if self._dependents is not None:
            self._log_traceback = False  # it is their error, too


class AsyncStoreExecutor:
    """A :class:`~proxyexec.StoreExecutor` for coroutines, around any executor that runs tasks.

    All is as there, with ``lazy=True``: functions and callers get proxies of what the policy
    wants stored. It belongs to the event loop that first uses it, and may be made before that runs.

    Args:
        executor: the base executor; shut down with this one.
        store: a :class:`~proxyexec.Store`, a connector, or a URL. ``None`` keeps objects in memory
            for a pool of threads, in shared memory and files otherwise.
        should_proxy: a policy, or any callable that tells of an object whether it is worth
            storing. ``None`` is :class:`~proxyexec.policy.ProxyNever`.
        ownership: whether results are evicted when nobody holds them any more.
        close_store: whether the store is closed when the executor is shut down, the last result
            is gone, and no other executor uses it.
        nested: whether to look for what the policy wants inside objects, too.
        dedupe: whether an argument with the content of one that is stored, and held, already
            shares that one's place.
        serializers: which strategies functions, arguments and results travel by; see
            :mod:`proxyexec.serializers`.

    Raises:
        TypeError: ``executor`` cannot submit, ``store`` is no store, ``should_proxy`` cannot
            be called, ``serializers`` are none, or ``nested`` is asked for with them, or with a
            serializer that takes no parts out.
        ValueError: the store is owned by another process, or cannot read what ``serializers``
            write.
    """

    _spec: StoreExecutorSpec | None = None  # what it was made of

    def __init__(
        self,
        executor: Any,
        store: Store | Connector | str | None = None,
        should_proxy: ShouldProxy | None = None,
        *,
        ownership: bool = True,
        close_store: bool = True,
        nested: bool = False,
        dedupe: bool = True,
        serializers: Serializers | None = None,
    ) -> None:
        self._executor = PackedExecutor(
            executor,
            store,
            should_proxy,
            ownership=ownership,
            close_store=close_store,
            nested=nested,
            dedupe=dedupe,
            serializers=serializers,
        )
        self._packer = Packer(self._executor)
        self._fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="proxyexec-fetch")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending = _Pending()
        self._begun = False
        self._ended = False
        # Whether what has not started is to be cancelled, now that it has ended.
        self._cancels = False

    @classmethod
    def from_config(
        cls, source: Any = None, *, allow: Sequence[str] | None = None, environment: bool = True
    ) -> Self:
        """Make an executor from a configuration; see :meth:`proxyexec.StoreExecutor.from_config`.

        Raises:
            ConfigError: something is wrong with it, or it has options that there are not here.
            Exception: as there.
        """
        from proxyexec.config import load  # noqa: PLC0415 - most programs need no pydantic

        executor: Self = load(source, allow=allow, environment=environment).build(cls)
        return executor

    def config(self) -> StoreExecutorSpec:
        """Return what it was made of; see :meth:`proxyexec.StoreExecutor.config`."""
        return self._executor.config() if self._spec is None else self._spec

    @property
    def store(self) -> Store:
        """Where this executor keeps objects."""
        return self._executor.store

    def stats(self) -> Stats:
        """Return what was done so far, in numbers; see :meth:`proxyexec.StoreExecutor.stats`."""
        return self._executor.stats()

    async def leaks(self) -> Leaks:
        """Return what is in the store now, and who holds it; see :meth:`proxyexec.Store.leaks`."""
        return await asyncio.to_thread(self._executor.leaks)

    def explain(self, handle: Handle[Any], /) -> Explanation:
        """Say what was sent for a call, and why; see :meth:`proxyexec.StoreExecutor.explain`.

        Raises:
            ValueError: the call is not packed yet, was cancelled, or is another executor's.
        """
        future = handle._submission.future
        if future is None:
            raise ValueError("nothing was sent: the call is not packed yet, or was cancelled")
        return self._executor.explain(future)

    def trace(self, path: str | os.PathLike[str], max_bytes: int | str = "100 MB") -> TraceWriter:
        """Write what happens into a file; see :meth:`proxyexec.StoreExecutor.trace`."""
        return self._executor.trace(path, max_bytes)

    @overload
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload  # as in StoreExecutor
    def submit(  # type: ignore[overload-cannot-match]
        self, fn: Callable[..., R], first: Handle[Any], /, *args: Any, **kwargs: Any
    ) -> Handle[R]: ...
    @overload
    def submit(  # type: ignore[overload-cannot-match]
        self, fn: Callable[..., R], first: Any, second: Handle[Any], /, *args: Any, **kwargs: Any
    ) -> Handle[R]: ...
    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Handle[R]:
        """Schedule ``fn(*args, **kwargs)`` and return its handle at once.

        A thread packs the arguments, in the order of the calls, so they should not be changed until
        the handle is done. One that is a handle is replaced by its result: the call waits for that,
        no worker does, and its data stay where they are. If it fails or is cancelled, so is this
        call.

        What is wrong with the call reaches the caller through the handle.

        Raises:
            RuntimeError: the executor is shut down, or belongs to another event loop, or none
                is running.
        """
        return self._submit(fn, args, kwargs)

    @overload
    async def retrieve(self, source: Handle[R]) -> R: ...
    @overload
    async def retrieve(self, source: R) -> R: ...
    async def retrieve(self, source: Any) -> Any:
        """Return a result itself, fetched by a thread if it is stored.

        Args:
            source: a handle, which is awaited; or a result of one. What is no proxy is returned
                as it is.

        Raises:
            Exception: what awaiting the handle raises, or what kept its data from arriving.
        """
        loop = self._running_loop()
        result = await source if type(source) is Handle else source
        if not is_proxy(result) or is_resolved(result):
            return extract(result)
        return await loop.run_in_executor(self._fetchers, extract, result)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        buffersize: int | None = None,
        timeout: float | None = None,
        progress: ShowProgress = False,
    ) -> AsyncGenerator[R, None]:
        """Return an asynchronous iterator of ``fn`` applied to the items, in order.

        Starts with the first result that is asked for. A task of asyncio then draws items and
        submits calls, ahead of the reader; under a quota, as far as there is room. If drawing
        fails, that is raised after the results of what was drawn before.

        Closing the iterator early (``aclose()``, or dropping it) cancels what has not started and
        evicts the rest.

        Args:
            fn: takes as many arguments as there are iterables.
            iterables: some may be asynchronous. The others are drawn from on the loop.
            buffersize: how many tasks may be under way ahead of the results consumed; two for
                each worker by default.
            timeout: seconds from this call within which each result has to be there.
            progress: whether to show a bar, or what to call on the loop with a
                :class:`~proxyexec.ProgressCounts`, as with :meth:`proxyexec.StoreExecutor.map`.

        Raises:
            ValueError: ``buffersize`` is below 1.
            TypeError: ``buffersize`` is not an integer.
            RuntimeError: as with :meth:`submit`.
            MissingExtraError: there is to be a bar, and neither tqdm nor rich is installed.
        """
        loop = self._running_loop()
        most = checked_buffersize(buffersize) or _AHEAD * self._executor._workers
        function: Any = fn
        inner = self._executor
        if inner._crosses and not inner._context.travels_by_name(fn):
            function = MappedFunction(fn, inner._tasks, Call, may_change=True)
        submit: Any = functools.partial(self._submit, function, kwargs={})
        counting = None
        if progress is not False and progress is not None:
            counting = MapProgress(progress, fn, iterables).counting
            submit = functools.partial(_submit_watched, submit, counting)
        results = results_in_order(
            submit,
            iterables,
            most,
            None if timeout is None else loop.time() + timeout,
            None if inner._never else inner.store.quota,
        )
        return results if counting is None else counting.until_end(results)

    async def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for those that there are, and shut the base executor down.

        Results can be awaited and retrieved after this. If this is cancelled while it waits, what
        has not started is cancelled, and nobody waits for the rest.

        Args:
            wait: whether to wait. If not, pending tasks are run all the same.
            cancel_futures: whether to cancel what has not started.

        Raises:
            RuntimeError: the executor belongs to another event loop, or none is running.
        """
        loop = self._running_loop()
        self._ended = True
        if wait and not (cancel_futures or self._cancels):
            self._packer.hurry()
            try:
                await self._pending.none_left(loop)
            except asyncio.CancelledError:
                self._shut_down(loop, wait=False, cancel_futures=True)
                raise
        over = self._shut_down(loop, wait=wait, cancel_futures=cancel_futures)
        if wait:
            await over
            await self._pending.none_left(loop)

    async def __aenter__(self) -> Self:
        self._running_loop()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    def _submit(
        self,
        fn: Callable[..., R],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        freely: bool = False,
        when_packed: Callable[[], object] | None = None,
    ) -> Handle[R]:
        loop = self._running_loop()
        if self._ended:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if not self._begun:
            self._begun = True
            _fork_workers(self._executor._base)
        handle: Handle[R] = Handle(loop=loop)
        needed = [value for value in (*args, *kwargs.values()) if type(value) is Handle]
        if needed:
            args = [_submission_in(value) for value in args]
            kwargs = {name: _submission_in(value) for name, value in kwargs.items()}
        submission = Submission(
            fn,
            args,
            kwargs,
            owner=_Settler(loop, handle),
            when_packed=when_packed,
            freely=freely,
        )
        handle._submission, handle._pending = submission, self._pending
        for other in needed:
            if other.get_loop() is not loop:
                raise RuntimeError("an argument is a handle that belongs to another event loop")
            other._is_needed_by(handle)
        self._pending.add()
        if any(other.cancelled() for other in needed):
            handle.cancel()
        try:
            self._packer.put(submission)
        except BaseException:
            handle.cancel()
            raise
        return handle

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, which is this executor's from now on.

        Raises:
            RuntimeError: none is running here, or it is another one.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "an AsyncStoreExecutor is used in a running event loop, by its coroutines"
            ) from None
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            closed = ", which is closed" if self._loop.is_closed() else ""
            raise RuntimeError(f"this executor belongs to another event loop{closed}")
        return loop

    def _shut_down(
        self, loop: asyncio.AbstractEventLoop, *, wait: bool, cancel_futures: bool
    ) -> asyncio.Future[None]:
        """Shut the executor down when all calls are packed; return a future that is done then."""
        if cancel_futures:
            self._cancels = True
            self._packer.cancel()

        def shut_down() -> None:
            self._packer.finish()
            # Of pools, the last word counts.
            self._executor.shutdown(wait=wait, cancel_futures=self._cancels)

        return _in_a_thread(loop, shut_down)


class _Settler:
    """Tells the loop what has become of a task; holds the handle until then."""

    __slots__ = ("_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, handle: Handle[Any]) -> None:
        self._loop = loop
        self._handle: Handle[Any] | None = handle

    def when_done(self, future: TaskFuture[Any]) -> None:
        handle, self._handle = self._handle, None
        assert handle is not None  # noqa: S101 - a future is done once
        if future.cancelled():
            self._tell(handle.cancel)
            return
        error: BaseException | None
        result = None
        try:
            error = future.exception()
            result = None if error is not None else future.result()
        except BaseException as raised:  # noqa: BLE001 - it is raised for who waits for the result
            error = raised
        try:
            self._tell(handle._settle, None if error is None else _raisable(error), result)
        finally:
            del error, future  # an error's traceback may refer to this frame

    def when_refused(self) -> None:
        if self._handle is not None:
            self._tell(self._handle.cancel)

    def _tell(self, step: Callable[..., object], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(step, *arguments)
        except RuntimeError:  # nobody waits in a loop that is closed
            if not self._loop.is_closed():
                raise


class _Pending:
    """How many handles are not done; used on the loop."""

    def __init__(self) -> None:
        self._count = 0
        self._waiting: list[asyncio.Future[None]] = []

    def add(self) -> None:
        """Count one in."""
        self._count += 1

    def discard(self) -> None:
        """Count one out."""
        self._count -= 1
        if not self._count:
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                if not one.done():
                    one.set_result(None)

    def none_left(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Return a future that is done when all handles are."""
        future: asyncio.Future[None] = loop.create_future()
        if self._count:
            self._waiting.append(future)
        else:
            future.set_result(None)
        return future


def _submit_watched(
    submit: Callable[..., Handle[Any]], counting: Counting, **call: Any
) -> Handle[Any]:
    handle = submit(**call)
    counting.watch(handle)
    return handle


def _submission_in(value: Any) -> Any:
    return value._submission if type(value) is Handle else value


def _raisable(error: BaseException) -> BaseException:
    """What a coroutine can raise in place of an error: ``StopIteration`` would end it."""
    if not isinstance(error, StopIteration):
        return error
    raisable = RuntimeError("a task raised StopIteration, which no coroutine can raise")
    raisable.__cause__ = error
    return raisable


def _fork_workers(base: Any) -> None:
    """Have a pool that forks its workers do so now, before there are threads of ours."""
    context = base._mp_context if isinstance(base, ProcessPoolExecutor) else None
    if context is not None and context.get_start_method() == "fork":
        with contextlib.suppress(RuntimeError):  # it is broken, or shut down: calls will tell
            base.submit(int)


def _in_a_thread(
    loop: asyncio.AbstractEventLoop, function: Callable[[], object]
) -> asyncio.Future[None]:
    """Call a function in a thread of its own; return a future that is done when it returns."""
    over: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if over.done():
            return
        if error is None:
            over.set_result(None)
        else:
            over.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            function()
        except BaseException as raised:  # noqa: BLE001 - it is raised for who waits
            error = raised
        try:
            loop.call_soon_threadsafe(tell, error)
        except RuntimeError:  # nobody waits in a loop that is closed
            if not loop.is_closed():
                raise
        finally:
            del error

    threading.Thread(target=run, name="proxyexec-shutdown").start()
    return over
