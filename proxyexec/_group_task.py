"""What runs in the worker for a call of a task group.

The worker is given the call's id, and reads the call from the group. It runs the function only
with the call's claim in hand, and only if nobody has written an outcome down; what it comes to is
written down before it is delivered. Whoever else was given the same call waits for the claim, and
finds the outcome there, or takes over from a worker that died.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any

from proxyexec import _spans
from proxyexec._context import Context, Inline, Stored, joined
from proxyexec._group_envelope import envelope_of
from proxyexec._group_records import (
    CANCELLED,
    INPUT,
    CallRecord,
    CallReference,
    FunctionRecord,
    OutcomeRecord,
    call_key,
    check_python,
    function_key,
    outcome_key,
    result_key,
    task_claim,
)
from proxyexec._proxy import Reference, extract, is_proxy, reference_of
from proxyexec._task import context_from, packed_error, unpacked_error
from proxyexec.errors import (
    ConnectorError,
    ObjectMissingError,
    PolicyError,
    SerializationError,
    name_of,
)

if TYPE_CHECKING:
    from proxyexec_connectors.durable import Claim, DurableConnector
    from proxyexec_connectors.protocol import Frames

__all__ = ["GroupTask", "error_of", "here", "references_of", "written"]

# How long who waits for a claim sleeps before he looks again: at first, and at most.
_FIRST_WAIT, _LONGEST_WAIT = 0.01, 0.5

# Of what a call raised, so much is told to who lists the group, in characters.
_LONGEST_MESSAGE = 1000


class GroupTask:
    """A call of a group on its way to the worker; what the base executor is given to call."""

    def __init__(
        self,
        name: str,
        context: Context | None,
        blob: bytes,
        task: str,
        carrier: _spans.Carrier | None = None,
    ) -> None:
        tracing = _spans.active
        if tracing is not None and context is not None:  # in the client
            carrier = tracing.carrier(name, task)
        self._carrier = carrier
        self._context = context
        self._blob = blob
        self._task = task
        self.__name__ = self.__qualname__ = name

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupTask, (self.__name__, None, self._blob, self._task, self._carrier)

    def __call__(self) -> bytes:
        """Return the call's outcome, as it is written down."""
        with _spans.NOTHING if self._carrier is None else _spans.running(self._carrier):
            return self._run()

    def _run(self) -> bytes:
        context = self._context or context_from(self._blob)
        session: Any = context.store.connector
        claim, found, record = self._claimed(session)
        if claim is None:
            return joined(found)
        try:
            return joined(self._settled(context, session, record))
        finally:
            # Should that fail, the claim runs out, or goes with the process.
            with contextlib.suppress(ConnectorError):
                claim.release()

    def _claimed(self, session: DurableConnector) -> tuple[Claim | None, Any, Frames | None]:
        """Return the claim on the call and what is known of it, or the outcome that is there."""
        wait = _FIRST_WAIT
        while True:
            claim = session.claim(task_claim(self._task))
            try:
                # After the claim was taken: who had it before wrote the outcome, and let go then.
                keys = [outcome_key(self._task), CANCELLED, call_key(self._task)]
                outcome, cancelled, record = session.get_many(keys)
            except BaseException:
                if claim is not None:
                    claim.release()
                raise
            if outcome is not None:
                if claim is not None:
                    claim.release()
                return None, outcome, None
            if claim is not None:
                return claim, None, record if cancelled is None else None
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    def _settled(self, context: Context, session: DurableConnector, found: Frames | None) -> Frames:
        if found is None and session.exists(CANCELLED):
            return written(session, self._task, OutcomeRecord("cancelled", self.__name__))
        if found is None:
            raise ObjectMissingError(call_key(self._task), session.url)
        record = CallRecord.read(found, call_key(self._task), session.url)
        attempt = secrets.token_hex(4)
        try:
            outcome = _outcome(context, session, record, self._task, attempt)
            result = written(session, self._task, outcome)
        except BaseException:
            _evict_attempt(session, self._task, attempt)
            raise
        if OutcomeRecord.read(result, outcome_key(self._task), session.url).attempt != attempt:
            _evict_attempt(session, self._task, attempt)
        return result


