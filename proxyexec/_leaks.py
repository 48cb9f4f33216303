"""What a store holds now, and why: the answer of :meth:`Store.leaks <proxyexec.Store.leaks>`.

Nothing is recorded for this but what an object was to the call that stored it; the rest is found
when somebody asks. See ``_holders``.
"""

from __future__ import annotations

import html
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxyexec_connectors.listing import ListingConnector, StoredObject

from proxyexec._cli_parts import ago, many, shown
from proxyexec._holders import Holder, Pending, holders_of
from proxyexec._ownership import Note

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proxyexec._store import Store

__all__ = ["HeldObject", "Leaks", "leaks_of"]

# Rows of a table.
_ROWS_AT_MOST = 60

_HEAD = ("KEY", "TYPE", "BYTES", "AGE", "STORED AS", "HELD BY")

# What is in the session of a task group, by how keys begin.
_IN_GROUPS = {
    "call": "a call of the group",
    "outcome": "an outcome of the group",
    "function": "a function of the group",
    "input": "an argument in the group",
    "result": "a result in the group",
    "cancelled": "the group's end",
}


@dataclass(frozen=True)
class HeldObject:
    """One stored object, and who holds it."""

    key: str
    type: str
    """The name of its type; empty if that is not known here."""
    bytes: int | None
    """Its size as stored; ``None`` if the connector does not tell."""
    since: float | None
    """When it was stored, in seconds since the epoch; ``None`` if the connector does not tell."""
    stored_as: str
    """What it was to the call that stored it; empty if that is not known."""
    holders: tuple[Holder, ...]
    """Who holds it. With none, it stays until it is evicted by hand, or the store is closed."""

    @property
    def age_seconds(self) -> float | None:
        """How long it has been stored."""
        return None if self.since is None else max(time.time() - self.since, 0.0)


@dataclass(frozen=True)
class Leaks:
    """What a store holds, the largest object first. Its ``repr`` is a table."""

    url: str
    """Of the store's place, without password."""
    objects: tuple[HeldObject, ...]

    @property
    def bytes(self) -> int:
        """What all of them take, as far as that is known."""
        return sum(one.bytes or 0 for one in self.objects)

    @property
    def unheld(self) -> tuple[HeldObject, ...]:
        """Those that nobody holds. They stay until evicted by hand, or the store is closed."""
        return tuple(one for one in self.objects if not one.holders)

    def __len__(self) -> int:
        return len(self.objects)

    def __iter__(self) -> Iterator[HeldObject]:
        return iter(self.objects)

    def __repr__(self) -> str:
        rows = [_HEAD, *map(_cells, self.objects[:_ROWS_AT_MOST])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self._summary]
        for row in rows if self.objects else ():
            cells = [
                cell.rjust(width) if name == "BYTES" else cell.ljust(width)
                for cell, width, name in zip(row, widths, _HEAD, strict=True)
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, *self._rest])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in _HEAD)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(one)) + "</tr>"
            for one in self.objects[:_ROWS_AT_MOST]
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        rest = "".join(f"<p>{html.escape(line)}</p>" for line in self._rest)
        return f"<p>{html.escape(self._summary)}</p>{table if self.objects else ''}{rest}"

    @property
    def _summary(self) -> str:
        return f"{many(len(self), 'object')}, {many(self.bytes, 'byte')} in {self.url}"

    @property
    def _rest(self) -> list[str]:
        left_out = len(self) - _ROWS_AT_MOST
        return [f"... and {left_out:,} more"] if left_out > 0 else []


def leaks_of(store: Store) -> Leaks:
    """Return what a store holds, after evicting what has been released by now.

    Raises:
        ValueError: this process does not own the store.
        ConnectorError: its place cannot be reached.
    """
    url = store.connector.url
    leases = store._check_owner()
    if not store.closed:
        leases.flush()
    if store.closed:  # by the last lease, perhaps just now
        return Leaks(url, ())
    counts, _ = leases.held()
    connector: Any = store.connector
    stored: Sequence[StoredObject | _Known]
    if isinstance(connector, ListingConnector):
        stored = connector.objects()
    else:
        stored = [_Known(key) for key in counts]
    notes = {key: Note(*note) for key, note in list(leases.notes.items())}
    holders, pending = holders_of(leases)
    # Tasks may have ended meanwhile, and others hold what they came to.
    for key in leases.held()[0].keys() - holders.keys():
        holders[key] = [Holder("other", "")]
    is_group = getattr(connector, "address", "").find("session=durable-") >= 0
    found = [
        _told(one, notes.get(one.key), holders.get(one.key, []), pending, is_group=is_group)
        for one in stored
    ]
    return Leaks(url, tuple(sorted(found, key=lambda one: (-(one.bytes or 0), one.key))))


@dataclass(frozen=True)
class _Known:
    """An object of which a connector tells nothing."""

    key: str
    bytes: None = None
    since: None = None


def _told(
    stored: StoredObject | _Known,
    note: Note | None,
    holders: Sequence[Holder],
    pending: Sequence[Pending],
    *,
    is_group: bool,
) -> HeldObject:
    key, size, since = stored.key, stored.bytes, stored.since
    if note is not None:
        type_name = note.type_name.replace(":", ".").removeprefix("builtins.")
        return HeldObject(key, type_name, size, since, _described(note), tuple(holders))
    what = _IN_GROUPS.get(key.partition(".")[0], "") if is_group else ""
    if is_group and not holders:
        holders = [Holder("group", "")]
    # Whose result it will be, once it is known to have ended.
    for task in () if holders else pending:
        if task.is_of(key):
            what, holders = f"result of {task.name}", [Holder("task", task.name, "running")]
    return HeldObject(key, "", size, since, what, tuple(holders))


def _described(note: Note) -> str:
    if note.what == "argument":
        return f"argument {note.name!r} of {note.called}"
    if note.what == "function":
        return f"in the callable {note.called}"
    return f"result of {note.called}" if note.what == "result" else "Store.proxy()"


def _cells(one: HeldObject) -> tuple[str, ...]:
    held = Counter(map(str, one.holders))
    texts = [text if count == 1 else f"{count} x {text}" for text, count in held.items()]
    return (
        shown(one.key),
        shown(one.type),
        "" if one.bytes is None else f"{one.bytes:,}",
        "" if one.age_seconds is None else ago(one.age_seconds),
        shown(one.stored_as),
        shown(", ".join(texts[:4]) + (", ..." if len(texts) > 4 else "")) or "nobody",
    )
