"""The callable of a ``map``: made ready to travel once for all of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

    from proxyexec._call import Call
    from proxyexec._context import Context, Packed
    from proxyexec._events import Path, Sent
    from proxyexec._proxy import Kept
    from proxyexec._tasks import Tasks

__all__ = ["MappedFunction", "plain"]


class MappedFunction:
    """A callable for all tasks of one ``map``; what it carries is stored once.

    Where it may change while items are drawn, it is packed for each task, as the standard library
    does. What has not changed is found again by its content, and held until the map has ended.

    Args:
        function: the callable.
        tasks: the executor's.
        kind: the class of its calls.
        may_change: whether code of others runs between one task and the next.
    """

    takes_parts = True
    shares = True

    def __init__(self, function: Any, tasks: Tasks, kind: type[Call], *, may_change: bool) -> None:
        self.function = function
        self.kind = kind
        self._may_change = may_change
        self._tasks = tasks
        self._packed: Packed | None = None

    def pack(self, context: Context, *, crossing: bool) -> Packed:
        """Make it ready to travel once more."""
        if self._packed is not None and not self._may_change:
            return self._packed._replace(sent=_once_more(self._packed.sent))
        # Let go of what was packed before only then, so that it is found.
        self._packed = context.pack_function(self.function, self, crossing=crossing)
        return self._packed

    @property
    def every(self) -> bool:
        """Whether somebody wants to know everything of what is sent."""
        return self._tasks.every

    def keep(self, obj: Any, frames: Frames, embedded: Sequence[Kept]) -> Kept:
        """Store an object; see :class:`proxyexec._context.Keeper`."""
        return self._tasks.store.hold(obj, frames, embedded, dedupe=True)

    keep_part = keep


def _once_more(sent: Sent | None) -> Sent | None:
    """Say what sending costs that has been serialized, and stored, for another task."""
    if sent is None:
        return None
    path: Path = "inline" if sent.path == "inline" else "reference"
    known = [one._replace(path="reference", serialize_s=0.0, put_s=0.0) for one in sent.parts]
    return sent._replace(path=path, serialize_s=0.0, put_s=0.0, parts=tuple(known))


def plain(function: Any) -> Any:
    """Return the callable itself."""
    return function.function if type(function) is MappedFunction else function
