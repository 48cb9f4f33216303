"""A ``distributed.Client`` as a base executor.

The scheduler and its messages see references only: a call travels as one ``bytes`` object, in
which large arguments are references already. A call whose arguments are results that are not there
yet goes to the scheduler at once, with the tasks that it waits for: they hand their outcomes, which
are references, to it, and the client is not asked in between.

Results arrive by the client's event loop. What waits for them is called by a thread of its own, so
that it may take its time.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import functools
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pickle import PickleBuffer
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

import dask
import distributed.worker
from dask.base import tokenize
from dask.utils import funcname
from distributed.client import done_callback
from distributed.protocol import pickle
from proxyexec_connectors._copying import bytearray_of, bytes_of

from proxyexec._context import LARGE_INLINE, Inline
from proxyexec._proxy import is_proxy, reference_of
from proxyexec._record import Measured, Report, bare
from proxyexec._task import Task

if TYPE_CHECKING:
    from proxyexec._future import TaskFuture

__all__ = ["DaskCall", "DaskClientExecutor", "DaskExecutor"]

# Not all of them say what their functions take and return.
_dask: Any = dask
_distributed: Any = distributed
_pickle: Any = pickle
_done_callback: Any = done_callback

OPTIONS = frozenset(
    {
        "allow_other_workers",
        "fifo_timeout",
        "key",
        "priority",
        "pure",
        "resources",
        "retries",
        "workers",
    }
)
"""What ``Client.submit`` takes beside the arguments of the function."""

# Addresses of schedulers whose workers have to be on this machine, too.
_LOCAL = ("inproc://", "tcp://127.", "tcp://localhost:", "tcp://[::1]:", "tls://127.")


class DaskExecutor:
    """A client's cluster, seen as an executor.

    Shutting it down closes neither the client nor the cluster, which others may be using; it waits
    for what it was given, or cancels it.

    Args:
        client: runs the tasks; a synchronous one, or an asynchronous one.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.calls = _Calls(client)
        self._options: dict[str, Any] = {}

    def with_options(self, options: dict[str, Any]) -> DaskExecutor:
        """Return the same cluster, with options of ``Client.submit`` for each task."""
        executor = copy.copy(self)
        executor._options = {**self._options, **options}
        return executor

    @property
    def is_local(self) -> bool:
        """Whether all workers are on this machine, as far as one can tell."""
        scheduler = self.client.scheduler
        return scheduler is not None and scheduler.address.startswith(_LOCAL)

    @property
    def merges(self) -> bool:
        """Whether equal calls are to be one task."""
        return bool(self._options.get("pure"))

    def merged(
        self, submit: Callable[..., Any], fn: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Submit a call, unless it is to be one task with another that somebody has the future of.

        Args:
            submit: takes function and arguments, and returns the future.
            fn: the function.
            args: its arguments by position.
            kwargs: those by keyword.
        """
        name: str | None = self._options.get("key")
        if name is None and self.merges:
            named = {name: _told(value) for name, value in kwargs.items()}
            name = f"{funcname(fn)}-{tokenize(fn, named, *map(_told, args))}"
        call = functools.partial(submit, fn, *args, **kwargs)
        return call() if name is None else self.calls.merged(name, call)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> DaskCall:
        """Give the cluster a call. Arguments may be calls that it has."""
        options = dict(self._options)
        options.pop("pure", None)  # seen to by who submits
        function = fn.function if isinstance(fn, Task) else fn
        key = options.pop("key", None)
        if key is None or not self.calls.claim(key):
            key = f"{key or funcname(function)}-{uuid.uuid4()}"
        try:
            call = self._call(fn, args, kwargs, key, (options, _dask.get_annotations()))
            self.calls.add(call)
        except BaseException:
            self.calls.unclaim(key)
            raise
        return call

    def _call(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        key: str,
        options: tuple[dict[str, Any], dict[str, Any]],
    ) -> DaskCall:
        if not isinstance(fn, Task):  # one that passes as it is, as with the client itself
            call = DaskCall(self.calls, key, options, None, (), ())
            call.future = self.client.submit(fn, *args, key=key, pure=False, **options[0], **kwargs)
            return call
        awaited: list[DaskCall] = []
        args = tuple(_placed(value, awaited) for value in args)
        kwargs = {name: _placed(value, awaited) for name, value in kwargs.items()}
        blob, buffers = _pickled((fn, args, kwargs))
        return DaskCall(self.calls, key, options, blob, buffers, awaited)

    def link(self, future: TaskFuture[Any]) -> DaskCall | None:
        """Return what stands for a future in the arguments of a call, if that can wait for it."""
        call = future._base
        return call if type(call) is DaskCall and call.is_pending_in(self.client) else None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for those that there are, or cancel them."""
        self.calls.close()
        if cancel_futures:
            for call in self.calls.pending():
                call.cancel()
        if wait:
            self.calls.wait()


class DaskClientExecutor(DaskExecutor):
    """What ``Client.get_executor()`` returns, seen as the client with options.

    Args:
        executor: shut down with this one.
    """

    ends = True
    """Whether that is so."""

    def __init__(self, executor: Any) -> None:
        super().__init__(executor._client)
        self._options = dict(executor._kwargs)
        self._executor = executor

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> DaskCall:
        if self._executor._shutdown:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return super().submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        if self.ends:
            self._executor.shutdown(wait)


class DaskCall:
    """The future of one call, as far as :class:`proxyexec._future.Follower` wants one.

    Args:
        calls: of its executor.
        key: the task's.
        options: of ``Client.submit``, and the annotations of who submitted the call.
        blob: the call; ``None`` where the client has it.
        buffers: memory of large arguments, which the blob is without.
        awaited: the calls whose outcomes it is given.
    """

    def __init__(
        self,
        calls: _Calls,
        key: str,
        options: tuple[dict[str, Any], dict[str, Any]],
        blob: bytes | None,
        buffers: Sequence[Any],
        awaited: Sequence[DaskCall],
    ) -> None:
        self.key = key
        self.options = options
        self.blob = blob
        self.buffers = buffers
        self.awaited = awaited
        # Of the client; once it is gone, the cluster forgets the task.
        self.future: Any = None
        self._calls = calls
        self._lock = threading.Lock()
        self._callback: Callable[[Any], None] | None = None
        self._settled: _Settled | None = None
        # Calls that have ended and wait for the end of this one to be seen.
        self._later: list[tuple[DaskCall, _Settled]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call ``callback`` once the call has ended; there is one at most."""
        with self._lock:
            if self._settled is None:
                self._callback = callback
                return
        callback(self)

    def cancel(self) -> bool:
        """Cancel the call. A worker that is at it goes on, and what it comes to is dropped."""
        if not self.settle(_CANCELLED):
            return False
        self._calls.drop(self)
        return True

    def running(self) -> bool:
        """Tell that it is not known to run: the scheduler does not say."""
        return False

    def cancelled(self) -> bool:
        """Tell whether the call was cancelled; asked when it has ended."""
        return self._settled is _CANCELLED

    def exception(self) -> BaseException | None:
        """Return what the call raised; asked when it has ended."""
        return None if self._settled is None else self._settled.error

    def result(self) -> Any:
        """Return what the call came to; asked when it has ended without an error."""
        return None if self._settled is None else self._settled.outcome

    def is_pending_in(self, client: Any) -> bool:
        """Tell whether another call of a client may wait for this one."""
        return self._settled is None and client is self._calls.client

    def end(self, settled: _Settled) -> None:
        """Say what the call came to, once the ends of those that it waited for have been seen.

        It may have come to one of their outcomes.
        """
        for call in self.awaited:
            if call._postpones(self, settled):
                return
        failed = (call._settled for call in self.awaited if call.cancelled() or call.exception())
        self.settle(next(failed, settled) or settled)

    def settle(self, settled: _Settled) -> bool:
        """Say what the call came to; tell whether that is news."""
        with self._lock:
            if self._settled is not None:
                return False
            self._settled = settled
            callback, self._callback = self._callback, None
            later, self._later = self._later, []
        self.awaited, self.blob, self.buffers = (), None, ()
        try:
            if callback is not None:
                callback(self)
        finally:
            for call, its in later:
                call._calls.deliver(call, its)
            self._calls.discard(self)
        return True

    def _postpones(self, call: DaskCall, settled: _Settled) -> bool:
        with self._lock:
            if self._settled is None:
                self._later.append((call, settled))
            return self._settled is None


class _Settled(NamedTuple):
    """What a call came to."""

    outcome: Any
    error: BaseException | None


_CANCELLED = _Settled(None, None)


class _Calls:
    """The calls of one executor: on their way to the cluster, in it, and on their way back.

    They travel together as far as possible: a message costs as much as a hundred calls in it. So
    they are sent when the client's event loop gets to it, and their outcomes are fetched while
    others are.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        # Names of calls that are being submitted, and may be one task with others.
        self._naming: set[str] = set()
        # Those that others may be one task with, for as long as somebody has their results.
        self._named: WeakValueDictionary[str, TaskFuture[Any]] = WeakValueDictionary()
        self._pending: set[DaskCall] = set()
        self._changed = threading.Condition()
        self._unsent: list[DaskCall] = []
        # Keys that were chosen by callers.
        self._keys: set[str] = set()
        # For the event loop alone: the calls that have ended in the cluster; how many fetches are
        # under way, of how many outcomes; and when the last one began.
        self._ended: list[DaskCall] = []
        self._fetches = self._fetching = 0
        self._fetched = 0.0
        # The calls that have ended, and what they came to.
        self._arrived: SimpleQueue[tuple[DaskCall, _Settled]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def close(self) -> None:
        """Take no more calls."""
        self._closed = True

    def pending(self) -> list[DaskCall]:
        """Return the calls that have not ended."""
        with self._changed:
            return list(self._pending)

    def wait(self) -> None:
        """Wait until all calls have ended."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pending)

    def merged(self, name: str, submit: Callable[[], TaskFuture[Any]]) -> TaskFuture[Any]:
        """Return the future that goes by a name, of a call that is submitted if there is none."""
        with self._changed:
            self._changed.wait_for(lambda: name not in self._naming)
            future = self._named.get(name)
            if future is not None and not future.cancelled():
                return future
            self._naming.add(name)
        # Others are not kept waiting: storing what it is given may take its time.
        try:
            future = submit()
            self._named[name] = future
        finally:
            with self._changed:
                self._naming.discard(name)
                self._changed.notify_all()
        return future

    def claim(self, key: str) -> bool:
        """Take a key for a call, unless a task has it, one that is being forgotten for instance."""
        with self._changed:
            if key in self._keys or key in self.client.futures:
                return False
            self._keys.add(key)
            return True

    def unclaim(self, key: str) -> None:
        """Let others have a key: there is no call that has it."""
        with self._changed:
            self._keys.discard(key)

    def add(self, call: DaskCall) -> None:
        """Take a call, and send it.

        Raises:
            RuntimeError: the executor is shut down, or the client closed.
        """
        if self.client.status in ("closing", "closed"):
            raise RuntimeError(f"cannot schedule new futures: {self.client} is closed")
        with self._changed:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._pending.add(call)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="proxyexec-dask", daemon=True
                )
                self._thread.start()
            if call.future is None:
                self._unsent.append(call)
                if len(self._unsent) > 1:
                    return
        try:
            if call.future is None:
                self.client.loop.add_callback(self._send)
            else:
                self._watch(call)
        except BaseException:
            self.discard(call)
            raise

    def discard(self, call: DaskCall) -> None:
        """Count a call out: it has ended."""
        with self._changed:
            self._pending.discard(call)
            self._keys.discard(call.key)
            if not self._pending:
                self._changed.notify_all()

    def drop(self, call: DaskCall) -> None:
        """Have the cluster drop a call, if it has it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, hence the client
            self.client.loop.add_callback(self._drop, call)

    def deliver(self, call: DaskCall, settled: _Settled) -> None:
        """Have a call ended by the thread."""
        self._arrived.put((call, settled))

    async def _drop(self, call: DaskCall) -> None:
        if call.future is not None:
            await self.client.cancel([call.future], asynchronous=True)

    def _send(self) -> None:
        """Give the client what is to be sent; in its event loop."""
        with self._changed:
            calls, self._unsent = self._unsent, []
        alike: list[DaskCall] = []
        room = _BATCH_BYTES
        for call in calls:
            room -= len(call.blob or b"")
            alone = bool(call.awaited or call.buffers)
            if alike and (alone or call.options != alike[0].options or room < 0):
                self._send_alike(alike)
                alike, room = [], _BATCH_BYTES
            alike.append(call)
            if alone:
                self._send_alike(alike)
                alike = []
        self._send_alike(alike)

    def _send_alike(self, calls: Sequence[DaskCall]) -> None:
        """Send calls that wait for no other ones and are small, or one that is not so."""
        calls = [call for call in calls if not call.cancelled()]
        if not calls:
            return
        options, annotations = calls[0].options
        keys, blobs = [call.key for call in calls], [call.blob for call in calls]
        awaited = [call.future for call in calls[0].awaited]
        if None in awaited:  # which never came to the cluster: so it has failed, as this one does
            self.deliver(calls[0], _CANCELLED)
            return
        try:
            with _dask.annotate(**annotations):
                if len(calls) > 1:
                    futures = self.client.map(_run, blobs, key=keys, pure=False, **options)
                else:
                    buffers = calls[0].buffers
                    arguments = (*blobs, *awaited)
                    if buffers:
                        arguments = (len(buffers), *buffers, *arguments)
                    run = _run_with_buffers if buffers else _run
                    futures = [
                        self.client.submit(run, *arguments, key=keys[0], pure=False, **options)
                    ]
        except Exception as error:  # noqa: BLE001 - it is theirs
            for call in calls:
                self.deliver(call, _Settled(None, error))
            return
        for call, future in zip(calls, futures, strict=True):
            call.future, call.blob, call.buffers = future, None, ()
            self._watch(call)

    def _watch(self, call: DaskCall) -> None:
        assert call.future is not None  # noqa: S101 - it has just been sent
        # As its add_done_callback() does, without a thread in between.
        self.client.loop.add_callback(
            _done_callback, call.future, functools.partial(self._has_ended, call)
        )

    def _has_ended(self, call: DaskCall, _: Any) -> None:
        """Have the outcome of a call fetched, with those of others that end now."""
        self._ended.append(call)
        if len(self._ended) + self._fetching >= len(self._pending):  # nobody is to be waited for
            self.client.loop.add_callback(self._fetch_ended)
        elif len(self._ended) == 1:
            self._fetch_soon()

    def _fetch_soon(self) -> None:
        delay = self._fetched + _FETCH_SECONDS - time.monotonic()
        self.client.loop.call_later(max(0.0, delay), self._fetch_ended)

    def _work(self) -> None:
        while True:
            try:
                call, settled = self._arrived.get(timeout=_IDLE_SECONDS)
            except Empty:
                with self._changed:
                    if not self._pending:
                        self._thread = None
                        return
                continue
            call.end(settled)
            del call, settled

    async def _fetch_ended(self) -> None:
        """Fetch the outcomes of calls that have ended."""
        if not self._ended or self._fetches == _FETCHES_AT_MOST:
            return
        calls, self._ended = self._ended, []
        self._fetches += 1
        self._fetching += len(calls)
        self._fetched = time.monotonic()
        try:
            await self._fetch(calls)
        finally:
            self._fetches -= 1
            self._fetching -= len(calls)
            if self._ended:
                self._fetch_soon()

    async def _fetch(self, calls: Sequence[DaskCall]) -> None:
        """Fetch outcomes, all in one message; in the client's event loop."""
        futures = {number: call.future for number, call in enumerate(calls)}
        try:
            outcomes = await self.client.gather(futures, errors="skip", asynchronous=True)
        except Exception as error:  # noqa: BLE001 - it is theirs
            outcomes = {}
            failed = _Settled(None, error)
        else:
            failed = _CANCELLED
        for number, call in enumerate(calls):
            settled = failed
            if call.future.status != "finished":
                settled = await _failure(call.future)
            elif number in outcomes:
                settled = _Settled(_together(outcomes[number]), None)
            self.deliver(call, settled)


async def _failure(future: Any) -> _Settled:
    """Return what a call came to that has no outcome."""
    if future.status != "error":
        return _CANCELLED
    error = await future.exception()
    # Without the frames of the client, one of which would have the future, which has the error.
    return _Settled(None, error.with_traceback(await future.traceback()))


# The thread ends when there has been nothing to do for so long.
_IDLE_SECONDS = 1.0

# Calls travel together up to this size, below that which Dask warns of.
_BATCH_BYTES = 1_000_000

# From this size on, the memory of arguments travels beside the call.
_LARGE_BUFFERS = 1 << 17

# While others run, outcomes are fetched no more often: together, they cost a fraction.
_FETCH_SECONDS = 0.01

# How many fetches of outcomes are under way at most. One may wait for a task that is run again, as
# the worker that had its outcome has died.
_FETCHES_AT_MOST = 4


class _Awaited(NamedTuple):
    """Stands for the outcome of another call in the arguments of one."""

    number: int


def _placed(value: Any, awaited: list[DaskCall]) -> Any:
    if type(value) is not DaskCall:
        return value
    awaited.append(value)
    return _Awaited(len(awaited) - 1)


def _told(value: Any) -> Any:
    """Return what tells an argument from others."""
    if is_proxy(value):
        return reference_of(value).key
    call = getattr(value, "_call", None) if isinstance(value, concurrent.futures.Future) else None
    return value if call is None else call.key


def _pickled(call: Any) -> tuple[bytes, Sequence[Any]]:
    """Return a call's pickle, and copies of the memory of its arguments if that is large.

    In the pickle it would be copied several times more: by Dask, on its way.
    """
    buffers: list[PickleBuffer] = []
    blob: bytes = _pickle.dumps(call, buffer_callback=buffers.append)
    memory = [buffer.raw() for buffer in buffers]
    if sum(view.nbytes for view in memory) < _LARGE_BUFFERS:
        return _pickle.dumps(call) if buffers else blob, ()
    return blob, [_sent_fast(_unchanging(view)) for view in memory]


def _unchanging(view: memoryview) -> Any:
    """Return a copy of memory, unless nobody can change it."""
    if type(view.obj) is bytes:
        return view
    return bytes_of(view) if view.readonly else bytearray_of(view)


def _sent_fast(memory: Any) -> Any:
    """Return memory as what Dask sends without copying it."""
    # That is what it knows arrays for; other buffers take twice as long.
    numpy: Any = sys.modules.get("numpy")
    return PickleBuffer(memory) if numpy is None else numpy.frombuffer(memory, "u1")


def _run_with_buffers(count: int, *arguments: Any) -> Any:
    """Make a call in a worker, whose first arguments are memory."""
    blob, *outcomes = arguments[count:]
    buffers = arguments[:count]
    if _distributed.get_worker().address.startswith("inproc:"):
        # They have come here as they are, and would so once more if the task was run again.
        buffers = tuple(one if memoryview(one).readonly else bytearray_of(one) for one in buffers)
    return _run(blob, *outcomes, buffers=buffers)


def _run(blob: bytes, *outcomes: Any, buffers: Sequence[Any] = ()) -> Any:
    """Make a call in a worker; ``outcomes`` are those of the calls that it waited for."""
    task, args, kwargs = _pickle.loads(blob, buffers=buffers)
    outcomes = tuple(bare(_together(one)) for one in outcomes)
    args = [outcomes[one.number] if type(one) is _Awaited else one for one in args]
    kwargs = {
        name: outcomes[one.number] if type(one) is _Awaited else one for name, one in kwargs.items()
    }
    outcome = task(*args, **kwargs)
    if _is_unwanted():
        task.withdraw(outcome)
    return _apart(outcome)


class _Beside(NamedTuple):
    """What travels beside an outcome."""

    rest: Inline | None
    """Of an object in its serialized form, all but that."""
    report: Report | None
    """What was measured."""


def _apart(outcome: Any) -> Any:
    """Return an outcome beside what belongs to it, so that Dask sees what is large.

    Dask has ways of its own to send many kinds of objects, and to tell their size, but not if they
    are inside of ours.
    """
    alone = bare(outcome)
    if type(alone) is Inline and len(alone.blob) >= LARGE_INLINE:
        rest = Inline(b"", alone.embedded, alone.seals)
        memory = _sent_fast(alone.blob)
    elif alone is outcome:
        return outcome
    else:
        rest, memory = None, alone
    report = None if alone is outcome else outcome.report
    return memory, _Beside(rest, report)


def _together(outcome: Any) -> Any:
    """Undo :func:`_apart`."""
    if not (type(outcome) is tuple and len(outcome) == 2 and type(outcome[1]) is _Beside):
        return outcome
    alone, (rest, report) = outcome
    if rest is not None:
        alone = Inline(memoryview(alone).cast("B"), rest.embedded, rest.seals)
    return alone if report is None else Measured(alone, report)


def _is_unwanted() -> bool:
    """Tell, in a worker, that nobody waits for the task any more that this thread runs."""
    worker = _distributed.get_worker()
    state = worker.state.tasks.get(_distributed.worker.thread_state.key)
    return state is None or state.state in ("cancelled", "released", "forgotten")
