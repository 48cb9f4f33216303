"""Measure whether cost grows in line with size, and not at all with the number of live objects.

python benchmarks/growth.py
python benchmarks/growth.py --sizes 1MB,16MB,256MB --live 10,100,1000 --json growth.json
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gc
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from command import (
    at_least,
    check_directories,
    end_tidily_when_terminated,
    sizes,
    write_results,
)
from contenders import interrupts_ignored
from machine import available_memory, describe_machine, in_a_line
from measure import quartiles, touch_free_memory
from screen import Progress, duration, show_table, size_name
from workloads import make, pause, touch

import proxyexec

DISTRIBUTIONS = ("proxyexec", "numpy")

_MB = 1_000_000

# The caller's array and what is stored, and what is touched before: three times the size.
_MEMORY_FOLD = 4

# What a live object takes, with room for the tasks that are timed, and for the machine.
_LIVE_BYTES = 1_100_000
_SPARE = 2_000_000_000

# Tasks of 1 MB that make one sample, and how many samples at each number of live objects, going
# up and coming down.
_TASKS = 50
_LIVE_SAMPLES = 5

# Time is linear when it grows with this power of the size at most. Slope of a line through the
# logarithms, from the size on where the call itself no longer counts.
_SLOPE_FROM = 10 * _MB
_SLOPE_GOAL = 1.1

# Of the throughput beside the fewest live objects.
_FLAT_GOAL = 0.9

_SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Samples:
    """Seconds of a call, at one size or beside one number of live objects."""

    number: int
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.seconds)


def _room() -> int:
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else sys.maxsize
    return min(free, available_memory() or sys.maxsize)


def _leave_out(numbers: Sequence[int], need: Callable[[int], int], what: Any) -> list[int]:
    room = _room()
    for number in numbers:
        if need(number) > room:
            print(
                f"{what(number)} left out: may take {size_name(need(number))} of memory, and "
                f"{size_name(room)} are available",
                file=sys.stderr,
            )
    return [number for number in numbers if need(number) <= room]


def _time_sizes(
    pool: Any, repeat: int, results: list[Samples], step: Callable[[str], None]
) -> None:
    for samples in results:
        array = np.arange(samples.number // 8, dtype=np.float64)
        calls = 10 if samples.number < _SLOPE_FROM else 1
        # A round more than is kept: the first has no memory to write again.
        for number in range(-1, repeat):
            step(size_name(samples.number))
            array += 1
            expected = touch(array)
            touch_free_memory(samples.number)
            start = time.perf_counter()
            for _ in range(calls):
                if pool.submit(touch, array).result() != expected:
                    raise RuntimeError("wrong result")
            if number >= 0:
                samples.seconds.append((time.perf_counter() - start) / calls)
        del array
        gc.collect()


def _time_live(pool: Any, results: list[Samples], step: Callable[[str], None]) -> None:
    live: list[Any] = []
    array = np.arange(_MB // 8, dtype=np.float64)
    # Up and down again: whatever else changes with time does so for all alike.
    for samples in [*results, *reversed(results)]:
        del live[samples.number :]
        started = [
            pool.submit(make, _MB // 8, float(number))
            for number in range(len(live), samples.number)
        ]
        # What is held is the future: its result stays stored, and is not fetched.
        concurrent.futures.wait(started)
        live += started
        if pool.store.usage().objects != samples.number:
            raise RuntimeError("not all live objects are stored")
        for number in range(-1, _LIVE_SAMPLES):
            step(f"{samples.number:,} live objects")
            array += 1
            expected = touch(array)
            start = time.perf_counter()
            for _ in range(_TASKS):
                if pool.submit(touch, array).result() != expected:
                    raise RuntimeError("wrong result")
            if number >= 0:
                samples.seconds.append((time.perf_counter() - start) / _TASKS)
    live.clear()


def _slope(results: Sequence[Samples]) -> float | None:
    large = [one for one in results if one.seconds and one.number >= _SLOPE_FROM]
    if len(large) < 2:
        return None
    line = statistics.linear_regression(
        [math.log(one.number) for one in large], [math.log(one.median) for one in large]
    )
    return line.slope


def _size_table(results: Sequence[Samples]) -> dict[str, Any]:
    rows = [
        [
            size_name(one.number),
            duration(one.median),
            duration(*quartiles(one.seconds)),
            duration(one.median / one.number * _MB),
        ]
        for one in results
        if one.seconds
    ]
    slope = _slope(results)
    verdict = "" if slope is None else "pass" if slope <= _SLOPE_GOAL else "SHORT"
    return {
        "title": "an argument of a size: time of a call",
        "columns": ["size", "median", "quartiles", "a MB"],
        "rows": rows,
        "notes": [
            (
                f"From {size_name(_SLOPE_FROM)} on, time grows with the size to the power of "
                f"{slope:.2f}; goal {_SLOPE_GOAL:g} {verdict}"
            )
        ]
        if slope is not None
        else [],
    }


def _live_table(results: Sequence[Samples]) -> dict[str, Any]:
    measured = [one for one in results if one.seconds]
    rows = []
    for one in measured:
        flat = measured[0].median / one.median
        first, third = quartiles(one.seconds)
        rows.append(
            [
                f"{one.number:,}",
                f"{1 / one.median:,.0f}/s",
                f"{1 / third:,.0f} .. {1 / first:,.0f}",
                f"{flat:.2f}",
                f"{_FLAT_GOAL:g} " + ("pass" if flat >= _FLAT_GOAL else "SHORT"),
            ]
        )
    return {
        "title": "tasks of 1 MB beside live objects of 1 MB: throughput",
        "columns": ["live objects", "median", "quartiles", "of the first", "goal"],
        "rows": rows,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    options = _options(arguments)
    machine = describe_machine(DISTRIBUTIONS)
    print(in_a_line(machine, "2 workers"), file=sys.stderr)
    by_size = [
        Samples(one)
        for one in _leave_out(options.sizes, lambda size: _MEMORY_FOLD * size, size_name)
    ]
    by_live = [
        Samples(one)
        for one in _leave_out(
            options.live,
            lambda number: number * _LIVE_BYTES + _SPARE,
            lambda number: f"{number:,} live objects",
        )
    ]
    steps = len(by_size) * (options.repeat + 1) + 2 * len(by_live) * (_LIVE_SAMPLES + 1)
    interrupted = False
    end_tidily_when_terminated()
    try:
        with ExitStack() as stack:
            with interrupts_ignored():
                pool = stack.enter_context(proxyexec.ProcessPoolExecutor(2))
                for future in [pool.submit(pause, 0.2) for _ in range(2)]:
                    future.result()
            progress = stack.enter_context(Progress(steps))
            _time_live(pool, by_live, progress.step)
            _time_sizes(pool, options.repeat, by_size, progress.step)
    except KeyboardInterrupt:
        print("interrupted; this is what there is", file=sys.stderr)
        interrupted = True
    tables = [_size_table(by_size), _live_table(by_live)]
    for table in tables:
        show_table(**table)
    if options.json is not None:
        write_results(
            options.json,
            machine,
            tables,
            workers=2,
            sizes=[vars(one) for one in by_size],
            live=[vars(one) for one in by_live],
        )
    return 130 if interrupted else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: growth.py --sizes 1MB,16MB,256MB --live 10,1000 --json growth.json",
    )
    parser.add_argument(
        "--sizes",
        type=sizes,
        default="1MB,4MB,16MB,64MB,256MB,1GB,4GB",
        metavar="LIST",
        help="of an argument (default: %(default)s)",
    )
    parser.add_argument(
        "--live",
        type=lambda text: sorted(map(at_least(1), text.split(","))),
        default="10,100,1000,10000",
        metavar="LIST",
        help="numbers of objects of 1 MB (default: %(default)s)",
    )
    parser.add_argument("--repeat", type=at_least(1), default=7, metavar="N", help="default: 7")
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    options = parser.parse_args(arguments)
    check_directories(parser, (options.json,))
    return options


if __name__ == "__main__":
    sys.exit(main())
