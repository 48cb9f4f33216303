"""A traced run as what can be replayed: tasks, what they wait for, and objects that move.

A trace says when things happened, not why. What is taken from it:

- A task that is given the result of another waits for that. Results whose futures were given, or
  that were stored, are known by their keys. One that the program fetched and sent again is known by
  its look: where all objects that calls of a function get in one place are as large as results of
  another function, and of the same type, they are these.
- A task that was submitted soon after another had ended was submitted because of that; if nothing
  was under way any more, the program waited for all of it.
- All other time between two tasks is what the program itself took.

This module knows no policies and no costs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxyexec._costs import Kind
    from proxyexec._trace import Trace, TraceMoved, TraceTask

__all__ = ["Item", "Run", "Step", "run_of", "workers_of"]

# A submission follows an end if it comes after so many seconds, or this share of the time since the
# submission before.
_SOON = 0.002
_SOON_SHARE = 0.25

# Smaller objects are alike too often to know a result by its size.
_LEAST_KNOWN = 10_000

# Pickled once more, an object may be so many bytes larger: what it is made from has another name.
_SLACK = 512

# Which share of the objects in one place have to be results.
_MOST = 0.9

# From these seconds a byte on, pickling is not only the copying of buffers.
_PICKLING = 5e-10

# Smaller ones take as long as they do for other reasons.
_LEAST_TIMED = 100_000

_BUFFERS = (
    *("bytes", "bytearray", "memoryview", "array.array"),
    *("numpy.ndarray", "torch.Tensor", "pandas.", "polars.", "pyarrow.", "scipy.sparse."),
)


@dataclass(frozen=True)
class Item:
    """An object that a task is given, or gives back."""

    what: str
    """``argument 0``, ``argument name``, ``function`` or ``result``."""
    type: str
    bytes: int
    """Serialized, without its parts."""
    kind: Kind
    path: str = "inline"
    """The one that it took in the run."""
    dump_s: float = 0.0
    """To pickle it, if it is made of many objects."""
    load_s: float | None = None
    """To make it again; ``None`` if that was not seen."""
    content: str = ""
    """Alike for the same content; empty if nobody knows."""
    function: str = ""
    """What the task calls that gets or returns it."""
    maker: int | None = None
    """The number of the task whose result it is."""
    is_read: bool = True
    """Whether who gets it looks at it."""
    parts: tuple[Item, ...] = ()
    is_mapped: bool = False
    """Whether it is the callable of a ``map``, which is made ready once for all of its tasks."""

    @property
    def whole_bytes(self) -> int:
        """Its size with all its parts."""
        return self.bytes + sum(one.bytes for one in self.parts)


@dataclass(frozen=True)
class Step:
    """A task."""

    function: str
    given: tuple[Item, ...]
    returned: tuple[Item, ...]
    run_s: float
    """In the function, fetching not included."""
    think_s: float
    """What the program took, since that was there for which it waited."""
    after: tuple[int, ...] = ()
    """The tasks that it waited for."""
    barrier: bool = False
    """Whether it waited for all before it."""
    detached: bool = False
    """Whether it went to the workers as soon as its arguments were there, whatever the program did.
    """
    observed_s: float = 0.0
    """What the client took for the trace only: pickling what is pickled once more to be sent."""
    worker_observed_s: float = 0.0
    """The same for the worker."""
    held_s: float | None = None
    """For how long its result stays once nobody needs it; ``None``: until the end of the run."""


@dataclass(frozen=True)
class Run:
    """A run that can be replayed."""

    steps: tuple[Step, ...]
    """In the order of submission."""
    workers: int
    delays: tuple[float, ...]
    """Seconds from the first submission until each worker was there."""
    tail_s: float
    """What the program took after all tasks."""
    seconds: float
    """That it took."""
    crosses: bool = True
    """Whether tasks leave the process."""
    dedupe: bool = True
    lazy: bool = True
    """Whether results are fetched when somebody looks at them, and not before."""
    cores: int | None = None
    """That client and workers share; ``None`` if they share none, or if that is not known."""
    ahead: tuple[int, ...] = ()
    """Bytes that had been given to the base executor when each worker began, if that is known."""


def run_of(trace: Trace) -> Run:
    """Return what can be replayed of a trace.

    Raises:
        ValueError: there is no task in it.
    """
    tasks = _tasks_of(trace)
    reader = _Reader(trace, tasks)
    steps, arrivals = reader.steps(), reader.arrivals()
    return Run(
        tuple(steps),
        reader.workers,
        tuple(delay for delay, _ in arrivals),
        reader.tail(),
        reader.seconds,
        trace.header.crosses,
        trace.header.dedupe,
        trace.header.lazy,
        reader.cores(),
        tuple(ahead for _, ahead in arrivals),
    )


def workers_of(trace: Trace) -> int:
    """Return how many workers a run had.

    Raises:
        ValueError: there is no task in the trace.
    """
    return _workers(trace.header.workers, _tasks_of(trace))


def _tasks_of(trace: Trace) -> list[TraceTask]:
    """Return the tasks that can be replayed, in the order of submission."""
    tasks = sorted((one for one in trace.tasks if not _is_left_out(one)), key=_submitted)
    if not tasks:
        raise ValueError("there is no task in this trace that a worker has run")
    return tasks


def _submitted(task: TraceTask) -> float:
    return task.submitted


def _is_left_out(task: TraceTask) -> bool:
    """Tell whether no worker has run a task: what it was given could not be had, or be sent."""
    return task.state == "cancelled" or (task.state == "failed" and task.ended <= task.submitted)


class _Reader:
    def __init__(self, trace: Trace, tasks: list[TraceTask]) -> None:
        self._header = trace.header
        self._tasks = tasks
        # Of those whose steps are made: what a task is given was made before.
        self._numbers: dict[str, int] = {}
        self._client_read = {one.key for one in trace.resolved}
        # When this process was busy fetching, and for how long.
        self._fetched = sorted((one.t or 0.0, one.get_s + one.load_s) for one in trace.resolved)
        self._evicted = {one.key: one.t for one in trace.evicted}
        last = max(
            [task.ended for task in tasks]
            + [one.t or 0.0 for one in trace.resolved]
            + [one.t for one in trace.evicted]
        )
        # What came when the trace was full is not in it, and what that took is not to be, either.
        end = 0.0 if trace.end is None else trace.end.t
        self.seconds = max(0.0, last, end if trace.full is None else trace.full)
        self._never = self._header.policy == "ProxyNever()"
        self._kinds = _kinds(one for task in tasks for one in task.moved)
        self._medians = _medians(tasks)
        self._mapped = _mapped(one for task in tasks for one in task.moved)
        self.workers = _workers(trace.header.workers, tasks)

    def steps(self) -> list[Step]:
        """Return the tasks."""
        steps = []
        for number, task in enumerate(self._tasks):
            steps.append(self._step(task))
            self._numbers[task.task] = number
        steps = _with_makers(_with_passed(steps), self._tasks, bool(self._header.crosses))
        return self._with_waiting(steps)

    def arrivals(self) -> list[tuple[float, int]]:
        """Return when workers were there, and how many bytes had been sent to them before."""
        first = self._tasks[0].submitted
        times = [task.submitted for task in self._tasks]
        sent = [0, *accumulate(map(_sent_inline, self._tasks))]
        found: dict[str, tuple[float, int]] = {}
        for task in sorted(self._tasks, key=lambda one: one.started or math.inf):
            if task.started is not None and task.worker and task.worker not in found:
                host = task.worker.rpartition(":")[0]
                late = task.started - max(task.submitted, first)
                # Clocks of other hosts differ by more than it takes to start.
                delay = max(late, 0.0) if host == self._header.host else 0.0
                found[task.worker] = delay, sent[bisect_right(times, task.started)]
        arrivals = sorted(found.values())[: self.workers]
        last = arrivals[-1] if arrivals else (0.0, 0)
        return arrivals + [last] * (self.workers - len(arrivals))

    def cores(self) -> int | None:
        """Return how many cores client and workers share; ``None`` where workers are elsewhere."""
        hosts = {task.worker.rpartition(":")[0] for task in self._tasks if task.worker}
        return self._header.cores if hosts <= {self._header.host} else None

    def tail(self) -> float:
        """Return what the program took after all tasks."""
        last = max(max(task.ended, task.submitted) for task in self._tasks)
        return max(0.0, self.seconds - last - self._fetching(last, self.seconds))

    def _fetching(self, since: float, until: float) -> float:
        """Return how long this process was fetching, between two times."""
        low = bisect_right(self._fetched, (since, math.inf))
        high = bisect_right(self._fetched, (until, math.inf))
        return sum(seconds for _, seconds in self._fetched[low:high])

    def _step(self, task: TraceTask) -> Step:
        read = {one.key: one.load_s for one in task.resolved}
        fetched = sum(one.get_s + one.load_s for one in task.resolved)
        wholes = _wholes(task.moved)
        called = task.function
        sent = [one for one in wholes if one[0].what != "result"]
        given = [self._item(called, *one, read) for one in sent]
        returned = [self._item(called, *one, None) for one in wholes if one[0].what == "result"]
        run, unpack = task.run_s, task.unpack_s
        if self._header.lazy:
            run = None if run is None else max(0.0, run - fetched)
        else:
            unpack = max(0.0, unpack - fetched)
        if run is None:
            run = self._medians.get(task.function, 0.0)
        held = self._evicted.get(task.task)
        given = _loaded(given, unpack)
        return Step(
            task.function,
            tuple(
                self._with_carried(item, whole.carries)
                for item, (whole, _) in zip(given, sent, strict=True)
            ),
            tuple(returned),
            run,
            0.0,
            observed_s=self._observed(task, returned=False),
            worker_observed_s=self._observed(task, returned=True),
            held_s=None if held is None else max(0.0, held - task.ended),
        )

    def _observed(self, task: TraceTask, *, returned: bool) -> float:
        """Return what pickling for the trace took, where calls pass untouched otherwise."""
        if not self._never:
            return 0.0
        return sum(one.serialize_s for one in task.moved if (one.what == "result") is returned)

    def _item(
        self,
        function: str,
        moved: TraceMoved,
        parts: Sequence[TraceMoved],
        read: dict[str, float] | None,
    ) -> Item:
        what = moved.what if moved.name is None else f"{moved.what} {moved.name}"
        kind = self._kinds[moved.type]
        stored = moved.path != "inline"
        load_s = None
        if read is None:  # a result, which the client reads
            is_read = not stored or moved.key in self._client_read
        else:
            is_read = not stored or not self._header.lazy or moved.key in read
            load_s = read.get(moved.key)
        maker = None if read is None else self._numbers.get(moved.key)
        return Item(
            what,
            moved.type,
            moved.bytes,
            kind,
            moved.path,
            moved.serialize_s if kind == "pickle" else 0.0,
            load_s if kind == "pickle" else 0.0,
            moved.content,
            function,
            maker if moved.path in ("reference", "inline") else None,
            is_read,
            tuple(self._item(function, one, (), read) for one in parts),
            moved.content in self._mapped,
        )

    def _with_carried(self, item: Item, carries: Iterable[tuple[str, int, str]]) -> Item:
        """Make parts of what a callable carries: policies may store these by themselves."""
        parts: list[Item] = []
        left = item.bytes
        for number, (name, size, content) in enumerate(carries):
            if size > left:  # sizes are estimates
                continue
            left -= size
            same = f"{item.content}/{number}" if item.content else ""
            part = replace(
                item,
                type=name,
                bytes=size,
                kind=self._kind_in(item, name),
                path="inline",
                content=content or same,
                maker=None,
                parts=(),
            )
            parts.append(part)
        return _shared_out(replace(item, bytes=left), parts) if parts else item

    def _kind_in(self, item: Item, name: str) -> Kind:
        """Return the kind of an object within another; of an unknown type, it has that one's."""
        known = self._kinds.get(name)
        return known or ("buffers" if name.startswith(_BUFFERS) else item.kind)

    def _with_waiting(self, steps: list[Step]) -> list[Step]:
        """Say what each waited for, and for how long the program thought."""
        tasks = self._tasks
        ends = sorted((task.ended, number) for number, task in enumerate(tasks))
        found: list[Step] = []
        # When the last one was submitted that the program submitted, and when all before had ended.
        before, all_ended = 0.0, 0.0
        for number, (task, step) in enumerate(zip(tasks, steps, strict=True)):
            own = sum(one.serialize_s + one.put_s for one in task.moved if one.what != "result")
            begin = max(before, task.submitted - own)
            makers = tuple(
                sorted({one.maker for one in step.given if one.maker is not None} - {number})
            )
            made = max((tasks[one].ended for one in makers), default=-math.inf)
            place = bisect_right(ends, (begin, len(tasks))) - 1
            while place >= 0 and ends[place][1] >= number:  # at the very same time
                place -= 1
            end, ended = ends[place] if place >= 0 else (-math.inf, -1)
            # Given to the workers by who delivered its arguments, or waiting for them there.
            detached = bool(makers) and task.submitted - own - made <= _SOON and made > before
            if detached:
                found.append(replace(step, after=makers, think_s=0.0, detached=True))
                all_ended = max(all_ended, task.ended)
                continue
            after, barrier, since = makers, False, max(before, made)
            if number and before < end:
                think = begin - end
                if all_ended <= begin:
                    barrier, since = True, max(since, end)
                elif think <= max(_SOON, _SOON_SHARE * (begin - before)):
                    after, since = tuple(sorted({*makers, ended})), max(since, end)
            think = max(0.0, begin - since - self._fetching(since, begin))
            found.append(replace(step, after=after, barrier=barrier, think_s=think))
            before = max(before, task.submitted)
            all_ended = max(all_ended, task.ended)
        return found


