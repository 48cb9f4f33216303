"""Replays a run under another policy, in a world of known costs.

The world: the client submits tasks one after the other, and stores what is to be stored before it
goes on. The base executor moves one thing at a time, there and back, and the worker that gets it
waits for it. Workers fetch, run and store at the same time. What comes back to the client, it
fetches when it arrives, if it looks at it. Where all of them are on one machine, and together need
more cores than it has, all are slower alike.

Nothing is random: the same run, rule and prices come to the same.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from proxyexec._carried import FUNCTIONS
from proxyexec._context import LARGE_FUNCTION
from proxyexec._tune_result import TuneSpan, TuneTimeline
from proxyexec.errors import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxyexec._costs import Kind
    from proxyexec._tune_candidates import Rule
    from proxyexec._tune_result import SpanKind
    from proxyexec._tune_run import Item, Run

__all__ = ["Outcome", "WorldPrices", "replay"]

# Spans of a timeline, at most.
_SPANS_AT_MOST = 6000

# Types of callables that travel in full, whatever they carry.
_CALLABLES = frozenset(map(name_of, FUNCTIONS))

# How many cores it keeps busy to send something: who sends and who receives take turns, in part.
_SENDING = 1.6

# What all take from each other is waiting, in part.
_WAITING = 0.5


class WorldPrices(Protocol):
    """Seconds for each step of a task; :class:`proxyexec._tune_prices.Prices` has them."""

    @property
    def task(self) -> float:
        """What a task takes the base executor that moves nothing."""
        ...

    @property
    def latency(self) -> float:
        """For how long a task is on its way beside that, there and back."""
        ...

    def send(self, kind: Kind, size: int) -> float:
        """Return what sending an argument inline takes, the base executor and a worker."""
        ...

    def send_back(self, kind: Kind, size: int) -> float:
        """Return what sending a result inline takes."""
        ...

    def put(self, kind: Kind, size: int) -> float:
        """Return what storing an object takes who stores it."""
        ...

    def get(self, kind: Kind, size: int) -> float:
        """Return what fetching an object takes who fetches it."""
        ...

    def get_again(self, kind: Kind, size: int) -> float:
        """Return what fetching it takes who has fetched it before."""
        ...

    def beside_stored(self, kind: Kind, size: int) -> float:
        """Return what an argument that is stored and fetched takes the base executor."""
        ...

    def beside_found(self, kind: Kind, size: int) -> float:
        """Return the same for an argument that was stored before."""
        ...

    def beside_result(self, kind: Kind, size: int, *, read: bool) -> float:
        """Return the same for a result that is stored, and fetched by the client or not."""
        ...

    def loading(self, size: int, dump_s: float) -> float:
        """Return what making an object takes that took so long to pickle."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a replay comes to."""

    seconds: float
    inline_bytes: int
    stored_bytes: int
    found_bytes: int
    fetched_bytes: int
    peak_bytes: int
    stored_objects: int
    running_s: float
    """For how long functions ran, all together."""
    timeline: TuneTimeline | None


def replay(
    run: Run,
    rule: Rule,
    prices: WorldPrices,
    *,
    directly: bool = False,
    observed: bool = False,
    timeline: bool = False,
) -> Outcome:
    """Replay a run.

    Args:
        run: the run.
        rule: decides what is stored.
        prices: of the world.
        directly: whether results reach the tasks that get them past the client, if not stored.
        observed: whether the run is observed, as it was when it was traced.
        timeline: whether to note what happens when.
    """
    world = _World(run, rule, prices, directly, observed, timeline)
    world.go()
    return world.outcome()


@dataclass
class _Stored:
    """An object in the store."""

    bytes: int
    holders: int
    content: str = ""


@dataclass
class _Moving:
    """An object, as a task gets it."""

    item: Item
    stored: _Stored | None
    path: str


class _Part(NamedTuple):
    """What somebody is busy with for a while."""

    kind: SpanKind | None
    lane: str
    """Who, in the timeline."""
    seconds: float
    """That it takes where nobody else needs a core."""
    cores: float
    """That it keeps busy."""
    item: Item | None = None


# What somebody is busy with: how much work will have been done when it ends, in which order it was
# begun, for which task, what it is, when it began, what follows, and what to do after all.
_UnderWay: TypeAlias = "tuple[float, int, int, _Part, float, Iterator[_Part], Callable[[], None]]"


