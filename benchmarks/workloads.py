"""What is timed: functions that workers run, the data for them, and what they must come to.

Data are float64 arrays of whole numbers, so that sums are exact and results can be compared bit
for bit. Functions live here rather than in the program, so that every contender finds them by
name; they take what is given, be it read-only, mapped or a proxy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from contenders import Contender

__all__ = ["TINY_TASKS", "WORKLOADS", "Job", "Together", "Workload", "pause", "touch"]

# What the operating system moves at a time, in bytes, and one float64 in each.
_PAGE_BYTES = 4096
_PAGE = _PAGE_BYTES // 8

# How many tasks make one sample of the workloads "tiny" and "tiny_map".
TINY_TASKS = 5000

# How many tasks share an array.
_SHARERS = 64

# Bytes of what else a task gets that shares a model.
_BATCH = 1000

# How many tasks stand in a row, each with the former's result.
_STAGES = 5

# How many arrays an argument is made of.
_DICT_ARRAYS = 10
_LIST_ARRAYS = 100

Array = NDArray[np.float64]


def touch(array: Array) -> float:
    """Read one number from every page of an array; return their sum."""
    return float(array[::_PAGE].sum())


def make(length: int, value: float) -> Array:
    """Return a new array, every page of it written."""
    return np.full(length, value)


def add_one(array: Array) -> Array:
    """Read all of an array, and return a new one of the same size."""
    return array + 1


def add(one: int, other: int) -> int:
    """Do next to nothing."""
    return one + other


def score(model: Array, batch: Array) -> float:
    """Read one number from every page of a model, and all of a batch."""
    return touch(model) + float(batch.sum())


def touch_values(arrays: Mapping[str, Array]) -> float:
    """Read one number from every page of all arrays; return their sum."""
    return touch_all(arrays.values())


def touch_all(arrays: Iterable[Array]) -> float:
    """Read one number from every page of all arrays; return their sum."""
    return sum(touch(array) for array in arrays)


def touch_frame(frame: Any) -> float:
    """Read one value from every page of all columns; return their sum."""
    columns = (frame[name].to_numpy() for name in frame)
    return sum(float(one[:: _PAGE_BYTES // one.itemsize].sum()) for one in columns)


def pause(seconds: float, modules: Sequence[str] = ()) -> int:
    """Keep a worker busy, so that the next task starts another; return the worker's id.

    Args:
        seconds: how long.
        modules: imported before, so that no call that is timed has to.
    """
    for module in modules:
        import_module(module)
    time.sleep(seconds)
    return os.getpid()


@dataclass
class Job:
    """One call: its function and arguments, what its pages must sum up to, and all of it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    expected_touch: float
    expected: Callable[[], Any] = field(repr=False)

    def is_right(self, result: Any) -> bool:
        """Tell whether a result is the expected one, in type, shape and every element."""
        expected = self.expected()
        if not isinstance(expected, np.ndarray):
            return type(result) is type(expected) and result == expected
        return (
            isinstance(result, np.ndarray)
            and result.dtype == expected.dtype
            and np.array_equal(result, expected)
        )


def _call(contender: Contender, job: Job) -> Any:
    return contender.call(job.function, *job.arguments)


def _broadcast(contender: Contender, job: Job) -> Any:
    return contender.broadcast(job.function, *job.arguments, tasks=_SHARERS)


def _map_partial(contender: Contender, job: Job) -> Any:
    return contender.map_partial(job.function, *job.arguments)


def _chain(contender: Contender, job: Job) -> Any:
    return contender.chain(job.function, *job.arguments, stages=_STAGES)


