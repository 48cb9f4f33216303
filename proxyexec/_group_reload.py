"""Reloading a group: a future for each of its calls, and an end to what dead clients left."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from proxyexec._group_records import (
    CALL,
    CANCELLED,
    INPUT,
    OUTCOME,
    RESULT,
    CallRecord,
    OutcomeRecord,
    attempt_of,
    call_key,
    client_claim,
    client_of_input,
    id_of,
    outcome_key,
    read_many,
    task_claim,
)

if TYPE_CHECKING:
    from proxyexec._future import TaskFuture
    from proxyexec._group_call import GroupCall
    from proxyexec._group_calls import GroupCalls

__all__ = ["Reload"]

_log = logging.getLogger("proxyexec.groups")


class Reload:
    """What one reload finds in the group.

    The order in which things are looked at matters, as others go on meanwhile: clients that are
    dead before the keys are listed add no more; and whoever lets go of a claim has written the
    outcome by then.

    Args:
        calls: of the executor.
        resubmit: whether to submit again what nobody runs.
    """

    def __init__(self, calls: GroupCalls, *, resubmit: bool) -> None:
        self._calls = calls
        self._resubmit = resubmit
        session = self._session = calls.store.session
        session.touch()
        before = session.keys(INPUT)
        clients = sorted({client_of_input(key) for key in before} - {calls.store.client})
        alive = session.claimed([client_claim(client) for client in clients])
        self._dead = {one for one, is_alive in zip(clients, alive, strict=True) if not is_alive}
        self._keys = session.keys()
        self._cancelled = CANCELLED in self._keys
        call_keys = [key for key in self._keys if key.startswith(CALL)]
        calls.store.know(call_keys)
        self._tasks = [id_of(key) for key in call_keys]
        there = {id_of(key) for key in self._keys if key.startswith(OUTCOME)}
        open_ones = [task for task in self._tasks if task not in there]
        claimed = session.claimed([task_claim(task) for task in open_ones])
        self._running = {
            task for task, is_claimed in zip(open_ones, claimed, strict=True) if is_claimed
        }
        self._outcomes = self._read_outcomes(there)
        self._records = self._read_records()

    def futures(self) -> list[TaskFuture[Any]]:
        """Return the futures of all calls, in order, and clean up."""
        found: dict[str, TaskFuture[Any]] = {}
        for task in self._tasks:
            future = self._calls.known(task)
            found[task] = self._future(task, found) if future is None else future
        _log.debug(
            "group %r: of %d calls, %d have an outcome and %d are being run",
            self._calls.store.group,
            len(self._tasks),
            len(self._outcomes),
            len(self._running),
        )
        self._clean_up()
        return list(found.values())

    def _future(self, task: str, found: dict[str, TaskFuture[Any]]) -> TaskFuture[Any]:
        calls, outcome = self._calls, self._outcomes.get(task)
        record = self._records.get(task)
        name = outcome.name if outcome is not None else record.name if record is not None else task
        call = calls.new_call(task, name)
        future = call.future
        assert future is not None  # noqa: S101 - nobody else has it yet
        if outcome is not None:
            call.settle(outcome)
        elif self._cancelled and task not in self._running:
            call.settle(OutcomeRecord("cancelled", name))
        elif task in self._running:
            self._hold(call, record)
            calls.watch(call, resubmit=self._resubmit)
        elif self._resubmit and record is not None and found.keys() >= set(record.after):
            self._hold(call, record)
            waits = [found[other] for other in record.after]
            if waits:
                call.launch_after(waits, lambda: calls.start(call))
            else:
                call.launch(lambda: calls.start(call))
        else:
            calls.lose(call)
        return future

    def _hold(self, call: GroupCall, record: CallRecord | None) -> None:
        """Evict the inputs of a call when it has ended, unless whoever stored them will."""
        store = self._calls.store
        for key in () if record is None else record.inputs:
            client = client_of_input(key)
            if client in self._dead or client == store.client:
                call.hold([store.take(key)])

    def _read_outcomes(self, there: set[str]) -> dict[str, OutcomeRecord]:
        keys = [outcome_key(task) for task in self._tasks]
        found = read_many(self._session, keys)
        read = {
            id_of(key): OutcomeRecord.read(frames, key, self._session.url)
            for key, frames in zip(keys, found, strict=True)
            if frames is not None
        }
        damaged = [outcome_key(task) for task in there.difference(read)]
        if damaged:  # another one can be written in their place
            self._session.evict(damaged)
        return read

    def _read_records(self) -> dict[str, CallRecord]:
        keys = [call_key(task) for task in self._tasks if task not in self._outcomes]
        return {
            id_of(key): CallRecord.read(frames, key, self._session.url)
            for key, frames in zip(keys, read_many(self._session, keys), strict=True)
            if frames is not None
        }

    def _clean_up(self) -> None:
        """Remove what nobody needs, and nobody else will remove."""
        needed = {key for record in self._records.values() for key in record.inputs}
        needed.update(key for outcome in self._outcomes.values() for key in outcome.keeps)
        unneeded = [
            key
            for key in self._keys
            if key.startswith(INPUT) and client_of_input(key) in self._dead and key not in needed
        ]
        # An attempt that was not the first to be written down; whose worker may have died, too.
        for key in self._keys:
            if key.startswith(RESULT):
                task, attempt = attempt_of(key)
                outcome = self._outcomes.get(task)
                if outcome is not None and outcome.attempt != attempt:
                    unneeded.append(key)
        if unneeded:
            self._session.evict(unneeded)
