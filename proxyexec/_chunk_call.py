"""Several calls that travel together, seen from the client; see :mod:`proxyexec._call`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from proxyexec._call import Call
from proxyexec._context import Context, Inline, Stored
from proxyexec._task import (
    HEAVIEST_BYTES,
    ChunkTask,
    Failed,
    TimedChunkTask,
    TimedOutcome,
    chunk_key,
    unpacked_error,
    weight_of,
)

if TYPE_CHECKING:
    from proxyexec._tasks import Tasks

__all__ = ["ChunkCall", "TimedChunkCall"]


class ChunkCall(Call):
    """Several calls that travel together; its outcome is a list of theirs."""

    __slots__ = ("length",)

    kind = ChunkTask

    def __init__(
        self, tasks: Tasks, context: Context, crosses: bool, function: Any, length: int
    ) -> None:
        super().__init__(tasks, context, crosses, function)
        self.length = length

    def values(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Iterator[tuple[int | str, Any]]:
        for one in args:
            yield from enumerate(one)

    def pack_all(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        return [
            tuple(self.pack(value, place) for place, value in enumerate(one)) for one in args
        ], kwargs

    def _open(self, outcome: Any, key: str) -> Any:
        return [Call._open(self, one, chunk_key(key, number)) for number, one in enumerate(outcome)]

    def _keys(self, *, parts: bool = True) -> list[str]:
        return [
            key
            for number in range(self.length)
            for key in self._keys_of_result(chunk_key(self.key, number), parts=parts)
        ]


class TimedChunkCall(ChunkCall):
    """Several calls that travel together, each as if it were alone.

    Its outcome is a :class:`TimedOutcome`. Not all of the calls need to have been made.
    """

    __slots__ = ("_unsent",)

    kind = TimedChunkTask
    late = True  # the map is announced; see proxyexec._chunks

    def __init__(
        self, tasks: Tasks, context: Context, crosses: bool, function: Any, length: int
    ) -> None:
        super().__init__(tasks, context, crosses, function, length)
        # By number, why calls could not be sent.
        self._unsent: dict[int, Exception] = {}

    def pack_all(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        chunk: list[tuple[Any, ...]] = []
        weight = 0
        quota = self.quota
        before = None if quota is None else quota.counted_here()
        for number, one in enumerate(args):
            try:
                # What may change is serialized now: in one message, it would be one object.
                travels = tuple(
                    self.pack(value, place, later=True) for place, value in enumerate(one)
                )
            except Exception as error:  # noqa: BLE001 - this call's, not the others'
                self._unsent[number] = error
                travels = (_UNSENT,)
            chunk.append(travels)
            weight += sum(map(weight_of, travels))
            # What is stored takes room, and there is to be some for the next item.
            if weight > HEAVIEST_BYTES or (quota is not None and quota.counted_here() != before):
                break  # the rest will be sent again
        return chunk, kwargs

    def _open(self, outcome: Any, key: str) -> Any:
        results = outcome.results
        self.length = len(results)  # the rest is sent again, in another call
        if self._unsent or not _PACKED.isdisjoint(map(type, results)):
            results = [self._open_if_any(one, key, number) for number, one in enumerate(results)]
        return TimedOutcome(results, outcome.seconds)

    def _open_if_any(self, result: Any, key: str, number: int) -> Any:
        if number in self._unsent:
            return Failed(self._unsent[number])
        key = chunk_key(key, number)
        if type(result) is Failed:
            # A worker that lives has removed the parts of what it could not deliver.
            self._context.store.evict_soon(self._keys_of_result(key, parts=False))
            return Failed(unpacked_error(result.error, self._context.errors(), self._called))
        try:
            return Call._open(self, result, key)
        except Exception as error:  # noqa: BLE001 - it is raised in its turn
            return Failed(error)


# Types of results that stand for something else, or for none.
_PACKED = frozenset({Inline, Stored, Failed})

# Travels in place of the arguments of a call that cannot be sent; cannot be unpacked.
_UNSENT = Inline(b"")
