"""What was measured of one call: closed when its task has ended, and told to who observes.

Small calls have no account: they are counted, and that is all; see :mod:`proxyexec._call`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any

from proxyexec._events import Moved, Ran, moved
from proxyexec._future import Deferred, TaskFuture
from proxyexec._ownership import Lease
from proxyexec._proxy import Kept, is_proxy, reference_of
from proxyexec.errors import name_of

if TYPE_CHECKING:
    from proxyexec._call import Call
    from proxyexec._events import State
    from proxyexec._record import Report

__all__ = ["close_account", "known_of", "saw_all"]


def close_account(call: Call, error: BaseException | None) -> None:
    """Count what there is to count of a call whose task has ended, and tell who observes.

    Called before the call lets go of what it holds.
    """
    ended = clock()
    measures, report = call._tasks.measures, call._report
    measures.end(ended - call.since if call.since else None, call.length, error, report)
    state: State = "done" if error is None else "failed"
    if isinstance(error, CancelledError):
        state = "cancelled"
    call._ended = state, "" if error is None else name_of(type(error)), ended
    _look_at_what_is_held(call, error)
    has_events = report is not None and (report.sent or report.resolved)
    if measures.observed and (measures.every or call._sent or has_events):
        ran = _ran(call, *call._ended)
        for one in ran.moved:
            if one.what == "result":  # of others they have been told
                measures.tell(one)
        for fetched in ran.resolved:
            measures.tell(fetched)
        measures.tell(ran)


def known_of(call: Call) -> tuple[Ran | None, list[Moved]]:
    """Return what is known of a task, if it has ended, and of what was sent."""
    ended = call._ended
    return None if ended is None else _ran(call, *ended), list(_moved(call))


def saw_all(call: Call) -> bool:
    """Tell whether all that was sent, by the worker too, is known by now."""
    return call._report is not None and bool(call._report.worker)


def _look_at_what_is_held(call: Call, error: BaseException | None) -> None:
    report, held, live = call._report, call._held or (), call._context.store.live
    # One that is given twice is handed over once.
    for future in {id(one): one for one in held if type(one) is TaskFuture}.values():
        _note_linked(call, future)
    if live is None:
        return
    if report is not None:
        live.touch([key for key, *_ in report.resolved])
    if error is not None or (report is not None and report.more):
        # What it has fetched is not known.
        call._context.store.touch([one.key for one in held if type(one) is Lease])


def _note_linked(call: Call, future: TaskFuture[Any]) -> None:
    """Note a result that the base executor has handed to the task."""
    opened = getattr(future._call, "_opened", None)
    result = None if opened is None else opened[0]
    if type(result) is Deferred:
        reference = result.reference
    elif is_proxy(result):
        reference = reference_of(result)
    else:
        _note_passed(call, future)
        return
    sent = call._context.refer(Kept(reference, None)).sent
    assert sent is not None  # noqa: S101 - it always says so
    call._tasks.measures.send(sent)
    call._note("argument", None, sent)


def _note_passed(call: Call, future: TaskFuture[Any]) -> None:
    """Note a result that went from worker to worker, for who wants to know everything."""
    other = future._call
    report: Report | None = getattr(other, "_report", None)
    if call._tasks.measures.every and report is not None and report.sent:
        whole = report.sent[0]
        passed = whole._replace(
            serialize_s=0.0, parts=(), key=getattr(other, "key", ""), why=_PASSED
        )
        call._note("argument", None, passed)


_PASSED = "workers pass it on"


def _ran(call: Call, state: State, error: str, ended: float) -> Ran:
    """Say what was measured of a task.

    Args:
        call: its call.
        state: what has become of it.
        error: the name of the type of what it raised.
        ended: when.
    """
    report = call._report
    run_s = unpack_s = pack_s = 0.0
    if report is not None:
        run_s, unpack_s, pack_s = report.run_s, report.unpack_s, report.pack_s
    since = call.since or ended
    return Ran(
        max(0.0, ended - since - run_s - unpack_s - pack_s),
        None if report is None else run_s,
        unpack_s,
        pack_s,
        call.key,
        call._called,
        call.length,
        state,
        error,
        since,
        ended,
        None if report is None else report.started or None,
        "" if report is None else report.worker,
        tuple(_moved(call)),
        () if report is None else report.events(call.key),
    )


def _moved(call: Call) -> Iterator[Moved]:
    policy, report = call._context.policy, call._report
    for what, name, one in call._sent or ():
        yield from moved(what, name, one, policy, call.key)
    for one in () if report is None else report.sent:
        yield from moved("result", None, one, policy, call.key)
