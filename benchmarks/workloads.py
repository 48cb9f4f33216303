"""What is timed: functions that workers run, the data for them, and what they must come to.

Data are float64 arrays of whole numbers, so that sums are exact and results can be compared bit
for bit. Functions live here rather than in the program, so that every contender finds them by
name; they take what is given, be it read-only, mapped or a proxy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TINY_TASKS", "WORKLOADS", "Job", "Workload", "pause", "touch"]

# One float64 in each page of 4096 bytes.
_PAGE = 512

# How many submits make one sample of the workload "tiny".
TINY_TASKS = 5000

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


def pause(seconds: float) -> int:
    """Keep a worker busy, so that the next task starts another; return the worker's id."""
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


@dataclass(frozen=True)
class Workload:
    """A kind of call.

    Args:
        name: on the command line and in files.
        title: in tables and plots.
        job: makes a call of a size in bytes, different for each serial number.
        receive: what the client does with a result, within the time; returns the sum to check.
    """

    name: str
    title: str
    job: Callable[[int, int], Job]
    receive: Callable[[Any], float]


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


WORKLOADS = {
    one.name: one
    for one in (
        Workload("argument", "argument only", _argument, float),
        Workload("result", "result only", _result, touch),
        Workload("roundtrip", "round trip", _round_trip, touch),
        Workload("tiny", f"{TINY_TASKS:,} tiny tasks", _tiny, float),
    )
}