def _sent_inline(task: TraceTask) -> int:
    return sum(one.bytes for one in task.moved if one.what != "result" and one.path == "inline")


def _wholes(moved: Iterable[TraceMoved]) -> list[tuple[TraceMoved, list[TraceMoved]]]:
    """Return objects with their parts."""
    found: list[tuple[TraceMoved, list[TraceMoved]]] = []
    for one in moved:
        if one.part and found:
            found[-1][1].append(one)
        else:
            found.append((one, []))
    return found


def _loaded(items: list[Item], unpack: float) -> list[Item]:
    """Divide what unpacking took by size among what it was spent for."""
    loaded = [
        one.path == "inline" and one.kind == "pickle" and not _is_passed(one) for one in items
    ]
    total = sum(one.bytes for one, is_loaded in zip(items, loaded, strict=True) if is_loaded)
    if unpack <= 0 or not total:
        return items
    return [
        replace(one, load_s=unpack * one.bytes / total) if is_loaded else one
        for one, is_loaded in zip(items, loaded, strict=True)
    ]


def _shared_out(item: Item, parts: list[Item]) -> Item:
    """Give an object parts, and share out by size what pickling and unpickling them took."""
    pickled = [one for one in (item, *parts) if one.kind == "pickle"]
    total = sum(one.bytes for one in pickled)

    def share(one: Item) -> Item:
        part = one.bytes / total if one.kind == "pickle" and total else 0.0
        load_s = None if item.load_s is None else item.load_s * part
        return replace(one, dump_s=item.dump_s * part, load_s=load_s)

    return replace(share(item), parts=(*item.parts, *map(share, parts)))


