"""``StoreExecutor``: submit, map and shutdown, with data in a store.

Here the parts meet: arguments are packed and leased, the task goes to the base executor, and
what it came to is unpacked for the future. Whatever fails, what the call had stored by then is
evicted. Nothing here knows backends or frameworks.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
import operator
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector

from proxyexec import _spans
from proxyexec._adapters import Base, adapt, forget_pending
from proxyexec._call import Call, PassedCall
from proxyexec._carried import callable_name
from proxyexec._chunk_call import ChunkCall, TimedChunkCall
from proxyexec._chunks import automatic_results
from proxyexec._context import Context
from proxyexec._described import TUNED, Described
from proxyexec._foreign import in_a_thread
from proxyexec._future import TaskFuture, failed_future, future_of
from proxyexec._grouped import Grouped
from proxyexec._map import are_at_hand, chunked_results, results
from proxyexec._mapped import MappedFunction, plain
from proxyexec._parts import PartRules
from proxyexec._payloads import Serializers
from proxyexec._progress import MapProgress, ShowProgress
from proxyexec._proxy import Proxy
from proxyexec._quota import ShutDownError
from proxyexec._seen import SeenCall, SeenChunkCall
from proxyexec._serialize import PickleSerializer
from proxyexec._sizes import TINY
from proxyexec._store import Store
from proxyexec._strategy_context import StrategyContext, have_read
from proxyexec._task import Task, blob_of
from proxyexec._tasks import Tasks
from proxyexec._waiting import future_after
from proxyexec.policy import ProxyAdaptive, ProxyNever, ProxySize, ShouldProxy, attach

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Connector
    from typing_extensions import ParamSpec

    from proxyexec._learning import Learner

    P = ParamSpec("P")

__all__ = ["StoreExecutor"]

R = TypeVar("R")


_log = logging.getLogger("proxyexec.executor")


def _unwatched(submit: Callable[..., Any], *, chunked: bool = False) -> Callable[..., Any]:
    return submit


class StoreExecutor(Described, Grouped, Executor):
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
        nested: whether to look for what the policy wants inside objects, too: in containers,
            dataclasses and attributes.
        dedupe: whether an argument with the content of one that is stored, and held, already
            shares that one's place.
        serializers: which strategies functions, arguments and results travel by; see
            :mod:`proxyexec.serializers`. Each is a payload then, and none passes as it is.
        task_group: writes calls and what they come to down, for a later process to go on with:
            the name of a group, ``True`` for a new one. ``store`` is the URL of a directory or of
            Redis then, or a connector, in whose place the group is. See "Resuming" in the
            documentation.
        task_group_max_age: seconds without use after which the group may be collected; a week if
            it is new.

    Raises:
        TypeError: ``executor`` cannot submit, ``store`` is no store, ``should_proxy`` cannot
            be called, ``serializers`` are none, or ``nested`` is asked for with them, or with a
            serializer that takes no parts out.
        ValueError: the store is owned by another process, or there is none and workers may be on
            other hosts; or it cannot read what ``serializers`` write.
    """

    _learner: Learner | None = None

    # Tells the tuner how long this was in use, in a program that it has started.
    _timed: Callable[[], object] | None = None

    def __init__(
        self,
        executor: Any,
        store: Store | Connector | str | None = None,
        should_proxy: ShouldProxy | None = None,
        *,
        ownership: bool = True,
        close_store: bool = True,
        lazy: bool = True,
        nested: bool = False,
        dedupe: bool = True,
        serializers: Serializers | None = None,
        task_group: bool | str | uuid.UUID | None = None,
        task_group_max_age: float | None = None,
    ) -> None:
        if TUNED in os.environ:
            from proxyexec._tune_override import overridden  # noqa: PLC0415 - for the tuner only

            store, should_proxy = overridden(store, should_proxy, task_group)
        base = adapt(executor)
        self._given = executor
        self._base = base.executor
        group = None
        if task_group is not None:
            # Only now: most programs have none.
            from proxyexec._group_store import open_group  # noqa: PLC0415

            store = group = open_group(store, task_group, task_group_max_age)
        try:
            self._set_up(
                base,
                store,
                should_proxy,
                ownership=ownership or group is not None,
                close_store=close_store,
                lazy=lazy,
                nested=nested,
                dedupe=dedupe,
                serializers=serializers,
            )
            if group is not None:
                self._set_up_group(group)
        finally:
            if group is not None:
                group.leave(close=close_store)
        if TUNED in os.environ:
            from proxyexec._tune_override import timed  # noqa: PLC0415

            self._timed = timed(self._tasks)

    def _set_up(
        self,
        base: Base,
        store: Any,
        should_proxy: ShouldProxy | None,
        *,
        ownership: bool = True,
        close_store: bool = True,
        lazy: bool,
        nested: bool,
        dedupe: bool = True,
        serializers: Serializers | None = None,
    ) -> None:
        policy = ProxyNever() if should_proxy is None else should_proxy
        if not callable(policy):
            raise TypeError(f"should_proxy must be callable, like ProxySize('1 MB'): {policy!r}")
        self._crosses = base.crosses
        self._never = type(policy) is ProxyNever and serializers is None
        self._options = base.options
        self._link = base.link
        self._has_usual_store = store is None
        if store is None:
            if not base.is_local:
                raise ValueError(
                    "workers that may be on other hosts need a store that all of them reach, as in "
                    "StoreExecutor(client, 'redis://host:6379') or 'file:///a/shared/directory'"
                )
            store = FileConnector() if base.crosses else MemoryConnector()
        self._store = _as_store(store)
        if not self._store.is_owner:
            raise ValueError(
                f"the store {self._store.name!r} is owned by another process; open one here"
            )
        serializer = self._store.serializer if serializers is None else serializers
        if not (serializers is None or isinstance(serializers, Serializers)):
            raise TypeError(f"serializers must be Serializers, such as {Serializers()}")
        takes_parts = isinstance(serializer, PickleSerializer)
        if nested and not takes_parts:
            raise TypeError(f"nested=True needs a PickleSerializer in the store: {serializer!r}")
        if serializers is not None:
            have_read(self._store, serializers)
        if type(serializer) is PickleSerializer:
            serializer = PickleSerializer(
                main="value" if base.main == "value" else serializer.main,
                like_pools=base.like_pools or serializer.like_pools,
            )
        rules = PartRules(policy if takes_parts else ProxyNever())
        kind = Context if serializers is None else StrategyContext
        self._context = kind(self._store, policy, serializer, lazy, nested, rules, os.getpid())
        self._blob = blob_of(self._context) if base.crosses else b""
        self._tasks = Tasks(
            self._store,
            close_store=close_store,
            ownership=ownership,
            dedupe=dedupe,
            # What of an argument is stored by itself makes no difference but in time.
            gathers=not lazy and type(policy) in (ProxyAdaptive, ProxySize),
            cancels_before_start=base.like_pools or not base.crosses,
        )
        self._measures = self._tasks.measures
        weakref.finalize(self, self._tasks.no_more).atexit = False
        _log.debug(
            "an executor around a %s, with store %r and policy %r",
            type(base.executor).__name__,
            self._store.name,
            policy,
        )
        attach(policy, self)

    @property
    def store(self) -> Store:
        """Where this executor keeps objects."""
        return self._store

    # Type checkers look at arguments as they do for the standard library, and let futures stand for
    # the first or second of them.
    @overload
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]: ...
    @overload  # mypy is mistaken: tests/typing_api.py matches these two
    def submit(  # type: ignore[overload-cannot-match]
        self, fn: Callable[..., R], first: TaskFuture[Any], /, *args: Any, **kwargs: Any
    ) -> TaskFuture[R]: ...
    @overload
    def submit(  # type: ignore[overload-cannot-match]
        self,
        fn: Callable[..., R],
        first: Any,
        second: TaskFuture[Any],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> TaskFuture[R]: ...
    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> TaskFuture[R]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        An argument that is a :class:`TaskFuture` is replaced by its result. Until that is there,
        the call waits, and no worker does; if it fails or is cancelled, so is this call.

        What is wrong with the call's data (it cannot be pickled, the store is full, the policy
        raised) reaches the caller through the future. Where the store has a quota (``max_bytes``),
        a call waits here until there is room for its arguments.

        Options of the base executor (``retries=2`` for a Dask client, say) are given to it.

        Raises:
            RuntimeError: the executor is shut down, or its pool broken.
        """
        tracing = _spans.active
        if tracing is not None and not tracing.submits():
            # Not by what a subclass may have put in place of this: that has been here.
            submit: Callable[..., Any] = functools.partial(StoreExecutor.submit, self)
            in_span: TaskFuture[R] = tracing.submit(
                submit, callable_name(plain(fn)), fn, args, kwargs
            )
            return in_span
        if kwargs and not self._options.isdisjoint(kwargs):
            options = {name: kwargs.pop(name) for name in self._options.intersection(kwargs)}
            return self._with_options(options)._submit_with_options(fn, args, kwargs)
        if self._group is not None:
            return self._group.submit(self._base.submit, fn, args, kwargs)
        function: Any = fn
        if type(function) is MappedFunction:
            return self._submit_mapped(function, args)
        if self._never and not self._needs_care(fn, args, kwargs):
            if self._measures.every:
                seen = SeenCall(self._tasks, self._context, self._crosses, fn)
                return self._submit(seen, fn, args, kwargs)
            self._see(args, kwargs.values())
            return self._start(PassedCall(self._tasks, self._crosses), fn, args, kwargs)
        context = self._context
        # Most calls are small: see at a glance that there is nothing to pack.
        passes = context.passes
        if (
            not self._measures.every
            and all(map(passes, args))
            and (not kwargs or all(map(passes, kwargs.values())))
            and context.travels_by_name(fn)
        ):
            call = Call(self._tasks, context, self._crosses, fn)
            for one in args if not kwargs else (*args, *kwargs.values()):
                if type(one) not in TINY:  # as most are
                    self._see(args, kwargs.values())
                    break
            # Most learn nothing: one more call would cost each of these.
            learner = self._learner
            blob = self._blob if learner is None else learner.blob_for(call, self._blob)
            return self._start(call, Task(fn, fn, context, blob, call.key), args, kwargs)
        return self._submit(Call(self._tasks, context, self._crosses, fn), fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = 1,
        buffersize: int | None = None,
        progress: ShowProgress = False,
        **options: Any,
    ) -> Iterator[R]:
        """Return an iterator of ``fn`` applied to the items of the iterables, in order.

        Each item is judged by the policy. What ``fn`` carries is, too, and is stored once as long
        as it does not change. Results are let go of as they are consumed; closing the iterator
        early, or dropping it half-way, cancels what has not started and evicts the rest. Dropped
        unread, it lets the tasks run, as the standard library's does.

        Where the store has a quota, tasks are given to a pool of processes as there is room for
        them; with a ``buffersize``, to every executor.

        Args:
            fn: takes as many arguments as there are iterables.
            iterables: drawn from at once, or as results are consumed if ``buffersize`` is given.
            timeout: seconds from this call within which each result has to be there.
            chunksize: how many items a task gets; 1 in a pool of threads, whatever is given.
                With ``"auto"``, as many as take some hundredths of a second, which is measured
                while the map runs: one at first, many more where they are fast. Each call is
                still as if it were alone, with a result or an error of its own; but results of a
                task arrive together, so that no item may wait for another one, and items are packed
                as their task is sent, so that none may be changed before its result is there.
            buffersize: how many tasks may be under way ahead of the results consumed; how many
                items with ``chunksize="auto"``.
            progress: whether to show a bar, of tqdm's or rich's, until all tasks have ended; or
                what to call with a :class:`~proxyexec.ProgressCounts` whenever there is news.
            options: of the base executor, for each task.

        Raises:
            ValueError: ``chunksize`` or ``buffersize`` is below 1, or ``chunksize`` is a text
                other than ``"auto"``.
            TypeError: ``chunksize`` or ``buffersize`` is not an integer, or the base executor has
                no such option.
            MissingExtraError: there is to be a bar, and neither tqdm nor rich is installed.
        """
        if progress is False or progress is None:
            return self._map(fn, iterables, timeout, chunksize, buffersize, options)
        shown = MapProgress(progress, fn, iterables, draws_all=buffersize is None)
        return shown.of(
            lambda drawn: self._map(
                fn, drawn, timeout, chunksize, buffersize, options, shown.watching
            )
        )

    def _map(
        self,
        fn: Callable[..., R],
        iterables: Sequence[Iterable[Any]],
        timeout: float | None,
        chunksize: int | Literal["auto"],
        buffersize: int | None,
        options: dict[str, Any],
        watching: Callable[..., Any] = _unwatched,
    ) -> Iterator[R]:
        """Do what :meth:`map` does; calls go by what ``watching`` makes of what submits them."""
        if options:
            unknown = ", ".join(map(repr, sorted(options.keys() - self._options)))
            if unknown:
                raise TypeError(f"map() got unexpected keyword arguments: {unknown}")
            executor = self._with_options(options)
            if executor._base.merges:  # each call may be one task with another
                return results(
                    _spans.bound(
                        watching(lambda item: executor._submit_with_options(fn, item, {}))
                    ),
                    iterables,
                    timeout,
                    buffersize,
                    self._store.quota,
                )
            return executor._map(fn, iterables, timeout, chunksize, buffersize, {}, watching)
        size = _checked_chunksize(chunksize) if self._crosses else 1
        if self._group is not None:  # each item is a call that is written down
            submit_one = watching(functools.partial(_submit_item, self.submit, fn))
            submit_one = _spans.bound(submit_one)
            return results(submit_one, iterables, timeout, buffersize)
        quota = None if self._never else self._store.quota
        given = None
        if quota is not None and buffersize is None and self._crosses:
            # All items are drawn now, and are sent when there is room: by nobody who waits for it.
            given, size = size, None
        kind = Call if size == 1 else TimedChunkCall if size is None else ChunkCall
        function: Any = fn
        if size != 1 or (self._crosses and not self._context.travels_by_name(fn)):
            may_change = buffersize is not None or not are_at_hand(iterables)
            function = MappedFunction(fn, self._tasks, kind, may_change=may_change)
        # By way of submit(), which subclasses may have changed.
        submit: Callable[..., Any] = functools.partial(_submit_item, self.submit, function)
        submit = _spans.bound(watching(submit, chunked=size != 1))
        if size is None:
            return automatic_results(
                submit, iterables, timeout, buffersize, self._tasks, self._workers, given
            )
        if quota is not None and buffersize is None:
            submit = quota.freely(submit)  # or it would wait for what its own results take
        if size > 1:
            return chunked_results(submit, iterables, timeout, buffersize, size, quota)
        return results(submit, iterables, timeout, buffersize, quota)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the base executor down, as :meth:`concurrent.futures.Executor.shutdown` does.

        Calls that wait for the results of others are pending ones: they are run, or cancelled with
        ``cancel_futures``. The store is closed (if it is to be) when the last task has ended and
        the last result is gone: results can be read after this.
        """
        if not self._store.is_owner:  # in a forked child, to which nothing of this belongs
            self._shut_base_down(wait=wait, cancel_futures=cancel_futures)
            return
        _log.debug("shutting down: wait=%s, cancel_futures=%s", wait, cancel_futures)
        self._tasks.no_more()
        end_if_interrupted = getattr(getattr(self, "_base", None), "end_if_interrupted", None)
        if end_if_interrupted is not None:  # or calls that wait for others would wait for those
            end_if_interrupted()
        if cancel_futures:
            self._tasks.cancel_waiting()
        if self._store.quota is not None:
            self._tasks.hurry()
        if wait:
            launched = threading.Event()
            if self._tasks.when_launched(launched.set):
                launched.wait()
        elif self._tasks.when_launched(
            lambda: in_a_thread(self._shut_base_down, wait=False, cancel_futures=cancel_futures)
        ):
            return
        self._shut_base_down(wait=wait, cancel_futures=cancel_futures)
        if self._timed is not None:
            self._timed()

    @property
    def _workers(self) -> int:
        """How many tasks are run at a time. Asked for late: some start their workers to tell."""
        return _workers_of(getattr(self, "_base", self))

    def _submit_to_base(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self._base.submit(fn, *args, **kwargs)

    def _shut_base_down(self, *, wait: bool, cancel_futures: bool) -> None:
        if cancel_futures:
            self._base.shutdown(wait=wait, cancel_futures=True)
            forget_pending(self._base)
        else:  # not all have the option
            self._base.shutdown(wait=wait)

    def _needs_care(self, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Tell whether a call that no policy wants to look at must not pass as it is.

        Proxies that a user made have to be kept alive, lambdas have to be made picklable, and
        futures have to be waited for where they cannot go.
        """
        arguments = (*args, *kwargs.values())
        if any(isinstance(value, Proxy) for value in arguments):
            return True
        return self._crosses and (
            not self._context.travels_by_name(fn)
            or any(type(value) is TaskFuture for value in arguments)
        )

    def _see(self, *objects: Collection[Any]) -> None:
        """Count what travels as it is, if it leaves this process."""
        for some in objects:
            if self._crosses and not TINY.issuperset(map(type, some)):
                self._measures.see(some)

    def _submit_mapped(self, function: MappedFunction, args: Sequence[Any]) -> TaskFuture[Any]:
        context, plainly = self._context, function.function
        if not issubclass(function.kind, ChunkCall):
            call = Call(self._tasks, context, self._crosses, plainly)
            return self._submit(call, function, args, {})
        values = list(itertools.chain.from_iterable(args))
        if function.kind is ChunkCall and self._never and not self._needs_care(plainly, values, {}):
            if self._measures.every:
                facts = self._tasks, self._context, self._crosses, plainly, len(args)
                return self._submit(SeenChunkCall(*facts), function, args, {})
            self._see(values)
            passed = PassedCall(self._tasks, self._crosses, len(args))
            return self._start(passed, _ApplyAll(plainly), args, {})
        call = function.kind(self._tasks, context, self._crosses, plainly, len(args))
        passes = not self._measures.every and context.atoms_pass(values)
        if passes:
            self._see(values)
        return self._submit(call, function, args, {}, passes=passes)

    def _submit(
        self,
        call: Call,
        function: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        passes: bool = False,
    ) -> TaskFuture[Any]:
        """Submit what cannot pass at a glance; ``function`` may be a :class:`MappedFunction`.

        The arguments may pass nevertheless.
        """
        quota = self._store.quota
        if quota is not None and not quota.is_in_turn():
            with quota.turn(functools.partial(self._tasks.waits, call)):
                return self._submit(call, function, args, kwargs, passes=passes)
        futures = [] if passes else self._awaited(call.values(args, kwargs))
        if self._link is not None:
            futures = [one for one in futures if not self._links(call, one)]
        if all(map(_is_ready, futures)):
            futures = []
        try:
            travels = call.pack_function(function)
            if futures:
                call.pack_early(args, kwargs)
            elif not passes:
                args, kwargs = call.pack_all(args, kwargs)
        except BaseException as error:
            _log.debug("a call of %s cannot be sent: %r", callable_name(plain(function)), error)
            call.end(error)
            call.seal()
            if isinstance(error, Exception) and not isinstance(error, ShutDownError):
                return failed_future(error, call)
            raise
        task = call.kind(plain(function), travels, self._context, self._blob_for(call), call.key)
        task.every = self._measures.every
        if not futures:
            call.seal()
            return self._start(call, task, args, kwargs)

        def launch() -> Any:
            # By who delivers results, hence room.
            with contextlib.nullcontext() if quota is None else quota.unbounded():
                packed_args, packed_kwargs = call.pack_all(args, kwargs)
            call.seal()
            call.since = clock()
            return self._submit_to_base(task, *packed_args, **packed_kwargs)

        return future_after(futures, call, _spans.bound(launch), self._tasks)

    def _blob_for(self, call: Call) -> bytes:
        """The context that a task travels with, serialized."""
        learner = self._learner
        return self._blob if learner is None else learner.blob_for(call, self._blob)

    def _awaited(self, values: Iterable[tuple[Any, Any]]) -> list[TaskFuture[Any]]:
        """The futures that a call waits for; where calls pass untouched, futures do, too."""
        if self._never and not self._crosses:
            return []
        futures = [value for _, value in values if type(value) is TaskFuture]
        if futures and self._learner is not None:
            self._learner.pass_on(futures)
        return futures

    def _links(self, call: Call, future: TaskFuture[Any]) -> bool:
        """Leave it to the base executor to wait for a future, if it can."""
        assert self._link is not None  # noqa: S101 - or nobody asks
        # In chunks, arguments are among others.
        linked = None if type(call) is not Call or future.done() else self._link(future)
        return linked is not None and call.link(future, linked)

    def _with_options(self, options: dict[str, Any]) -> StoreExecutor:
        """Return this executor, with options of the base executor for each task."""
        executor = copy.copy(self)
        executor._base = self._base.with_options(options)
        executor._options = frozenset()
        return executor

    def _submit_with_options(
        self, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> TaskFuture[Any]:
        """Submit a call that may be one task with others, as its options say."""
        future: TaskFuture[Any] = self._base.merged(self.submit, fn, args, kwargs)
        return future

    def _start(
        self, call: Call | PassedCall, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> TaskFuture[Any]:
        tracing = _spans.active
        if tracing is not None and type(call) is PassedCall:
            one, calls = (fn.function, len(args)) if type(fn) is _ApplyAll else (fn, 1)
            fn = tracing.around(fn, callable_name(one), calls)
        call.since = clock()
        try:
            base = self._submit_to_base(fn, *args, **kwargs)
        except BaseException as error:
            call.end(error)
            raise
        return future_of(base, call)


def _is_ready(future: TaskFuture[Any]) -> bool:
    return future.done() and not future.cancelled() and future._error() is None


def _checked_chunksize(chunksize: Any) -> int | None:
    """Return the size of chunks; ``None`` if it is to be found."""
    if chunksize == "auto":
        return None
    if isinstance(chunksize, str):
        raise ValueError(f'chunksize must be a positive integer or "auto", not {chunksize!r}')
    try:
        size = operator.index(chunksize)
    except TypeError:
        kind = type(chunksize).__name__
        raise TypeError(f'chunksize must be a positive integer or "auto", not {kind}') from None
    if size < 1:
        raise ValueError(f'chunksize must be >= 1, or "auto", not {size}')
    return size


def _workers_of(base: Any) -> int:
    """Return how many tasks a base executor runs at a time; many where it does not tell."""
    workers = getattr(base, "_max_workers", None)
    return workers if isinstance(workers, int) and workers > 0 else _MANY_WORKERS


# Of a cluster, say: too many cost a short map little, too few would leave workers without work.
_MANY_WORKERS = 64


def _submit_item(submit: Callable[..., Any], function: Any, item: Sequence[Any]) -> Any:
    return submit(function, *item)


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
