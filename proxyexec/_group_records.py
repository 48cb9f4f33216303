"""What of a task group is written down: calls, their outcomes, and registered functions.

A record is a few frames. The first one is JSON and says what one needs to know to list, watch and
clean up a group: nobody has to unpickle anything for that. The others are what the serializer
made of the function and its arguments, or of the result.

Keys in the group's session::

    call.<id>                     a call
    outcome.<id>                  what it came to; the first one counts
    input.<client>.<n>            an argument, or a part of one, that a client stored
    result.<id>.<attempt>         a result that a worker stored, and its parts, with a suffix
    function.<digest>             a registered function
    cancelled                     there once the group is cancelled

An ``<id>`` is ``<number>-<client>``, so that no two clients ever make up the same, and ids in order
are calls in the order of their submission. Claims are ``task.<id>``, of the worker that runs it,
and ``client.<client>``, of a client that has the group open.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from proxyexec_connectors.errors import CorruptObjectError

from proxyexec._payloads import PYTHON
from proxyexec.errors import ArrivalError, ObjectMissingError

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Connector, Frames
    from typing_extensions import Self

__all__ = [
    "CALL",
    "CANCELLED",
    "INPUT",
    "OUTCOME",
    "RESULT",
    "CallRecord",
    "CallReference",
    "FunctionRecord",
    "OutcomeRecord",
    "attempt_of",
    "call_key",
    "check_python",
    "client_claim",
    "client_of_input",
    "function_key",
    "id_of",
    "number_of",
    "outcome_key",
    "read_many",
    "result_key",
    "task_claim",
    "task_id",
]

CALL, OUTCOME, INPUT, RESULT = "call.", "outcome.", "input.", "result."
CANCELLED = "cancelled"

_VERSION = 1

# So many records are read in one go.
_AT_ONCE = 1000


@dataclass(frozen=True)
class CallReference:
    """Stands for the result of another call of the group among the arguments of one."""

    id: str


@dataclass(kw_only=True)
class _Record:
    """What is written down."""

    kind: ClassVar[str]
    python: str = PYTHON
    body: Frames = field(default=(), repr=False)
    """What the serializer made of the rest."""

    def frames(self) -> list[Any]:
        """Return what is stored."""
        facts = {one.name: getattr(self, one.name) for one in fields(self)}
        del facts["body"]
        return [json.dumps({"kind": self.kind, "version": _VERSION, **facts}).encode(), *self.body]

    @classmethod
    def read(cls, frames: Frames, key: str, url: str) -> Self:
        """Understand what is stored.

        Raises:
            CorruptObjectError: it makes no sense.
        """
        try:
            facts = json.loads(bytes(frames[0]))
            if (facts.pop("kind"), facts.pop("version")) != (cls.kind, _VERSION):
                raise ValueError(f"it is no {cls.kind} of version {_VERSION}")
            return cls(**facts, body=list(frames)[1:])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise CorruptObjectError(url, key, str(error)) from error

    @classmethod
    def fetch(cls, session: Connector, key: str) -> Self:
        """Return what is stored under a key.

        Raises:
            ObjectMissingError: there is nothing.
            CorruptObjectError: it makes no sense.
        """
        found = session.get(key)
        if found is None:
            raise ObjectMissingError(key, session.url)
        return cls.read(found, key, session.url)


@dataclass
class CallRecord(_Record):
    """A call, as it is written down; the body is the function and its arguments."""

    kind = "call"

    name: str
    """Of the function, for messages."""
    inputs: list[str] = field(default_factory=list)
    """Keys of what its arguments refer to."""
    after: list[str] = field(default_factory=list)
    """Ids of the calls whose results it is given."""
    registered: str | None = None
    """The id of its function, if that is a registered one."""
    created: float = field(default_factory=time.time)


@dataclass
class OutcomeRecord(_Record):
    """What a call came to, as it is written down; the body is the result, or the error."""

    kind = "outcome"

    state: str
    """``done``, ``failed`` or ``cancelled``."""
    name: str
    attempt: str = ""
    """Which one of those who may have run the call at the same time this is of."""
    error: str = ""
    """Type and message of what the call raised."""
    keeps: list[str] = field(default_factory=list)
    """Keys of inputs that the result refers to."""
    seconds: float = 0.0
    """How long the function ran."""
    created: float = field(default_factory=time.time)


@dataclass
class FunctionRecord(_Record):
    """A registered function, as it is written down."""

    kind = "function"

    name: str


def check_python(record: _Record, what: str) -> None:
    """See to it that what is in a record is only unpickled by the Python that pickled it.

    Raises:
        ArrivalError: another minor version did.
    """
    if record.python != PYTHON:
        reason = f"Python {record.python} wrote it down, and this is Python {PYTHON}"
        raise ArrivalError(what, reason)


def read_many(session: Connector, keys: Sequence[str]) -> list[Frames | None]:
    """Return what is stored under each key; nothing for what is there and damaged.

    A machine that fails may leave files that are cut short: nothing is synced to the medium.
    """
    found: list[Frames | None] = []
    for start in range(0, len(keys), _AT_ONCE):
        some = keys[start : start + _AT_ONCE]
        try:
            found += session.get_many(some)
        except CorruptObjectError:
            found += [_read_one(session, key) for key in some]
    return found


def task_id(number: int, client: str) -> str:
    """Return the id of a client's call."""
    return f"{number:08d}-{client}"


def number_of(task: str) -> int:
    """Return the number in a call's id."""
    return int(task.partition("-")[0])


def id_of(key: str) -> str:
    """Return the id of the call that a key ``call.<id>`` or ``outcome.<id>`` is about."""
    return key.partition(".")[2]


def call_key(task: str) -> str:
    """The key of a call."""
    return CALL + task


def outcome_key(task: str) -> str:
    """The key of a call's outcome."""
    return OUTCOME + task


def result_key(task: str, attempt: str) -> str:
    """The key of what one attempt at a call came to."""
    return f"{RESULT}{task}.{attempt}"


def attempt_of(key: str) -> tuple[str, str]:
    """Return id and attempt of the key of a result, or of a part of one."""
    task, _, attempt = key.removeprefix(RESULT).partition(".")
    return task, attempt.partition("+")[0]


def client_of_input(key: str) -> str:
    """Return which client stored an input."""
    return key.split(".")[1]


def function_key(digest: str) -> str:
    """The key of a registered function."""
    return f"function.{digest}"


def task_claim(task: str) -> str:
    """The claim of who runs a call."""
    return f"task.{task}"


def client_claim(client: str) -> str:
    """The claim of a client that has the group open."""
    return f"client.{client}"


def _read_one(session: Connector, key: str) -> Frames | None:
    try:
        return session.get(key)
    except CorruptObjectError:
        return None