def _is_passed(item: Item) -> bool:
    """Tell whether an object went from worker to worker; then, nobody knows as which argument."""
    return item.maker is not None and item.path == "inline" and item.what == "argument"


def _with_passed(steps: list[Step]) -> list[Step]:
    """Say of results that are passed on inline what is known of them where they were made."""
    passed: set[int] = set()
    found = []
    for step in steps:
        given = []
        for item in step.given:
            known = item
            if item.maker is not None and item.path == "inline":
                passed.add(item.maker)
                made = steps[item.maker].returned
                if _is_passed(item) and made:
                    known = replace(item, dump_s=made[0].dump_s, load_s=None)
            given.append(known)
        found.append(replace(step, given=tuple(given)))
    return [
        replace(one, returned=tuple(replace(item, is_read=False) for item in one.returned))
        if number in passed
        else one
        for number, one in enumerate(found)
    ]


def _mapped(moved: Iterable[TraceMoved]) -> set[str]:
    """Return the contents of callables that were serialized once for several tasks."""
    return {
        one.content
        for one in moved
        if one.what == "function" and one.content and one.exact and not one.serialize_s
    }


def _kinds(moved: Iterable[TraceMoved]) -> dict[str, Kind]:
    """Return the kind of the objects of each type: how long pickling takes tells."""
    rates: dict[str, float] = defaultdict(lambda: math.inf)
    for one in moved:
        timed = one.exact and one.bytes >= _LEAST_TIMED and one.serialize_s > 0
        rates[one.type] = min(rates[one.type], one.serialize_s / one.bytes if timed else math.inf)
    return {name: _kind(name, rate) for name, rate in rates.items()}


