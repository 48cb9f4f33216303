"""What is measured, as those are told who observe: what moved, what was fetched, ran, was evicted.

Nothing here refers to arguments or results: only to names of types, and sizes. Times that end in
``_s`` are seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from proxyexec.policy import ShouldProxy, reason_of

if TYPE_CHECKING:
    from proxyexec._carrying import Carried

__all__ = [
    "Event",
    "Evicted",
    "Moved",
    "Moving",
    "Path",
    "Ran",
    "Resolved",
    "Sent",
    "State",
    "moved",
]

Path: TypeAlias = Literal["inline", "store", "found", "reference"]
"""``store`` is stored; ``found`` has the content of what is stored already; ``reference`` is a
stored object that is passed on."""


class Sent(NamedTuple):
    """One object that was made ready to travel, as whoever did so has measured it."""

    type: str
    bytes: int
    path: Path
    exact: bool
    """Whether it was serialized, hence has exactly this size."""
    serialize_s: float
    put_s: float
    answers: tuple[bool, ...] = ()
    """Those of the policy's terms that were asked, in order."""
    why: str = ""
    """What decided, if it was not that."""
    key: str = ""
    content: str = ""
    """Alike for objects of the same content, as far as some of the bytes tell."""
    carries: tuple[Carried, ...] = ()
    """Of a callable, where somebody observes everything: the larger objects that it carries and
    that went with it."""
    parts: tuple[Sent, ...] = ()
    """What of it was stored by itself."""

    @property
    def is_estimate(self) -> bool:
        """Whether it travels as it is: not counted with its size, where it travels at all."""
        return self.path == "inline" and not self.exact


Moving: TypeAlias = Literal["argument", "result", "function"]


class Moved(NamedTuple):
    """An object that was sent to a task, or by one."""

    what: Moving
    name: int | str | None
    """Its place or keyword, of an argument."""
    type: str
    bytes: int
    """Its serialized size; an upper bound, or about that, if it is not exact."""
    path: Path
    decided_by: str
    """The term of the policy that decided, and why."""
    serialize_s: float
    put_s: float
    exact: bool = True
    task: str = ""
    key: str = ""
    """Under which it is stored, if it is."""
    content: str = ""
    """Alike for objects of the same content, where somebody observes everything."""
    is_part: bool = False
    """Whether it is a part of the object before, stored by itself."""
    carries: tuple[Carried, ...] = ()
    """As of :class:`Sent`."""


class Resolved(NamedTuple):
    """A stored object that was fetched."""

    type: str
    bytes: int
    get_s: float
    load_s: float
    where: Literal["client", "worker"]
    key: str = ""
    task: str = ""
    """That which fetched it, in a worker."""


State: TypeAlias = Literal["done", "failed", "cancelled"]


class Ran(NamedTuple):
    """A task that has ended. Times without ``_s`` are of the client's ``time.perf_counter()``."""

    wait_s: float
    """From being given to the base executor to being here again, less what the worker measured."""
    run_s: float | None
    """In the function; ``None`` if it failed."""
    unpack_s: float = 0.0
    pack_s: float = 0.0
    """What the worker took to serialize and store the result."""
    task: str = ""
    function: str = ""
    calls: int = 1
    """How many, in a chunk."""
    state: State = "done"
    error: str = ""
    """The name of the exception's type."""
    submitted: float = 0.0
    ended: float = 0.0
    started: float | None = None
    """When the worker began, in seconds since the epoch, by its own clock, if it was asked."""
    worker: str = ""
    """Its host and process id, if it was asked."""
    moved: tuple[Moved, ...] = ()
    resolved: tuple[Resolved, ...] = ()


class Evicted(NamedTuple):
    """A stored object that was removed."""

    key: str
    bytes: int
    stored_s: float
    """For how long it was there."""
    resolved: bool
    """Whether anybody has fetched it, as far as is known."""


Event: TypeAlias = "Moved | Resolved | Ran | Evicted"


def moved(
    what: Moving, name: int | str | None, sent: Sent, policy: ShouldProxy, task: str
) -> list[Moved]:
    """Say what was measured of an object and its parts, to who observes.

    Args:
        what: what it is to the call.
        name: its place, or its keyword.
        sent: what was measured.
        policy: decided about it.
        task: the key of the task's result.
    """
    size = sent.bytes if sent.exact or sent.bytes else None
    own = Moved(
        what,
        name,
        sent.type,
        sent.bytes,
        sent.path,
        sent.why or reason_of(policy, sent.answers, sent.type, size),
        sent.serialize_s,
        sent.put_s,
        sent.exact,
        task,
        sent.key,
        sent.content,
        carries=sent.carries,
    )
    parts = [one for part in sent.parts for one in moved(what, name, part, policy, task)]
    return [own, *(one._replace(is_part=True) for one in parts)]
