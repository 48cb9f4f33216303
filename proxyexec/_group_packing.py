"""Making a call of a group ready to be written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from proxyexec._future import TaskFuture
from proxyexec._group_envelope import envelope_of
from proxyexec._group_records import INPUT, CallRecord, CallReference
from proxyexec._group_task import here
from proxyexec._store import leases_of

if TYPE_CHECKING:
    from proxyexec._context import Context, Keeper, Packed
    from proxyexec._events import Sent
    from proxyexec._ownership import Lease

__all__ = ["Packing"]


class Packing:
    """One call that is being packed.

    Args:
        context: what client and workers have in common.
        keeper: stores what is to be stored.
        record: of the call, so far.
    """

    def __init__(self, context: Context, keeper: Keeper, record: CallRecord) -> None:
        self.leases: list[Lease] = []
        """What holds the call's inputs."""
        self.sent: list[Sent] = []
        """What was measured of them."""
        self._context = context
        self._keeper = keeper
        self._record = record
        self._function: Any = None
        # What travels for the arguments so far, by identity: one object stays one object.
        self._packed: dict[int, tuple[Any, Any]] = {}

    def pack_function(self, function: Any) -> None:
        """Pack what is called; a registered function is not."""
        self._function = self._take(
            self._context.pack_function(function, self._keeper, crossing=True)
        )

    def finished(self, args: Sequence[Any], kwargs: dict[str, Any]) -> CallRecord:
        """Pack the arguments; return the record of the whole call."""
        whole = (
            self._function,
            [self._pack(value, place) for place, value in enumerate(args)],
            {name: self._pack(value, name) for name, value in kwargs.items()},
        )
        self._record.body = envelope_of(self._context).dumps(whole)
        return self._record

    def _pack(self, value: Any, place: int | str) -> Any:
        if id(value) in self._packed:
            return self._packed[id(value)][1]
        context = self._context
        if type(value) is TaskFuture:
            call: Any = value._call
            travels: Any = CallReference(call.key)
            self._record.after.append(call.key)
        elif context.passes(value):
            return value
        else:
            what = f"argument {place!r} of {self._record.name}"
            value_here = here(value, context.store.address)
            travels = self._take(context.pack(value_here, self._keeper, what, crossing=True))
        self._packed[id(value)] = value, travels
        return travels

    def _take(self, packed: Packed) -> Any:
        self.leases += leases_of(packed.embedded)
        if packed.sent is not None:
            self.sent.append(packed.sent)
        address = self._context.store.address
        self._record.inputs += [
            kept.reference.key
            for kept in packed.embedded
            if kept.reference.address == address and kept.reference.key.startswith(INPUT)
        ]
        return packed.travels