def _kind(name: str, rate: float) -> Kind:
    if name in ("bytes", "bytearray"):
        return "buffers"
    if rate < math.inf:
        return "buffers" if rate < _PICKLING else "pickle"
    return "buffers" if name.startswith(_BUFFERS) else "pickle"


def _medians(tasks: Iterable[TraceTask]) -> dict[str, float]:
    """Return what calls of each function took, in the middle."""
    found: dict[str, list[float]] = defaultdict(list)
    for task in tasks:
        if task.run_s is not None:
            found[task.function].append(task.run_s)
    return {name: sorted(seconds)[len(seconds) // 2] for name, seconds in found.items()}


def _workers(said: int | None, tasks: Iterable[TraceTask]) -> int:
    """Return how many tasks ran at a time, at most."""
    names, changes = set(), []
    for task in tasks:
        if task.started is not None and task.run_s is not None:
            names.add(task.worker)
            # Less than a clock can tell: who begins as another ends is not beside it.
            changes += [(task.started + 1e-4, 1), (task.started + task.run_s, -1)]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    seen = max(len(names), most, 1)
    return seen if said is None else max(1, said if said <= _MOST_SAID * seen else seen)


# Who says to run more tasks than that many times what was seen says so for lack of knowledge.
_MOST_SAID = 8


def _with_makers(steps: list[Step], tasks: list[TraceTask], crosses: bool) -> list[Step]:
    """Find what was sent to the client, and from there to other tasks."""
    if not crosses:
        return steps
    places: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for number, step in enumerate(steps):
        for place, item in enumerate(step.given):
            if item.bytes >= _LEAST_KNOWN and item.maker is None:
                places[step.function, item.what].append((number, place))
    makers: dict[tuple[int, int], int] = {}
    for (function, _), where in places.items():
        found = _results_for(where, function, steps, tasks)
        if found and len(found) >= _MOST * len(where):
            makers.update(found)
    passed = set(makers.values())
    changed = []
    for number, step in enumerate(steps):
        given = tuple(
            replace(item, maker=makers[number, place]) if (number, place) in makers else item
            for place, item in enumerate(step.given)
        )
        returned = step.returned
        if number in passed:  # only its tasks look at it, as far as can be told
            returned = tuple(replace(one, is_read=False) for one in returned)
        changed.append(replace(step, given=given, returned=returned))
    return changed


def _results_for(
    where: list[tuple[int, int]], function: str, steps: list[Step], tasks: list[TraceTask]
) -> dict[tuple[int, int], int]:
    """Return, for what calls of a function get in one place, the tasks whose results these are."""
    results: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
    for number, step in enumerate(steps):
        if step.function != function and len(step.returned) == 1:
            item = step.returned[0]
            if item.path == "inline":
                results[item.type].append((tasks[number].ended, number, item.bytes))
    for fitting in results.values():
        fitting.sort()
    found: dict[tuple[int, int], int] = {}
    known: dict[str, int] = {}
    for number, place in where:
        item = steps[number].given[place]
        maker = known.get(item.content)
        if maker is None:
            maker = _taken(results[item.type], item.bytes, tasks[number].submitted)
        if maker is not None and maker < number:
            found[number, place] = maker
            if item.content:
                known[item.content] = maker
    return found


def _taken(results: list[tuple[float, int, int]], size: int, before: float) -> int | None:
    """Take the first result that was there before a time, and is about as large."""
    for index, (ended, maker, made) in enumerate(results[:_LOOKED_AT]):
        if ended > before:
            return None
        if abs(made - size) <= _SLACK:
            del results[index]
            return maker
    return None


# So many results come into question for an object, at most.
_LOOKED_AT = 1000
