"""What an executor with a task group does in place of one without.

Each call is written down before the base executor is given it, and it is given no more than the
call's id: the worker reads the call itself. So a call that somebody has given up on is submitted
again in the same way, by whoever has opened the group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from proxyexec._carried import callable_name
from proxyexec._context import Context, joined
from proxyexec._future import TaskFuture
from proxyexec._group_batch import Batch
from proxyexec._group_call import GroupCall
from proxyexec._group_envelope import envelope_of
from proxyexec._group_packing import Packing
from proxyexec._group_records import (
    CallRecord,
    FunctionRecord,
    OutcomeRecord,
    call_key,
    function_key,
    outcome_key,
)
from proxyexec._group_reload import Reload
from proxyexec._group_task import GroupTask, written
from proxyexec._group_watch import Watcher
from proxyexec.errors import TaskLostError
from proxyexec.policy import ProxyNever

if TYPE_CHECKING:
    from proxyexec._group_store import GroupStore
    from proxyexec._ownership import Lease
    from proxyexec._tasks import Tasks

__all__ = ["GroupCalls"]

_Submit = Callable[..., Any]


class GroupCalls:
    """The calls of one executor that has a task group.

    Args:
        store: the group's.
        context: what client and workers have in common.
        blob: the same, serialized.
        tasks: the executor's.
        submit: gives something to the base executor.
    """

    def __init__(
        self, store: GroupStore, context: Context, blob: bytes, tasks: Tasks, submit: _Submit
    ) -> None:
        self.store = store
        self.context = context
        self.tasks = tasks
        self._blob = blob
        self._submit_to_base = submit
        self._watcher = Watcher(store.session)
        self._resubmits: set[str] = set()
        # Futures that somebody has, by the ids of their calls.
        self._futures: WeakValueDictionary[str, TaskFuture[Any]] = WeakValueDictionary()
        # Names of registered functions, by their ids.
        self._registered: dict[str, str] = {}
        self._batch: Batch | None = None

    # Submitting.

    def submit(
        self,
        submit: _Submit,
        function: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        registered: str | None = None,
    ) -> TaskFuture[Any]:
        """Write a call down, and give it to the base executor.

        Args:
            submit: gives something to the base executor, with the call's options.
            function: to call; ``None`` for a registered one.
            args: its arguments by position.
            kwargs: those by keyword.
            registered: the id of the registered function.
        """
        name = callable_name(function) if registered is None else self._name_of(registered)
        call = self.new_call(self.store.new_task(), name)
        future = call.future
        assert future is not None  # noqa: S101 - nobody else has it yet
        waits = [one for one in (*args, *kwargs.values()) if type(one) is TaskFuture]
        try:
            if not all(map(self._is_ours, waits)):
                # Some are no part of the group: the call is written down when they are there.
                self._submit_after(waits, call, submit, (function, args, kwargs), registered)
            else:
                record, leases = self._packed(name, function, args, kwargs, registered)
                call.hold(leases)
                self._write(call, record, submit, waits)
        except BaseException as error:
            call.fail(error)
            if not isinstance(error, Exception):
                raise
        return future

    def _submit_after(
        self,
        waits: Sequence[TaskFuture[Any]],
        call: GroupCall,
        submit: _Submit,
        what: tuple[Any, Sequence[Any], dict[str, Any]],
        registered: str | None,
    ) -> None:
        function, args, kwargs = what

        def launch() -> Any:
            def arrived(value: Any) -> Any:
                is_foreign = type(value) is TaskFuture and not self._is_ours(value)
                return value.result() if is_foreign else value

            there = [arrived(value) for value in args]
            named = {name: arrived(value) for name, value in kwargs.items()}
            record, leases = self._packed(call.name, function, there, named, registered)
            call.hold(leases)
            self.store.connector.put(call_key(call.key), record.frames())
            call.written = True
            self.store.add(1)
            return submit(self._task(call))

        call.written = False
        call.launch_after(waits, launch)

    def _write(
        self, call: GroupCall, record: CallRecord, submit: _Submit, waits: list[TaskFuture[Any]]
    ) -> None:
        def go() -> None:
            self.store.add(1)
            if waits:
                call.launch_after(waits, lambda: submit(self._task(call)))
            else:
                call.launch(lambda: submit(self._task(call)))

        frames = record.frames()
        batch = self._batch
        if batch is not None and batch.is_this_threads:
            batch.add(call, call_key(call.key), frames, go)
            return
        self.store.connector.put(call_key(call.key), frames)
        go()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Write the calls that this thread submits, and submit them, when the block ends."""
        if self._batch is not None:
            raise RuntimeError("a batch is open already: batches of one executor do not overlap")
        batch = self._batch = Batch(self.store)
        try:
            yield
        except BaseException as error:
            batch.fail(error)
            raise
        finally:
            self._batch = None
        batch.send()

    # Registered functions.

    def register(self, function: Any) -> str:
        """Store a function, once; return its id."""
        name = callable_name(function)
        whole = self.context._replace(policy=ProxyNever())  # whose inputs come and go with calls
        packed = whole.pack_function(function, self.tasks, crossing=True)
        body = envelope_of(whole).dumps(packed.travels)
        digest = hashlib.sha256(joined(body)).hexdigest()[:32]
        self.store.connector.put(function_key(digest), FunctionRecord(name, body=body).frames())
        self._registered[digest] = name
        return digest

    def _name_of(self, registered: str) -> str:
        name = self._registered.get(registered)
        if name is None:
            name = FunctionRecord.fetch(self.store.session, function_key(registered)).name
            self._registered[registered] = name
        return name

    # Calls that are there.

    def reload(self, *, resubmit: bool) -> list[TaskFuture[Any]]:
        """Return the futures of all calls of the group, in the order of their submission."""
        return Reload(self, resubmit=resubmit).futures()

    def new_call(self, key: str, name: str) -> GroupCall:
        """Return a call of the group, as this client sees it."""
        call = GroupCall(key, name, self)
        assert call.future is not None  # noqa: S101 - nobody else has it yet
        self._futures[key] = call.future
        return call

    def known(self, key: str) -> TaskFuture[Any] | None:
        """Return the future of a call that somebody has, unless the call may be made again."""
        future = self._futures.get(key)
        if future is None:
            return None
        call: Any = future._call
        return future if call.settled or not future.done() else None

    def watch(self, call: GroupCall, *, resubmit: bool) -> None:
        """Have a call ended when whoever runs it has, or has died."""
        if resubmit:
            self._resubmits.add(call.key)
        call.watch()
        self._watcher.add(call)

    def start(self, call: GroupCall) -> Any:
        """Give a call that is written down to the base executor."""
        return self._submit_to_base(self._task(call))

    def lose(self, call: GroupCall) -> None:
        """Submit a call again that nobody runs, if that is wanted; end it if not."""
        if call.key in self._resubmits:
            self._resubmits.discard(call.key)
            call.launch(lambda: self.start(call))
        else:
            call.fail(TaskLostError(call.key, call.name, self.store.group))

    def write_cancelled(self, call: GroupCall) -> OutcomeRecord:
        """Write down that a call is cancelled; return the outcome that is there."""
        return self._written(call, OutcomeRecord("cancelled", call.name))

    def write_as(self, call: GroupCall, other: str) -> OutcomeRecord:
        """Write down that a call has ended as another one; return the outcome that is there."""
        outcome = OutcomeRecord.fetch(self.store.session, outcome_key(other))
        return self._written(call, replace(outcome, name=call.name, attempt="", keeps=[]))

    def _written(self, call: GroupCall, outcome: OutcomeRecord) -> OutcomeRecord:
        session = self.store.session
        frames = written(session, call.key, outcome)
        return OutcomeRecord.read(frames, outcome_key(call.key), session.url)

    # Packing.

    def _task(self, call: GroupCall) -> GroupTask:
        return GroupTask(call.name, self.context, self._blob, call.key)

    def _is_ours(self, future: TaskFuture[Any]) -> bool:
        call = getattr(future, "_call", None)
        return isinstance(call, GroupCall) and call._store is self.store

    def _packed(
        self,
        name: str,
        function: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        registered: str | None,
    ) -> tuple[CallRecord, list[Lease]]:
        """Make a call ready to be written down; return also what holds its inputs."""
        batch = self._batch
        keeper: Any = batch if batch is not None and batch.is_this_threads else self.tasks
        packing = Packing(self.context, keeper, CallRecord(name, registered=registered))
        try:
            if registered is None:
                packing.pack_function(function)
            finished = packing.finished(args, kwargs)
        except BaseException:
            # Not left to the collector: who has the future has the error, hence this frame.
            for lease in packing.leases:
                lease.release()
            raise
        for sent in packing.sent:
            self.tasks.measures.send(sent)
        return finished, packing.leases