def _submit_all(
    contender: Contender, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> list[Any]:
    return contender.call_many(function, calls)


def _map_all(
    contender: Contender, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> list[Any]:
    return contender.map_many(function, calls)


# Has a contender make many calls of one function; returns their results.
Together = Callable[["Contender", Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]


@dataclass(frozen=True)
class Workload:
    """A kind of call.

    Args:
        name: on the command line and in files.
        title: in tables and plots.
        job: makes a call of a size in bytes, different for each serial number.
        receive: what the client does with a result, within the time; returns the sum to check.
        run: has a contender do a job.
        tasks: how many tasks make one call.
        requires: what has to be importable, for the client and for workers.
        together: for tiny tasks, whose throughput counts: makes all calls of a sample at once,
            in place of ``run``. They have no size.
    """

    name: str
    title: str
    job: Callable[[int, int], Job]
    receive: Callable[[Any], float]
    run: Callable[[Contender, Job], Any] = _call
    tasks: int = 1
    requires: str | None = None
    together: Together | None = None

    def is_possible(self) -> bool:
        """Tell whether what it requires is installed."""
        return self.requires is None or find_spec(self.requires) is not None


def _data(size: int, serial: int) -> Array:
    # No two calls get the same bytes: nothing that has been seen before can be found again.
    return np.arange(serial, serial + max(1, size // 8), dtype=np.float64)


def _argument(size: int, serial: int) -> Job:
    array = _data(size, serial)
    total = touch(array)
    return Job(touch, (array,), total, lambda: total)


def _result(size: int, serial: int) -> Job:
    length = max(1, size // 8)
    pages = len(range(0, length, _PAGE))
    return Job(
        make, (length, float(serial)), float(serial) * pages, lambda: make(length, float(serial))
    )


def _round_trip(size: int, serial: int) -> Job:
    array = _data(size, serial)
    pages = len(range(0, len(array), _PAGE))
    return Job(add_one, (array,), touch(array) + pages, lambda: add_one(array))


def _tiny(_size: int, serial: int) -> Job:
    return Job(add, (serial, 1), float(serial + 1), lambda: serial + 1)


def _one_for_all(size: int, serial: int) -> Job:
    array = _data(size, serial)
    total = touch(array)
    return Job(touch, (array,), total * _SHARERS, lambda: [total] * _SHARERS)


def _model_and_batches(size: int, serial: int) -> Job:
    model = _data(size, serial)
    batches = [_data(_BATCH, serial + number) for number in range(_SHARERS)]
    scores = [score(model, batch) for batch in batches]
    return Job(score, (model, batches), sum(scores), lambda: scores)


def _dict(size: int, serial: int) -> Job:
    arrays = dict(zip("abcdefghij", _arrays(_DICT_ARRAYS, size, serial), strict=True))
    total = touch_values(arrays)
    return Job(touch_values, (arrays,), total, lambda: total)


def _list(size: int, serial: int) -> Job:
    arrays = _arrays(_LIST_ARRAYS, size, serial)
    total = touch_all(arrays)
    return Job(touch_all, (arrays,), total, lambda: total)


def _arrays(number: int, size: int, serial: int) -> list[Array]:
    # None of them is in two jobs.
    return [_data(size // number, serial * number + one) for one in range(number)]


def _data_frame(size: int, serial: int) -> Job:
    # Four columns of floats, four of integers and two of booleans, 8, 8 and 1 byte a row each.
    rows = max(1, size // (4 * 8 + 4 * 8 + 2))
    numbers = np.arange(serial, serial + rows)
    columns: dict[str, Any] = {f"float{one}": numbers + float(one) for one in range(4)}
    columns.update({f"int{one}": numbers + one for one in range(4)})
    columns.update({f"bool{one}": numbers % (one + 2) == 0 for one in range(2)})
    frame = import_module("pandas").DataFrame(columns)
    total = touch_frame(frame)
    return Job(touch_frame, (frame,), total, lambda: total)


def _five_stages(size: int, serial: int) -> Job:
    array = _data(size, serial)
    pages = len(range(0, len(array), _PAGE))
    return Job(add_one, (array,), touch(array) + _STAGES * pages, lambda: array + _STAGES)


WORKLOADS = {
    one.name: one
    for one in (
        Workload("argument", "argument only", _argument, float),
        Workload("result", "result only", _result, touch),
        Workload("roundtrip", "round trip", _round_trip, touch),
        Workload("dict", f"argument: dict of {_DICT_ARRAYS} arrays", _dict, float),
        Workload("arrays", f"argument: list of {_LIST_ARRAYS} arrays", _list, float),
        Workload("dataframe", "argument: data frame", _data_frame, float, requires="pandas"),
        Workload(
            "broadcast",
            f"one array for {_SHARERS} tasks",
            _one_for_all,
            sum,
            run=_broadcast,
            tasks=_SHARERS,
        ),
        Workload(
            "partial",
            f"map(partial(f, array)) over {_SHARERS} batches",
            _model_and_batches,
            sum,
            run=_map_partial,
            tasks=_SHARERS,
        ),
        Workload(
            "chain", f"chain of {_STAGES} stages", _five_stages, touch, run=_chain, tasks=_STAGES
        ),
        Workload("tiny", f"{TINY_TASKS:,} tiny tasks", _tiny, float, together=_submit_all),
        Workload("tiny_map", f"{TINY_TASKS:,} tiny tasks by map", _tiny, float, together=_map_all),
    )
}
