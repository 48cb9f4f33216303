"""How it is timed: side by side, in turns, on fresh data, and checked.

All contenders are there from beginning to end, and take turns within each round, in an order
that changes from round to round: what disturbs the machine disturbs them alike. A sample is a
number of calls in a row for small data, one call for large. Its time runs from handing the call
over until the client has read one number from every page of the result.

Nothing here knows the contenders, or prints.
"""

from __future__ import annotations

import gc
import mmap
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from workloads import TINY_TASKS, Job, Together, Workload

if TYPE_CHECKING:
    from contenders import Contender

__all__ = ["LARGE", "Cell", "WrongResultError", "measure", "quartiles", "touch_free_memory"]

# From this size on, a sample is one call, and free memory is touched before it.
LARGE = 10_000_000

# From this size on, a call that is not timed comes before each one that is.
_STEADY_FROM = 1_000_000_000

# A virtual machine may have handed free pages back to its host, who takes its time to return
# them. Each call would pay for that or not by chance, so this many times the size is taken first.
_TOUCHED = 3

# Several tasks may have theirs in memory at once.
_TOUCHED_BY_SEVERAL = 7


class WrongResultError(Exception):
    """A contender returned something else than the function does."""

    def __init__(self, contender: str, job: Job) -> None:
        super().__init__(f"{contender} returned a wrong result for {job.function.__name__}()")


@dataclass
class Cell:
    """What one contender took for one workload at one size.

    Seconds are those of one call. ``release_seconds`` is how long the client was busy letting go
    of the result of a large call, which is not part of ``seconds``; in a sample of several calls
    it is, except for the last one's.
    """

    workload: str
    size: int
    contender: str
    calls_per_sample: int
    seconds: list[float] = field(default_factory=list)
    release_seconds: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile of the samples."""
        return quartiles(self.seconds)


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile."""
    if len(samples) == 1:
        return samples[0], samples[0]
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return first, third


def touch_free_memory(size: int, *, several: bool = False) -> None:
    """Have the machine's free memory there before data of a large size are moved.

    Args:
        size: bytes of the data; for small ones nothing is done.
        several: whether several tasks may have theirs in memory at once.
    """
    if size < LARGE:
        return
    touched = (_TOUCHED_BY_SEVERAL if several else _TOUCHED) * size
    with mmap.mmap(-1, touched) as memory:
        page = mmap.PAGESIZE
        memory[::page] = bytes(len(range(0, touched, page)))


def measure(
    contenders: Sequence[Contender],
    workload: Workload,
    size: int,
    rounds: int,
    step: Callable[[str], None],
    cells: list[Cell],
) -> None:
    """Time one workload at one size, with everyone in turn.

    What fails is noted in its cell, and does not take part in further rounds.

    Args:
        contenders: started and warm.
        workload: what is called.
        size: bytes of the data.
        rounds: samples of each contender.
        step: told of every sample.
        cells: where each contender's cell is added, before it is filled: an interrupted run
            still has what it had.
    """
    calls = _calls_per_sample(workload, size)
    turns = [
        (one, Cell(workload.name, size, one.name, calls))
        for one in contenders
        if one.suits is None or workload.name in one.suits
    ]
    cells.extend(cell for _, cell in turns)
    serials = count(1)
    order = random.Random(0)
    # A round more than is kept: the first shows libraries a kind of call they have not seen.
    for number in range(-1, rounds):
        order.shuffle(turns)
        for contender, cell in turns:
            step(contender.name)
            if cell.error is not None:
                continue
            try:
                seconds, release = _sample(contender, workload, size, calls, serials)
            except Exception as error:  # noqa: BLE001 - one that fails must not end the run
                cell.error = f"{type(error).__name__}: {error}"
                continue
            if number >= 0:
                cell.seconds.append(seconds)
                cell.release_seconds.append(release)


def _calls_per_sample(workload: Workload, size: int) -> int:
    if workload.together is not None:
        return TINY_TASKS
    if size >= LARGE:
        return 1
    return max(1, (50 if size < 1_000_000 else 10) // workload.tasks)


def _sample(
    contender: Contender, workload: Workload, size: int, calls: int, serials: Iterator[int]
) -> tuple[float, float]:
    if size >= _STEADY_FROM and workload.together is None:
        # Others took seconds since its last turn, in which libraries give memory back.
        _in_a_row(contender, workload, [workload.job(size, next(serials))])
    jobs = [workload.job(size, serial) for serial, _ in zip(serials, range(calls), strict=False)]
    touch_free_memory(size, several=workload.tasks > 1)
    gc.collect()
    if workload.together is None:
        elapsed, received, last = _in_a_row(contender, workload, jobs)
    else:
        elapsed, received, last = _together(contender, workload.together, jobs)
    if received != [job.expected_touch for job in jobs]:
        raise WrongResultError(contender.name, jobs[-1])
    if not jobs[-1].is_right(contender.plain(last[0])):
        raise WrongResultError(contender.name, jobs[-1])
    start = time.perf_counter()
    last.clear()
    return elapsed / calls, time.perf_counter() - start


def _in_a_row(
    contender: Contender, workload: Workload, jobs: Sequence[Job]
) -> tuple[float, list[float], list[Any]]:
    received = []
    result = None
    start = time.perf_counter()
    for job in jobs:
        result = workload.run(contender, job)
        received.append(workload.receive(result))
    return time.perf_counter() - start, received, [result]


def _together(
    contender: Contender, run: Together, jobs: Sequence[Job]
) -> tuple[float, list[float], list[Any]]:
    calls = [job.arguments for job in jobs]
    start = time.perf_counter()
    results = run(contender, jobs[0].function, calls)
    elapsed = time.perf_counter() - start
    return elapsed, list(map(float, results)), results[-1:]
