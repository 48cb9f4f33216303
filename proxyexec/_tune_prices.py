"""What each step of a task takes, as a cost model has it: who is busy, and for how long.

A cost model says what a task takes among others that do nothing else, and what storing and fetching
take by themselves. The latter is what the client and the workers are busy with here. The rest of
the former is what all of them take from each other: it is added where one thing comes after the
other, so that replaying what was measured takes as long as that did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyexec._costs import KINDS, TASKS_EACH, WORKERS_AT_MOST, CostModel, Kind, Path, Side
from proxyexec._limits import Costs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Prices"]


class Prices:
    """Seconds for each step of a task.

    Args:
        model: what was measured, with an executor and a store.
        workers: those it was measured with.
        inline: how many times as long as that moving inline takes.
        stored: how many times as long storing and fetching takes.

    Raises:
        ValueError: too little was measured.
    """

    def __init__(
        self, model: CostModel, workers: int, *, inline: float = 1.0, stored: float = 1.0
    ) -> None:
        self.model = model
        self._inline, self._stored = inline, stored
        self._costs: dict[Kind, Costs] = {kind: Costs(model, kind) for kind in KINDS}
        self._workers = max(1, min(workers, WORKERS_AT_MOST))
        self._tasks = TASKS_EACH * self._workers
        # What one takes that is one of a few, and moves nothing.
        self._few = min(one.argument_inline(0) for one in self._costs.values())
        many = model.curves.get(("argument", "buffers", "task"))
        self.task = self._few if many is None else min(self._few, many.seconds(0))
        """What a task takes that moves nothing; the base executor is busy with it."""
        self.latency = self._tasks * (self._few - self.task)
        """For how long it is on its way beside that, there and back."""
        self._known: dict[tuple[str, Kind, int], float] = {}

    def send(self, kind: Kind, size: int) -> float:
        """Return what sending an argument inline takes, the base executor and a worker."""
        return self._inline * self._once("send", kind, size, self._send)

    def send_back(self, kind: Kind, size: int) -> float:
        """Return what sending a result inline takes."""
        return self._inline * self._once("back", kind, size, self._send_back)

    def put(self, kind: Kind, size: int) -> float:
        """Return what storing an object takes who stores it."""
        return self._stored * self._once("put", kind, size, lambda *one: self._curve("put", *one))

    def get(self, kind: Kind, size: int) -> float:
        """Return what fetching an object takes who fetches it."""
        return self._stored * self._once("get", kind, size, lambda *one: self._curve("get", *one))

    def get_again(self, kind: Kind, size: int) -> float:
        """Return what fetching an object takes who has fetched it before."""
        again = self._stored * self._once("again", kind, size, self._again)
        return min(self.get(kind, size), again)

    def beside_stored(self, kind: Kind, size: int) -> float:
        """Return what an argument that is stored and fetched takes beside that."""
        return self._stored * self._once("stored", kind, size, self._beside_stored)

    def beside_found(self, kind: Kind, size: int) -> float:
        """Return what an argument that was stored before takes beside being fetched."""
        return self._stored * self._once("found", kind, size, self._beside_found)

    def beside_result(self, kind: Kind, size: int, *, read: bool) -> float:
        """Return what a result that is stored takes beside that.

        Args:
            kind: of the object.
            size: in bytes.
            read: whether the client fetches it; what that takes is not in it.
        """
        beside = self._stored * self._once("result", kind, size, self._beside_result)
        return beside if read else max(0.0, beside - self.get(kind, size))

    def loading(self, size: int, dump_s: float) -> float:
        """Return what making an object takes that took so long to pickle."""
        dump, load = (
            self.model.curves.get(("argument", "pickle", path)) for path in ("dump", "load")
        )
        if dump is None or load is None or dump.seconds(size) <= 0:
            return dump_s
        return dump_s * load.seconds(size) / dump.seconds(size)

    def _once(self, what: str, kind: Kind, size: int, of: Callable[[Kind, int], float]) -> float:
        key = what, kind, size
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = max(0.0, of(kind, size))
        return known

    def _send(self, kind: Kind, size: int) -> float:
        of: dict[Kind, Callable[[int], float]]
        of = {one: costs.argument_inline for one, costs in self._costs.items()}
        return self._beyond("argument", kind, size, of) - self._few

    def _send_back(self, kind: Kind, size: int) -> float:
        of: dict[Kind, Callable[[int], float]]
        of = {one: costs.result_inline for one, costs in self._costs.items()}
        return self._beyond("result", kind, size, of) - self._few

    def _beyond(
        self, side: Side, kind: Kind, size: int, of: Mapping[Kind, Callable[[int], float]]
    ) -> float:
        """Return what moving inline takes, by the kind that was measured with sizes like that.

        Large messages are not in proportion to small ones; what is in them makes no difference.
        """
        largest: dict[Kind, int] = {
            one: curve.points[-1][0]
            for one in KINDS
            if (curve := self.model.curves.get((side, one, "inline"))) is not None
        }
        known = largest.get(kind, 0)
        other = max(largest, key=largest.__getitem__)
        if size <= known or largest[other] <= known:
            return of[kind](size)
        return of[kind](known) + of[other](size) - of[other](known)

    def _beside_stored(self, kind: Kind, size: int) -> float:
        each = self._costs[kind].argument_stored(size)
        return self._beside(each, self._curve("put", kind, size), self._curve("get", kind, size))

    def _beside_found(self, kind: Kind, size: int) -> float:
        return self._beside(
            self._costs[kind].argument_found(size), 0.0, self._curve("get", kind, size)
        )

    def _beside_result(self, kind: Kind, size: int) -> float:
        each = self._costs[kind].result_stored(size)
        return self._beside(each, self._curve("get", kind, size), self._curve("put", kind, size))

    def _beside(self, each: float, client: float, worker: float) -> float:
        """Return what is left of what a task of a batch took.

        Args:
            each: that.
            client: of it, what the client is busy with.
            worker: what a worker is busy with, while others are, too.
        """
        tasks = self._tasks
        # Either all wait for the base executor, but for the first and the last; or for workers.
        by_executor = each - self._few - (client + worker) / tasks
        by_workers = (tasks * each - client) * self._workers / tasks - self._few - worker
        return min(by_executor, by_workers)

    def _again(self, kind: Kind, size: int) -> float:
        known = any(("argument", one, "again") in self.model.curves for one in KINDS)
        return self._curve("again" if known else "get", kind, size)

    def _curve(self, path: Path, kind: Kind, size: int) -> float:
        for one in (kind, *KINDS):
            curve = self.model.curves.get(("argument", one, path))
            if curve is not None:
                return curve.seconds(size)
        raise AssertionError("Costs has looked at these")