class _Lane:
    """Who does one thing at a time: the client, or the base executor."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, list[_Part], Callable[[], None]]] = deque()
        self.is_busy = False


class _World:
    def __init__(
        self,
        run: Run,
        rule: Rule,
        prices: WorldPrices,
        directly: bool,
        observed: bool,
        timeline: bool,
    ) -> None:
        self._run, self._rule, self._prices = run, rule, prices
        self._directly, self._observed = directly, observed
        self._spans: list[TuneSpan] | None = [] if timeline else None
        self._spans_left_out = 0
        self._number = 0
        self.now = 0.0
        # What happens at a time; and what ends once so much has been done.
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._under_way: list[_UnderWay] = []
        # How much each of those who are busy has done since the beginning: as much as time has
        # passed, or less where there are too few cores; and how many they would need.
        self._work = 0.0
        self._needed = 0.0
        self._cores = math.inf if run.cores is None else float(run.cores)
        self.running = 0.0
        """For how long functions ran, all together."""
        self._end = 0.0
        self._client, self._channel = _Lane(), _Lane()
        # Workers that are there and idle, the longest first; tasks that wait for one.
        self._workers = 0
        self._idle: deque[int] = deque()
        self._queue: deque[int] = deque()
        steps = run.steps
        self._done = [False] * len(steps)
        self._done_tasks = 0
        self._waiting = [len(set(step.after)) for step in steps]
        self._followers: list[list[int]] = [[] for _ in steps]
        consumers = [0] * len(steps)
        for number, step in enumerate(steps):
            for other in set(step.after):
                self._followers[other].append(number)
            for item in step.given:
                if item.maker is not None:
                    consumers[item.maker] += 1
        self._consumers = consumers
        self._next = 0
        # Whether the program is ready to go on to the next task.
        self._is_free = True
        self._is_going_on = False
        self._given: list[list[_Moving]] = [[] for _ in steps]
        self._results: dict[int, list[_Moving]] = {}
        self._contents: dict[str, _Stored] = {}
        self._sent: set[str] = set()
        # Who has fetched which callables.
        self._got: set[tuple[str, str]] = set()
        # By which worker each task was run.
        self._where: dict[int, int] = {}
        self._live = self._peak = 0
        self._lives: list[tuple[float, int]] = [(0.0, 0)]
        self._inline = self._stored = self._found = self._fetched = self._objects = 0
        self._kept: list[_Stored] = []

    def go(self) -> None:
        """Have everything happen."""
        self._at(0.0, self._go_on)
        while self._events or self._under_way:
            self._step()
        if not all(self._done):
            raise AssertionError("tasks wait for each other")
        self._end += self._run.tail_s
        self.now = self._end
        for one in self._kept:
            self._release(one)

    def outcome(self) -> Outcome:
        """Return what it has come to."""
        timeline = None
        if self._spans is not None:
            spans = sorted(self._spans, key=lambda one: (one.start, one.end))
            timeline = TuneTimeline(
                self._end, tuple(spans), tuple(self._lives), self._spans_left_out
            )
        return Outcome(
            self._end,
            self._inline,
            self._stored,
            self._found,
            self._fetched,
            self._peak,
            self._objects,
            self.running,
            timeline,
        )

    # Time.

    def _at(self, when: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, action))

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        if seconds > 0:
            self._at(self.now + seconds, action)
        else:
            action()

    def _step(self) -> None:
        """Have the next thing happen."""
        speed = min(1.0, self._cores / self._needed) if self._needed > 0 else 1.0
        when = math.inf
        if self._under_way:
            when = self.now + max(0.0, self._under_way[0][0] - self._work) / speed
        if self._events and self._events[0][0] <= when:
            then, _, action = heapq.heappop(self._events)
            self._work += (then - self.now) * speed
            self.now = then
        else:
            self._work, _, number, part, start, rest, action = heapq.heappop(self._under_way)
            self.now = when
            self._needed = self._needed - part.cores if self._under_way else 0.0
            self._note(part, start, number)
            self._go_through(number, rest, action)
            return
        action()

    def _do(
        self, number: int, parts: list[_Part], then: Callable[[], None], lane: _Lane | None = None
    ) -> None:
        """Have somebody do one thing after the other for a task, once its lane is free."""
        # What takes nothing is passed over, but for the last one if all do: what follows on none at
        # all is done at once by who asks for it, and long runs would go deeper and deeper.
        parts = [one for one in parts if one.seconds > 0] or parts[-1:]
        if lane is None:
            self._go_through(number, iter(parts), then)
            return
        lane.waiting.append((number, parts, then))
        if not lane.is_busy:
            self._begin(lane)

    def _begin(self, lane: _Lane) -> None:
        for then in self._begun(lane):
            then()

    def _begun(self, lane: _Lane) -> list[Callable[[], None]]:
        """Begin with what waits; return what follows on what takes nothing, which is over."""
        over: list[Callable[[], None]] = []
        while lane.waiting:
            number, parts, then = lane.waiting.popleft()
            if parts:
                lane.is_busy = True
                self._go_through(number, iter(parts), partial(self._free, lane, then))
                break
            self._end = max(self._end, self.now)
            over.append(then)
        return over

    def _free(self, lane: _Lane, then: Callable[[], None]) -> None:
        lane.is_busy = False
        for one in (then, *self._begun(lane)):
            one()

    def _go_through(self, number: int, parts: Iterator[_Part], then: Callable[[], None]) -> None:
        """Begin with the first of some things; the others follow when it has ended."""
        part = next(parts, None)
        if part is None:
            self._end = max(self._end, self.now)
            then()
            return
        self._number += 1
        self._needed += part.cores
        ends = self._work + part.seconds
        heapq.heappush(self._under_way, (ends, self._number, number, part, self.now, parts, then))

    # The program.

    def _go_on(self) -> None:
        """Submit what the program submits next, once it may."""
        steps = self._run.steps
        if self._is_going_on:
            return  # whoever does goes on with all of them
        self._is_going_on = True
        while self._next < len(steps) and steps[self._next].detached:
            # Whoever delivers its arguments submits it.
            number = self._next
            self._next += 1
            if not self._waiting[number]:
                self._submit(number)
        self._is_going_on = False
        if self._next >= len(steps) or not self._is_free:
            return
        step = steps[self._next]
        if self._waiting[self._next] or (step.barrier and self._done_tasks < self._next):
            return
        self._is_free = False
        number = self._next
        self._at(self.now + max(0.0, step.think_s), lambda: self._submit(number))

    def _submit(self, number: int) -> None:
        step = self._run.steps[number]
        parts: list[_Part] = []
        if self._observed:
            parts.append(_Part(None, "client", step.observed_s, 1.0))
        moving = self._given[number]
        for item in step.given:
            for one in self._routed(item):
                moving.append(one)
                parts += self._prepared(one)
        self._do(number, parts, lambda: self._submitted(number), self._client)

    def _submitted(self, number: int) -> None:
        if not self._run.steps[number].detached:
            self._is_free = True
            self._next += 1
        if number == 0:
            for delay in self._run.delays:
                self._at(self.now + delay, self._worker_there)
        self._after(self._prices.latency / 2, lambda: self._enter(number))
        self._go_on()

    def _enter(self, number: int) -> None:
        """Have a task wait for a worker."""
        self._queue.append(number)
        self._assign()

    def _routed(self, item: Item) -> list[_Moving]:
        """Decide how an argument and its parts travel."""
        if item.maker is not None and self._done[item.maker]:
            made = [one for one in self._results.get(item.maker, ()) if one.stored is not None]
            if made:
                self._hold(made[0].stored)
                return [_Moving(replace(item, parts=()), made[0].stored, "reference")]
        whole, parts = self._split(item)
        stays = (  # whatever the policy
            whole.what == "function" and whole.type in _CALLABLES and whole.bytes < LARGE_FUNCTION
        )
        first = _Moving(whole, None, "inline") if stays else self._way(whole)
        return [first, *map(self._way, parts)]

    def _split(self, item: Item) -> tuple[Item, list[Item]]:
        """Return an object without those parts that are stored by themselves, and these."""
        if not item.parts:
            return item, []
        wanted: list[Item] = []
        left = [item]
        for one in item.parts:
            (wanted if self._wants(one) else left).append(one)
        known = [one.load_s for one in left if one.load_s is not None]
        rest = replace(
            item,
            bytes=sum(one.bytes for one in left),
            dump_s=sum(one.dump_s for one in left),
            load_s=sum(known) if len(known) == len(left) else item.load_s,
            parts=(),
        )
        return rest, wanted

    def _way(self, item: Item) -> _Moving:
        if not self._wants(item):
            self._note_sent(item)
            return _Moving(item, None, "inline")
        found = None
        if item.content and (self._run.dedupe or item.is_mapped):
            found = self._contents.get(item.content)
        self._note_sent(item)
        if found is not None:
            self._hold(found)
            if item.is_mapped:
                return _Moving(item, found, "reference")
            self._found += item.bytes
            return _Moving(item, found, "found")
        stored = self._put(item)
        if item.content:
            self._contents[item.content] = stored
        return _Moving(item, stored, "store")

    def _wants(self, item: Item) -> bool:
        content = item.content
        return self._rule.wants(
            item, repeated=content in self._sent, found=content in self._contents
        )

    def _note_sent(self, item: Item) -> None:
        if item.content:
            self._sent.add(item.content)

    def _prepared(self, moving: _Moving) -> Iterator[_Part]:
        """Say what the client does to make an argument ready."""
        item = moving.item
        if moving.path in ("reference", "inline"):
            return
        yield _Part("serialize", "client", item.dump_s, 1.0, item)
        if moving.path == "store":
            put = self._prices.put(item.kind, item.bytes)
            yield _Part("put", "client", put, 1.0, item)

    # Workers.

    def _worker_there(self) -> None:
        self._workers += 1
        self._idle.append(self._workers)
        self._assign()

    def _assign(self) -> None:
        while self._idle and self._queue:
            number = self._queue.popleft()
            worker = self._nearest(number) if self._directly else self._idle[0]
            self._idle.remove(worker)
            self._receive(number, worker)

    def _nearest(self, number: int) -> int:
        """Return the idle worker that has most of what a task is given, if that is not stored."""
        has = dict.fromkeys(self._idle, 0)
        for one in self._given[number]:
            where = None if one.item.maker is None else self._where.get(one.item.maker)
            if one.stored is None and where in has:
                has[where] += one.item.bytes
        return max(has, key=has.__getitem__)

    def _receive(self, number: int, worker: int) -> None:
        """Have a worker get a task through the base executor."""
        lane = f"worker {worker}"
        self._where[number] = worker
        waits = self._prices.task
        for one in self._given[number]:
            if one.stored is not None and one.item.is_read and one.path != "reference":
                new = one.path == "store"
                beside = self._prices.beside_stored if new else self._prices.beside_found
                waits += beside(one.item.kind, one.item.bytes)
        parts = [_Part(None, lane, waits, _WAITING)]
        loads = 0.0
        for one in self._given[number]:
            if one.stored is not None:
                continue
            item = one.item
            if self._directly and item.maker is not None and self._where[item.maker] == worker:
                continue  # it is there, as it is
            self._inline += item.bytes
            parts.append(_Part("inline", lane, self._sending(item), _SENDING, item))
            loads += self._load_s(item)
        self._do(number, parts, lambda: self._fetch(number, worker, loads), self._channel)

    def _sending(self, item: Item) -> float:
        if self._directly and item.maker is not None:
            return self._prices.get(item.kind, item.bytes)
        return item.dump_s + self._prices.send(item.kind, item.bytes)

    def _load_s(self, item: Item) -> float:
        if item.load_s is not None:
            return item.load_s
        return self._prices.loading(item.whole_bytes, item.dump_s)

    def _fetch(self, number: int, worker: int, loads: float) -> None:
        """Have a worker make what it was given, fetch, and run."""
        step, lane = self._run.steps[number], f"worker {worker}"
        parts = [_Part(None, lane, loads, 1.0)]
        parts += [
            self._getting(one, lane)
            for one in self._given[number]
            if one.stored is not None and one.item.is_read
        ]
        parts.append(_Part("run", lane, step.run_s, 1.0))
        self._do(number, parts, lambda: self._return(number, worker))

    def _getting(self, moving: _Moving, lane: str) -> _Part:
        item = moving.item
        self._fetched += item.bytes
        known = item.is_mapped and (lane, item.content) in self._got
        if item.is_mapped:
            self._got.add((lane, item.content))
        get = self._prices.get_again if known else self._prices.get
        seconds = get(item.kind, item.bytes) + self._load_s(item)
        return _Part("get", lane, seconds, 1.0, item)

    def _return(self, number: int, worker: int) -> None:
        """Have a worker store the results, or send them back."""
        step, lane = self._run.steps[number], f"worker {worker}"
        parts: list[_Part] = []
        if self._observed:
            parts.append(_Part(None, lane, step.worker_observed_s, 1.0))
        results: list[_Moving] = []
        for item in step.returned:
            whole, rest = self._split(item)
            for one in (whole, *rest):
                if not self._wants(one):
                    results.append(_Moving(one, None, "inline"))
                    continue
                put = self._prices.put(one.kind, one.bytes)
                parts.append(_Part("serialize", lane, one.dump_s, 1.0, one))
                parts.append(_Part("put", lane, put, 1.0, one))
                results.append(_Moving(one, _Stored(one.bytes, 0), "store"))
        self._results[number] = results
        self._do(number, parts, lambda: self._stored_results(number, worker))

    def _stored_results(self, number: int, worker: int) -> None:
        lane = f"worker {worker}"
        parts: list[_Part] = []
        for one in self._results[number]:
            item = one.item
            if one.stored is not None:
                self._add(one.stored)
                one.stored.holders = 1 + self._consumers[number]
                beside = self._prices.beside_result(item.kind, item.bytes, read=item.is_read)
                parts.append(_Part(None, lane, beside, _WAITING))
                continue
            self._inline += item.bytes
            if self._directly and not item.is_read:
                continue
            move = item.dump_s + self._prices.send_back(item.kind, item.bytes)
            parts.append(_Part("inline", lane, move, _SENDING, item))
            parts.append(_Part(None, lane, self._load_s(item), 1.0))
        parts = [one for one in parts if one.seconds > 0]
        channel = self._channel if parts else None
        self._do(number, parts, lambda: self._leave(number, worker), channel)

    def _leave(self, number: int, worker: int) -> None:
        """Have a worker take the next task."""
        self._idle.append(worker)
        self._after(self._prices.latency / 2, lambda: self._arrive(number))
        self._assign()

    def _arrive(self, number: int) -> None:
        """Have the client know that a task has ended."""
        for one in self._given[number]:
            if one.stored is not None:
                self._release(one.stored)
        for item in self._run.steps[number].given:
            # Who was given it as it is holds nothing; who might have held it lets go.
            if item.maker is not None:
                for made in self._results.get(item.maker, ()):
                    if made.stored is not None:
                        self._release(made.stored)
        parts = [
            self._getting(one, "client")
            for one in self._results[number]
            if one.stored is not None and one.item.is_read
        ]
        self._do(number, parts, lambda: self._finish(number), self._client if parts else None)

    def _finish(self, number: int) -> None:
        self._done[number] = True
        self._done_tasks += 1
        self._end = max(self._end, self.now)
        held = self._run.steps[number].held_s
        for one in self._results[number]:
            if one.stored is None:
                continue
            if held is not None:
                self._release_at(self.now + held, one.stored)
            elif one.item.is_read and not self._run.lazy:
                self._release(one.stored)  # what was fetched takes its place
            else:
                self._kept.append(one.stored)
        for follower in self._followers[number]:
            self._waiting[follower] -= 1
            if (
                not self._waiting[follower]
                and self._run.steps[follower].detached
                and follower < self._next
            ):
                self._submit(follower)
        self._go_on()

    def _release_at(self, when: float, stored: _Stored) -> None:
        self._at(when, lambda: self._release(stored))

    # The store.

    def _put(self, item: Item) -> _Stored:
        stored = _Stored(item.bytes, 1, item.content)
        self._add(stored)
        return stored

    def _add(self, stored: _Stored) -> None:
        self._stored += stored.bytes
        self._objects += 1
        self._change(stored.bytes)

    def _hold(self, stored: _Stored | None) -> None:
        if stored is not None:
            stored.holders += 1

    def _release(self, stored: _Stored) -> None:
        stored.holders -= 1
        if stored.holders == 0:
            if self._contents.get(stored.content) is stored:
                del self._contents[stored.content]
            self._change(-stored.bytes)

    def _change(self, size: int) -> None:
        self._live += size
        self._peak = max(self._peak, self._live)
        if self._spans is not None:
            if self._lives[-1][0] == self.now:
                self._lives[-1] = (self.now, self._live)
            else:
                self._lives.append((self.now, self._live))

    # The timeline.

    def _note(self, part: _Part, start: float, number: int) -> None:
        if part.kind == "run":
            self.running += self.now - start
        if self._spans is None or part.kind is None or self.now <= start:
            return
        if len(self._spans) >= _SPANS_AT_MOST:
            self._spans_left_out += 1
            return
        item = part.item
        about = ("", "", 0) if item is None else (item.what, item.type, item.bytes)
        function = self._run.steps[number].function
        self._spans.append(
            TuneSpan(part.kind, part.lane, start, self.now, number, function, *about)
        )
