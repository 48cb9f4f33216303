"""What storing and fetching an array costs beside copying it in memory, in one process.

A put moves the bytes once, and a get not at all. So the one is measured against a copy into
memory that is there, the other, with what it fetched summed up, against that sum in memory.

    python benchmarks/store.py
    python benchmarks/store.py --sizes 100MB --repeat 31 --json store.json
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xxhash
from command import (
    at_least,
    check_directories,
    end_tidily_when_terminated,
    sizes,
    write_results,
)
from machine import available_memory, describe_machine, in_a_line
from measure import LARGE, quartiles, touch_free_memory
from numpy.typing import NDArray
from proxyexec_connectors.file import FileConnector
from screen import Progress, duration, show_table, size_name

from proxyexec import Store

DISTRIBUTIONS = ("proxyexec", "numpy", "xxhash", "cryptography")

_MB = 1_000_000

# What each is measured against, and how many times as long it may take at most, at one size.
_BESIDE = {
    "put": "copy",
    "digest and put": "copy",
    "put, verified": "copy",
    "evict": "copy",
    "get and sum": "sum",
    "get and sum, verified": "sum",
}
_GOAL_SIZE = 100 * _MB
_GOALS = {"put": 1.3, "digest and put": 1.8, "get and sum": 1.7}

# In the order of the table.
_OPERATIONS = (
    *("copy", "put", "digest and put", "put, verified", "evict"),
    *("sum", "get and sum", "get and sum, verified"),
)

# Rounds that come before those that are kept: pools fill, memory is mapped.
_FIRST_ROUNDS = 3

# A sample of small data is the mean of so many calls.
_SMALL_CALLS = 10

# The array, its copy, what is stored, and what is touched before.
_MEMORY_FOLD = 7

Array = NDArray[np.float64]
Samples = dict[str, list[float]]


class WrongDataError(Exception):
    """What came back is not what was stored."""


class Bench:
    """Times operations on one array, whose content changes with every round.

    Args:
        store: where it is put.
        verifying: the same, with integrity.
        size: of the array, in bytes.
    """

    def __init__(self, store: Store, verifying: Store, size: int) -> None:
        self.samples: Samples = {name: [] for name in _OPERATIONS}
        self._store = store
        self._verifying = verifying
        self._size = size
        # Whole numbers: their sum is the same in whatever order they are added up.
        self._array: Array = np.arange(max(1, size // 8), dtype=np.float64)
        self._copy = self._array.copy()
        self._calls = 1 if size >= LARGE else _SMALL_CALLS
        self._steps = [
            *(self._copying, self._summing, self._storing),
            *(self._storing_with_digest, self._storing_verified),
        ]
        self._order = random.Random(0)

    def round(self, *, keep: bool) -> None:
        """Do everything once, in an order of its own; nothing is stored afterwards."""
        # Whatever was fetched from an earlier round is now wrong.
        self._array += 1
        touch_free_memory(self._size)
        gc.collect()
        times: Samples = {name: [] for name in _OPERATIONS}
        self._order.shuffle(self._steps)
        for step in self._steps:
            for _ in range(self._calls):
                step(times)
        if keep:
            for name, seconds in times.items():
                self.samples[name].append(statistics.fmean(seconds))

    def _copying(self, times: Samples) -> None:
        _timed(times["copy"], lambda: np.copyto(self._copy, self._array))
        self._check(np.array_equal(self._copy, self._array))

    def _summing(self, times: Samples) -> None:
        _timed(times["sum"], self._array.sum)

    def _storing(self, times: Samples) -> None:
        reference = _timed(times["put"], lambda: self._store.put(self._array))
        try:
            # The array that was fetched is let go of within the time.
            total = _timed(times["get and sum"], lambda: self._store.get(reference).sum())
            self._check(total == self._array.sum())
            self._check(np.array_equal(self._store.get(reference), self._array))
        finally:
            _timed(times["evict"], lambda: self._store.evict(reference))

    def _storing_with_digest(self, times: Samples) -> None:
        def digest_and_put() -> Any:
            xxhash.xxh3_128_digest(self._array)
            return self._store.put(self._array)

        reference = _timed(times["digest and put"], digest_and_put)
        try:
            self._check(np.array_equal(self._store.get(reference), self._array))
        finally:
            self._store.evict(reference)

    def _storing_verified(self, times: Samples) -> None:
        store = self._verifying
        reference = _timed(times["put, verified"], lambda: store.put(self._array))
        try:
            name = "get and sum, verified"
            total = _timed(times[name], lambda: store.get(reference).sum())
            self._check(total == self._array.sum())
        finally:
            store.evict(reference)

    def _check(self, right: bool) -> None:
        if not right:
            raise WrongDataError(f"an array of {size_name(self._size)} is not what was stored")


def _timed(seconds: list[float], operation: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = operation()
    seconds.append(time.perf_counter() - start)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    options = _options(arguments)
    wanted = _that_fit(options.sizes)
    if not wanted:
        print("nothing to do: no size fits into the memory that is available", file=sys.stderr)
        return 1
    machine = describe_machine(DISTRIBUTIONS)
    print(in_a_line(machine), file=sys.stderr)
    results: dict[int, Samples] = {}
    interrupted = False
    end_tidily_when_terminated()
    try:
        _run(wanted, options.repeat, results)
    except KeyboardInterrupt:
        print("interrupted; this is what there is", file=sys.stderr)
        interrupted = True
    entries = [
        _entry(size, name, samples)
        for size, samples in results.items()
        for name in _OPERATIONS
        # Interrupted in the first rounds, there is nothing.
        if samples[name]
    ]
    table = _table(entries)
    show_table(**table, group_by_first=True)
    if options.json is not None:
        write_results(options.json, machine, [table], results=entries)
    return 130 if interrupted else 0


def _that_fit(wanted: Sequence[int]) -> list[int]:
    available = available_memory()
    fit = [one for one in wanted if available is None or _MEMORY_FOLD * one <= available]
    for size in wanted:
        if size not in fit:
            needed = size_name(_MEMORY_FOLD * size)
            print(f"{size_name(size)} is left out: it may take {needed} of memory", file=sys.stderr)
    return fit


def _run(wanted: Sequence[int], repeat: int, results: dict[int, Samples]) -> None:
    rounds = _FIRST_ROUNDS + repeat
    with (
        Store("benchmark", FileConnector()) as store,
        Store("benchmark", FileConnector(), integrity=True) as verifying,
        Progress(len(wanted) * rounds) as progress,
    ):
        for size in wanted:
            bench = Bench(store, verifying, size)
            results[size] = bench.samples
            for number in range(rounds):
                progress.step(size_name(size))
                bench.round(keep=number >= _FIRST_ROUNDS)


def _entry(size: int, name: str, samples: Samples) -> dict[str, Any]:
    first, third = quartiles(samples[name])
    entry = {
        "size": size,
        "operation": name,
        "seconds": samples[name],
        "median": statistics.median(samples[name]),
        "first_quartile": first,
        "third_quartile": third,
    }
    beside = _BESIDE.get(name)
    if beside is not None:
        entry.update(beside=beside, times=entry["median"] / statistics.median(samples[beside]))
        if size == _GOAL_SIZE and name in _GOALS:
            entry.update(goal=_GOALS[name])
    return entry


def _table(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": "array of float64, stored in shared memory: time of a call",
        "columns": ["size", "operation", "median", "quartiles", "beside memory", "goal"],
        "rows": [_row(entry) for entry in entries],
    }


def _row(entry: dict[str, Any]) -> list[str]:
    goal = entry.get("goal")
    return [
        size_name(entry["size"]),
        entry["operation"],
        duration(entry["median"]),
        duration(entry["first_quartile"], entry["third_quartile"]),
        f"{entry['times']:.2f} x {entry['beside']}" if "times" in entry else "",
        "" if goal is None else f"{goal:g} " + ("pass" if entry["times"] <= goal else "SHORT"),
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: store.py --sizes 10MB,100MB --repeat 31 --json store.json",
    )
    parser.add_argument(
        "--sizes",
        type=sizes,
        default="1MB,10MB,100MB",
        metavar="LIST",
        help="of the array (default: %(default)s; the goals are for 100MB)",
    )
    parser.add_argument(
        "--repeat",
        type=at_least(7),
        default=15,
        metavar="N",
        help=f"samples, after {_FIRST_ROUNDS} that are not kept (default: 15; at least 7)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    options = parser.parse_args(arguments)
    check_directories(parser, (options.json,))
    return options


if __name__ == "__main__":
    sys.exit(main())