def written(session: DurableConnector, task: str, outcome: OutcomeRecord) -> Frames:
    """Write an outcome down, unless there is one; return the one that is there."""
    key = outcome_key(task)
    session.put(key, outcome.frames())
    found = session.get(key)
    if found is None:
        raise ObjectMissingError(key, session.url)
    return found


def _outcome(
    context: Context, session: DurableConnector, record: CallRecord, task: str, attempt: str
) -> OutcomeRecord:
    """Make the call. Raises what has kept it from being made, or its result from being stored."""
    check_python(record, f"the call of {record.name}")
    function, args, kwargs = _unpacked(context, session, record)
    start = time.perf_counter()
    try:
        result = function(*args, **kwargs)
    except KeyboardInterrupt:  # somebody stops the program, which may be run again
        raise
    except BaseException as error:  # noqa: BLE001 - as pools do
        return _failure(context, record, attempt, error, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    del function, args, kwargs  # inputs are let go of
    what = f"the result of {record.name}"
    try:
        result = here(result, context.store.address)
        travels = context.deliver(result, result_key(task, attempt), lambda: what)
        body = envelope_of(context).dumps(travels)
    except (SerializationError, PolicyError) as error:
        return _failure(context, record, attempt, error, seconds)
    keeps = [one.key for one in references_of(travels) if one.key.startswith(INPUT)]
    return OutcomeRecord("done", record.name, attempt, "", keeps, seconds, body=body)


def _failure(
    context: Context, record: CallRecord, attempt: str, error: BaseException, seconds: float
) -> OutcomeRecord:
    _spans.note_failure(error)
    said = f"{name_of(type(error))}: {error}"[:_LONGEST_MESSAGE]
    body = envelope_of(context).dumps(packed_error(error, context.errors()))
    return OutcomeRecord("failed", record.name, attempt, said, [], seconds, body=body)


def _unpacked(context: Context, session: DurableConnector, record: CallRecord) -> tuple[Any, ...]:
    loads = envelope_of(context).loads
    function, args, kwargs = loads(record.body)
    if record.registered is not None:
        registered = FunctionRecord.fetch(session, function_key(record.registered))
        check_python(registered, f"the function {registered.name}")
        function = loads(registered.body)
    function = context.unpack_function(function)
    args, kwargs = context.unpack_all(args, kwargs, function)
    results: dict[str, Any] = {}

    def arrived(value: Any) -> Any:
        if type(value) is not CallReference:
            return value
        if value.id not in results:
            results[value.id] = _result(context, session, value.id)
        return results[value.id]

    return (
        function,
        [arrived(value) for value in args],
        {name: arrived(value) for name, value in kwargs.items()},
    )


def _result(context: Context, session: DurableConnector, task: str) -> Any:
    """Return the result of another call, which has one."""
    outcome = OutcomeRecord.fetch(session, outcome_key(task))
    what = f"the result of {outcome.name}"
    check_python(outcome, what)
    travels = envelope_of(context).loads(outcome.body)
    if outcome.state != "done":
        raise error_of(context, outcome)
    return context.unpack(travels, what)


def error_of(context: Context, outcome: OutcomeRecord) -> BaseException:
    """Make again what a call raised."""
    try:
        check_python(outcome, f"what {outcome.name} raised")
        packed = envelope_of(context).loads(outcome.body)
        return unpacked_error(packed, context.errors(), outcome.name)
    except Exception as error:  # noqa: BLE001 - a serializer's, of whatever kind
        return error


def here(obj: Any, address: str) -> Any:
    """Return what is to be written down for an object: a group refers to nothing outside of it."""
    if is_proxy(obj) and reference_of(obj).address != address:
        return extract(obj)
    return obj


def references_of(travels: Any) -> list[Reference]:
    """Return what something that travels refers to."""
    if type(travels) is Stored:
        return [travels.reference, *travels.embedded]
    return list(travels.embedded) if type(travels) is Inline else []


def _evict_attempt(session: DurableConnector, task: str, attempt: str) -> None:
    """Remove what an attempt stored whose outcome does not count."""
    with contextlib.suppress(ConnectorError):  # whoever reloads the group removes it
        session.evict(session.keys(result_key(task, attempt)))
