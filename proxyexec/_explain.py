"""What was sent for one call, which way, why, and what it cost."""

from __future__ import annotations

import html
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxyexec._accounts import known_of, saw_all
from proxyexec._call import Call
from proxyexec._sizes import format_size
from proxyexec._table import html_table, seconds_text, text_table
from proxyexec.errors import name_of

if TYPE_CHECKING:
    from proxyexec._events import Moved
    from proxyexec._tasks import Tasks

__all__ = ["Explanation", "explained"]


@dataclass(frozen=True, repr=False)
class Explanation:
    """What was sent for one call, which way, why, and what it cost; printed, it is a table."""

    function: str
    state: str
    """``done``, ``failed``, ``cancelled``, ``running`` or ``pending``."""
    error: str
    """The type of what it raised, if it failed."""
    moved: tuple[Moved, ...]
    """The objects; a part that was stored by itself comes after the object that it is from."""
    bytes_resolved: int
    """What the task has fetched."""
    resolve_seconds: float
    wait_seconds: float | None
    """From giving the task to the base executor to having its outcome, less what follows.

    ``None``, as these, where that was not measured, or is not over.
    """
    unpack_seconds: float | None
    call_seconds: float | None
    pack_seconds: float | None
    note: str
    """What is not listed, and why."""

    def __repr__(self) -> str:
        table = f"\n{text_table(_COLUMNS, self._rows(), left=_LEFT)}" if self.moved else ""
        return f"{self._summary()}{table}\n{self.note}"

    def _repr_html_(self) -> str:
        table = html_table(_COLUMNS, self._rows(), left=_LEFT) if self.moved else ""
        return f"<p>{html.escape(self._summary())}</p>{table}<p>{html.escape(self.note)}</p>"

    def _summary(self) -> str:
        what = f"{self.function}: {self.state}"
        if self.error:
            what += f" with {self.error}"
        times = {
            "waiting for a worker": self.wait_seconds,
            "unpacking arguments": self.unpack_seconds,
            "in the function": self.call_seconds,
            "packing the result": self.pack_seconds,
        }
        told = [
            f"{seconds_text(took)} {doing}" for doing, took in times.items() if took is not None
        ]
        if self.bytes_resolved:
            fetched = format_size(self.bytes_resolved)
            told.append(f"of that {seconds_text(self.resolve_seconds)} fetching {fetched}")
        return f"{what}; {', '.join(told)}" if told else what

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                _what(one),
                one.type,
                f"{'' if one.exact else '~'}{format_size(one.bytes)}",
                _WENT[one.path],
                seconds_text(one.serialize_s),
                seconds_text(one.put_s),
                one.decided_by,
            )
            for one in self.moved
        ]


def explained(future: Future[Any], tasks: Tasks) -> Explanation:
    """Explain the call of a future; see :meth:`proxyexec.StoreExecutor.explain`."""
    call = getattr(future, "_call", None) or getattr(future, "_unsent", None)
    if call is None:
        raise TypeError(f"expected the future of a call, not an object of type {_name(future)}")
    if getattr(call, "_tasks", getattr(call, "tasks", None)) is not tasks:
        raise ValueError("the future is of another executor")
    error, state = _state_of(future)
    if not isinstance(call, Call):
        note = _OF_GROUP if hasattr(call, "name") else _UNTOUCHED
        return Explanation(
            getattr(call, "name", ""), state, error, (), 0, 0.0, None, None, None, None, note
        )
    ran, moved = known_of(call)
    measured = ran is not None and ran.run_s is not None
    fetched = () if ran is None else ran.resolved
    # Of very many, not all are told of one by one.
    _, more_bytes, *more_seconds = (call._report and call._report.more) or (0, 0, 0.0, 0.0)
    return Explanation(
        call._called,
        state,
        error,
        tuple(moved),
        sum(one.bytes for one in fetched) + more_bytes,
        sum((one.get_s + one.load_s for one in fetched), sum(more_seconds)),
        None if ran is None else ran.wait_s,
        ran.unpack_s if ran is not None and measured else None,
        ran.run_s if ran is not None else None,
        ran.pack_s if ran is not None and measured else None,
        _EVERY if saw_all(call) else _SMALL,
    )


def _state_of(future: Future[Any]) -> tuple[str, str]:
    """Return the type of what a call raised, and what has become of it; nothing is fetched."""
    if future.cancelled():
        return "", "cancelled"
    if not future.done():
        return "", "running" if future.running() else "pending"
    error = Future.exception(future, 0)
    return ("", "done") if error is None else (_name(error), "failed")


def _name(obj: Any) -> str:
    return name_of(type(obj))


def _what(moved: Moved) -> str:
    named: str = moved.what
    if moved.what == "argument":
        # Where the base executor has put it there, nobody knows its place.
        named = "an argument" if moved.name is None else f"argument {moved.name!r}"
    return f"  part of {named}" if moved.is_part else named


_COLUMNS = ("", "type", "bytes", "went", "serialized", "stored", "as")

_LEFT = frozenset({0, 1, 3, 6})

_WENT = {
    "inline": "inline",
    "store": "to the store",
    "found": "was stored already",
    "reference": "as a reference",
}

_SMALL = (
    "Objects that are not listed are seen at a glance not to be wanted by the policy. While a "
    "trace is written, all are listed."
)
_EVERY = "All objects are listed."
_UNTOUCHED = (
    "The call passed untouched: there is no policy. While a trace is written, what passes is "
    "listed."
)
_OF_GROUP = (
    "Of calls of a task group, this is not known: they are written down, and read by workers."
)
