"""Calls that pass untouched, where somebody wants to know what passes.

What is sent is what would be without: objects are only looked at. Those whose size nobody can tell
are serialized once more, to know.
"""

from __future__ import annotations

from time import perf_counter as clock
from typing import TYPE_CHECKING, Any

from proxyexec._call import Call
from proxyexec._chunk_call import ChunkCall
from proxyexec._mapped import plain
from proxyexec._record import Record, here
from proxyexec._task import ChunkTask, Task, context_from, waiting_for_nothing

if TYPE_CHECKING:
    from proxyexec._context import Context

__all__ = ["SeenCall", "SeenChunkCall"]


class SeenTask(Task):
    """A call that passes; its result does, too."""

    @waiting_for_nothing
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return _measured(self, lambda context, record: self._apply(context, record, args, kwargs))

    def _apply(self, context: Context, record: Record, args: Any, kwargs: Any) -> Any:
        start = clock()
        result = self._travels(*args, **kwargs)
        record.run_s += clock() - start
        context._see(result, record)
        return result


class SeenChunkTask(SeenTask, ChunkTask):
    """Several calls that pass; their results do, too."""

    @waiting_for_nothing
    def __call__(self, /, *chunk: tuple[Any, ...]) -> Any:
        return _measured(
            self,
            lambda context, record: [self._apply(context, record, one, {}) for one in chunk],
        )


class _Seen(Call):
    """The client's side of it."""

    __slots__ = ()

    def pack_function(self, function: Any) -> Any:
        return plain(function)

    def pack(self, obj: Any, name: int | str, *, later: bool = False) -> Any:
        self._see(obj, name)
        return obj


class SeenCall(_Seen):
    """A call that passes."""

    __slots__ = ()
    kind = SeenTask


class SeenChunkCall(ChunkCall, _Seen):
    """Several calls that pass together."""

    __slots__ = ()
    kind = SeenChunkTask
    pack_function = _Seen.pack_function
    pack = _Seen.pack


def _measured(task: Task, run: Any) -> Any:
    context = task._context or context_from(task._blob)
    mine, record = here.mine, Record()
    outer, mine.record = mine.record, record
    if task.every:
        record.begin()
    try:
        result = run(context, record)
    finally:
        mine.record = outer
    return record.outcome(result, context.store.address, mine.left)
