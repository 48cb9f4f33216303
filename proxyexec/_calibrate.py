"""Calibration: what both paths cost with one executor and one store, by moving objects.

The objects take the ways that those of programs take: calls are submitted to the executor itself,
once with a policy that stores everything and once with one that stores nothing. Rounds of all
sizes are repeated for as long as there is time, and the fastest of each counts: what disturbs a
measurement makes it longer.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import itertools
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash

from proxyexec._costs import KINDS, TASKS_EACH, WORKERS_AT_MOST, CostModel, Curve, Kind, Path, Side
from proxyexec._executor import StoreExecutor
from proxyexec._parts import PartRules
from proxyexec._proxy import extract, is_proxy
from proxyexec._task import blob_of
from proxyexec._tasks import Tasks
from proxyexec.policy import ProxyAlways, ProxyNever

__all__ = ["Calibration", "CalibrationError", "calibrate"]

SECONDS = 0.7
"""How long it measures, at most; workers that have to be started come before."""

# How long it waits for workers to start, and to have loaded what they need.
_PATIENCE = 10.0

# Kinds and sizes in bytes. Costs are straight enough in between.
_OBJECTS: tuple[tuple[Kind, int], ...] = (
    ("buffers", 4_000),
    ("buffers", 4_000_000),
    ("buffers", 1_000_000),
    ("pickle", 4_000),
    ("pickle", 1_000_000),
    ("buffers", 250_000),
    ("pickle", 150_000),
    ("buffers", 60_000),
)

# The first of these tell most, and are measured so often before the others. Slow executors get no
# further.
_FIRST_OBJECTS = 3
_FIRST_ROUNDS = 2

# Of these, what is shared by tasks.
_SHARED = frozenset(_OBJECTS[:3])
_SHARED_FROM = 4_000_000

# How many times as long as it may measure it waits for tasks, at most.
_AT_LEAST = 4

# On a machine that has nothing else to do, times are closer together.
_STEADY = 1.5

# What was measured less often counts only where there is nothing better.
_SAMPLES = 2

# How many times as many there are of those that move nothing.
_MANY = 8

# Bytes of what workers are made ready with.
_WARM_UP = 2_000

# Bytes of each of the objects that a pickled one is made of. Larger ones than most: that these
# have to be pickled is counted apart, as it differs.
_PIECE = 500

# Items of a dictionary that is pickled to learn how long that takes.
_ITEMS = 2000
_PICKLINGS = 5


class CalibrationError(Exception):
    """There was no measuring: workers did not answer in time, or objects did not arrive."""


class Calibration(NamedTuple):
    """What was measured."""

    model: CostModel
    is_steady: bool
    """Whether times that should have been alike were, and all was measured that is needed."""


class Block:
    """Memory that is sent as the memory of arrays is: out of band.

    Args:
        memory: its bytes.
    """

    __slots__ = ("memory",)

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Block, (pickle.PickleBuffer(self.memory),)


def made(kind: Kind, size: int, *, arrays: bool) -> Any:
    """Return an object of about ``size`` bytes.

    Args:
        kind: of it.
        size: in bytes.
        arrays: whether memory is to be that of an array: executors may know these.
    """
    if kind == "pickle":
        # Each is one of its own: what pickle has written before, it refers to.
        return [b"", *(bytes(_PIECE) for _ in range(size // _PIECE))]
    memory = bytearray(b"\x01") * size
    if not arrays:
        return Block(memory)
    numpy: Any = importlib.import_module("numpy")
    return numpy.frombuffer(memory, "u1")


def renew(obj: Any, number: int) -> None:
    """Change an object, to another one for each number."""
    mark = number.to_bytes(8, "little")
    if type(obj) is list:
        obj[0] = mark
    else:
        memoryview(obj.memory if type(obj) is Block else obj)[:8] = mark


def read(obj: Any) -> None:
    """Look at all of an object, as whoever wanted it does."""
    obj = extract(obj) if is_proxy(obj) else obj
    if type(obj) is list:
        len(obj)
    else:
        xxhash.xxh3_64_intdigest(obj.memory if type(obj) is Block else obj)


@functools.lru_cache(maxsize=1)
def _kept(kind: Kind, size: int, arrays: bool) -> Any:
    return made(kind, size, arrays=arrays)


def give(kind: Kind, size: int, number: int, arrays: bool) -> Any:
    """Return an object, in a worker. That it is made is not to count, as far as it can be."""
    obj = _kept(kind, size, arrays)
    renew(obj, number)
    return obj


def forget() -> None:
    """Let go of what is kept, in a worker."""
    _kept.cache_clear()


def nothing() -> None:
    """Do nothing, in a worker."""


@dataclass(frozen=True)
class _Way:
    """What is timed: objects of one kind and size, on one side, on one path."""

    side: Side
    kind: Kind
    path: Path
    size: int


# How often what is stored is fetched; the last time counts.
_FETCHES: dict[Path, int] = {"get": 1, "again": 2}

_TASK = _Way("argument", "buffers", "task", 0)


def calibrate(
    executor: StoreExecutor,
    *,
    seconds: float = SECONDS,
    patience: float = _PATIENCE,
    largest: int = 0,
) -> Calibration:
    """Measure what moving objects costs with an executor and its store.

    Its workers are started for this, if they are not there yet. Best done while they have nothing
    else to do.

    Args:
        executor: whose tasks leave this process.
        seconds: to take, at most.
        patience: seconds to wait for workers to be there, before.
        largest: bytes of what is measured beside the usual sizes, if it is larger than these.

    Raises:
        CalibrationError: workers did not answer in time, or objects did not arrive.
    """
    if not hasattr(executor, "_base"):  # it cannot be used with another policy beside its own
        raise CalibrationError("the executor is a pool itself")
    bench = _Bench(executor, largest)
    samples: dict[_Way, list[float]] = {}
    live = executor.store.live
    try:
        with _translated(), contextlib.nullcontext() if live is None else live.aside():
            bench.warm_up(time.perf_counter() + patience)
            end = time.perf_counter() + seconds
            for number, way in enumerate(bench.rounds()):
                left = end - time.perf_counter()
                known = samples.setdefault(way, [])
                # One that takes longer than there is time for would be the last; but a round of
                # those that tell most there has to be.
                enough = number >= bench.first_round
                if enough and left <= (bench.tasks * min(known) if known else 0):
                    break
                known.append(bench.timed(way, end + _AT_LEAST * seconds))
    finally:
        bench.end()
    return Calibration(
        CostModel({**_curves(samples), **bench.pickling()}), _are_steady(samples.values())
    )


def _are_steady(samples: Iterable[list[float]]) -> bool:
    """Tell whether the two shortest times of most ways were about the same."""
    ratios = []
    for taken in samples:
        if len(taken) >= _FIRST_ROUNDS:
            least, next_to_it = sorted(taken)[:2]
            ratios.append(next_to_it / least)
    return bool(ratios) and statistics.median(ratios) < _STEADY


def _curves(samples: dict[_Way, list[float]]) -> dict[tuple[Side, Kind, Path], Curve]:
    """Return what was measured, by side, kind and path."""
    found: dict[tuple[Side, Kind, Path], dict[int, float]] = {}
    for enough in (True, False):
        for way, taken in samples.items():
            points = found.setdefault((way.side, way.kind, way.path), {})
            # What is larger than all that was measured well is not in proportion to it.
            better = len(points) > 1 and way.size < max(points)
            if len(taken) >= _SAMPLES if enough else taken and not better:
                points.setdefault(way.size, _taken(way, taken))
    return {
        key: Curve.through(points)
        for key, points in found.items()
        if len(points) > 1 or (points and key[-1] == "task")
    }


def _taken(way: _Way, samples: list[float]) -> float:
    """Return what counts of what was measured.

    What disturbs a measurement makes it longer, so the shortest counts. But of storing the next
    one: where times vary, it has to be cheaper by more than that to be preferred.
    """
    place = 1 if way.path in ("store", "found") and len(samples) > 2 else 0
    return sorted(samples)[place]


class _Bench:
    """Times batches of tasks."""

    def __init__(self, executor: StoreExecutor, largest: int) -> None:
        self._all: tuple[tuple[Kind, int], ...] = _OBJECTS
        if largest > max(size for _, size in _OBJECTS):
            first, others = _OBJECTS[:_FIRST_OBJECTS], _OBJECTS[_FIRST_OBJECTS:]
            self._all = (*first, ("buffers", largest), *others)
        self.tasks = TASKS_EACH * max(1, min(executor._workers, WORKERS_AT_MOST))
        self.first_round = 1 + sum(1 for _ in _ways(_OBJECTS[:_FIRST_OBJECTS]))
        """So many of them come before any is repeated."""
        self._number = 0
        self._store = executor.store
        # By kind and size.
        self._objects: dict[tuple[Kind, int], Any] = {}
        # If the program has none, neither have its workers to load what they are made by.
        self._arrays = "numpy" in sys.modules
        # Those of the executor are counted, and observed.
        self._counted = Tasks(
            executor.store,
            close_store=False,
            ownership=True,
            dedupe=True,
            gathers=False,
            cancels_before_start=executor._tasks.cancels_before_start,
        )
        self._submits: dict[Path, Callable[..., Any]] = {
            "inline": self._with_policy(executor, ProxyNever()),
            "store": self._with_policy(executor, ProxyAlways()),
        }
        self._pending: list[Any] = []

    def _with_policy(self, executor: StoreExecutor, policy: Any) -> Callable[..., Any]:
        """Return what submits calls to an executor under another policy, and writes none down."""
        other = copy.copy(executor)
        other._context = executor._context._replace(policy=policy, rules=PartRules(policy))
        other._blob = blob_of(other._context)
        other._tasks, other._measures = self._counted, self._counted.measures
        other._never = False
        other._group = other._learner = None
        # Not what a subclass has made of it.
        return functools.partial(StoreExecutor.submit, other)

    def warm_up(self, deadline: float) -> None:
        """Have all workers there, with what they need."""
        try:
            self._warm_up(deadline)
        except ImportError:
            self._arrays = False
            self._warm_up(deadline)

    def _warm_up(self, deadline: float) -> None:
        for submit in self._submits.values():
            self._wait([submit(nothing) for _ in range(self.tasks)], deadline)
            for kind in KINDS:
                obj = made(kind, _WARM_UP, arrays=self._arrays)
                self._wait([submit(read, obj) for _ in range(self.tasks)], deadline)
                facts = kind, _WARM_UP, 0, self._arrays
                self._wait([submit(give, *facts) for _ in range(self.tasks)], deadline)

    def rounds(self) -> Iterator[_Way]:
        """What is timed, over and over; what is compared comes in a row."""
        # A task by itself, the objects that tell most, and the largest one.
        first = [*_ways(_OBJECTS[:_FIRST_OBJECTS]), _TASK]
        largest = list(_ways(self._all[_FIRST_OBJECTS : -len(_OBJECTS) + _FIRST_OBJECTS]))
        yield from itertools.chain((*first, *largest) * _FIRST_ROUNDS)
        while True:
            yield _TASK
            yield from _ways(self._all)

    def timed(self, way: _Way, deadline: float) -> float:
        """Return the seconds that a task of a batch took."""
        if way is _TASK:
            return self._of_many(deadline)
        obj = self._objects.get((way.kind, way.size))
        if obj is None:
            obj = made(way.kind, way.size, arrays=self._arrays)
            self._objects[way.kind, way.size] = obj
        self._renew(obj)
        if way.path in ("put", "get", "again"):
            return self._by_itself(way.path, obj)
        run = self._arguments if way.side == "argument" else self._results
        # What is found is held by a task, as it is in programs.
        holding = [self._submits["store"](read, obj)] if way.path == "found" else []
        start = time.perf_counter()
        run(way, obj, deadline)
        taken = time.perf_counter() - start
        self._wait(holding, deadline)
        return taken / self.tasks

    def _of_many(self, deadline: float) -> float:
        """Return the seconds that a task takes that moves nothing, as one of many."""
        submit, many = self._submits["inline"], _MANY * self.tasks
        start = time.perf_counter()
        self._wait([submit(nothing) for _ in range(many)], deadline)
        return (time.perf_counter() - start) / many

    def _by_itself(self, path: Path, obj: Any) -> float:
        """Return the seconds that this process alone takes."""
        store = self._store
        start = time.perf_counter()
        reference = store.put(obj)
        for _ in range(_FETCHES.get(path, 0)):
            start = time.perf_counter()
            read(store.get(reference))
        taken = time.perf_counter() - start
        store.evict(reference)
        return taken

    def pickling(self) -> dict[tuple[Side, Kind, Path], Curve]:
        """Return what it takes to pickle objects, and to unpickle them, if they are many."""
        # Counts, records and settings are made of such.
        words = {f"word {number}": number for number in range(_ITEMS)}
        dumping, loading = [], []
        for _ in range(_PICKLINGS):
            start = time.perf_counter()
            pickled = pickle.dumps(words, protocol=5)
            dumping.append(time.perf_counter() - start)
            start = time.perf_counter()
            pickle.loads(pickled)
            loading.append(time.perf_counter() - start)
        size = len(pickle.dumps(words, protocol=5))
        return {
            ("argument", "pickle", "dump"): Curve(((0, 0.0), (size, min(dumping)))),
            ("argument", "pickle", "load"): Curve(((0, 0.0), (size, min(loading)))),
        }

    def end(self) -> None:
        """Cancel what nobody waits for any more, and have workers let go of what they kept."""
        for future in self._pending:
            future.cancel()
        with contextlib.suppress(Exception):  # the executor's user will see
            for _ in range(self.tasks):
                self._submits["inline"](forget)
        self._counted.no_more()

    def _arguments(self, way: _Way, obj: Any, deadline: float) -> None:
        submit = self._submits["inline" if way.path == "inline" else "store"]
        tasks = []
        for _ in range(self.tasks):
            if way.path != "found":  # or it would be
                self._renew(obj)
            tasks.append(submit(read, obj))
        self._wait(tasks, deadline)

    def _results(self, way: _Way, obj: Any, deadline: float) -> None:
        submit = self._submits[way.path]
        tasks = []
        for _ in range(self.tasks):
            self._number += 1
            tasks.append(submit(give, way.kind, way.size, self._number, self._arrays))
        self._wait(tasks, deadline)

    def _wait(self, futures: list[Any], deadline: float) -> None:
        self._pending = futures
        for future in futures:
            read_if_any(future.result(max(deadline - time.perf_counter(), 0)))
        self._pending = []

    def _renew(self, obj: Any) -> None:
        """Change the content: both paths have copied it by now."""
        self._number += 1
        renew(obj, self._number)


def _ways(objects: Iterable[tuple[Kind, int]]) -> Iterator[_Way]:
    for kind, size in objects:
        for path in ("inline", "store"):
            yield _Way("argument", kind, path, size)
            yield _Way("result", kind, path, size)
        if (kind, size) in _SHARED or size > _SHARED_FROM:
            yield _Way("argument", kind, "found", size)
            yield _Way("argument", kind, "again", size)
        yield _Way("argument", kind, "put", size)
        yield _Way("argument", kind, "get", size)


def read_if_any(result: Any) -> None:
    """Look at all of a result, if there is one."""
    if result is not None:
        read(result)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (TimeoutError, FutureTimeoutError) as error:
        raise CalibrationError("workers did not answer in time") from error
    except Exception as error:
        raise CalibrationError(f"objects did not arrive: {error}") from error
