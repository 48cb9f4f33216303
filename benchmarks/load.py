"""Watch memory, stored bytes and descriptors while many tasks go through one executor.

Several threads of the client submit at once, first small tasks, then tasks that get 1 MB and return
1 MB; each has a few under way. Every result is checked. Nothing may grow with the number of tasks.

    python benchmarks/load.py
    python benchmarks/load.py --quick --json load.json --plot load.png
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import math
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from command import (
    at_least,
    check_directories,
    end_tidily_when_terminated,
    write_results,
)
from contenders import interrupts_ignored
from machine import describe_machine, in_a_line
from memory import private_memory
from plot import can_plot
from screen import Progress, duration, show_table, size_name
from workloads import pause

import proxyexec

if TYPE_CHECKING:
    from numpy.typing import NDArray

DISTRIBUTIONS = ("proxyexec", "numpy")

_NUMBERS = 131_072

# What each thread has under way.
_SMALL_WINDOW, _LARGE_WINDOW = 64, 4

# Looks at each phase.
_SAMPLES = 200

# Tasks of each kind that come before: files of large objects are kept and written again, and it
# takes some hundred objects until all processes have open what they will.
_BEFORE = 800

# What is looked at may differ by so much from the first quarter of a phase to the last one: a
# part of it, and bytes.
_PART = 0.05
_SLACK = {"B": 4_000_000.0, "": 0.0}

# Files of objects that are open for the next ones go by themselves when they are more than so many:
# for reading, for writing, and in use. Up to there, they come and go with what is discarded.
_KEPT = "kept files"
_KEPT_AT_MOST = 3 * 64


def increase(number: int) -> int:
    """Return the next number: a small task."""
    return number + 1


def add_one(array: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return as much as it got: a task of 1 MB."""
    return array + 1


@dataclass
class Phase:
    """Tasks of one kind, and what was seen while they were run.

    Args:
        name: of the kind.
        tasks: how many.
        samples: for each look, how many tasks had ended, and the values of :data:`SERIES`.
    """

    name: str
    tasks: int
    seconds: float = 0.0
    samples: list[tuple[int, list[float]]] = field(default_factory=list)

    def values(self, series: int) -> list[float]:
        """All that was seen of one series, in order."""
        return [values[series] for _, values in self.samples]

    def median(self, start: float, end: float, series: int) -> float:
        """The median of one series between two parts of the samples."""
        first, last = (round(part * len(self.samples)) for part in (start, end))
        return statistics.median(self.values(series)[first:last])


# What is looked at, and its unit.
SERIES = (
    ("private memory of the client", "B"),
    ("private memory of the workers", "B"),
    ("stored bytes", "B"),
    ("stored objects", ""),
    ("files in shared memory", "B"),
    ("descriptors of the client", ""),
    ("descriptors of the workers", ""),
    ("kept files, open in the client", _KEPT),
    ("kept files, open in a worker", _KEPT),
)


# What is drawn together: a label, what values are divided by, and which series.
_PANELS = (
    ("private memory, MB", 1e6, (0, 1)),
    ("stored, MB", 1e6, (2, 4)),
    ("stored objects", 1.0, (3,)),
    ("descriptors", 1.0, (5, 6)),
    ("kept files that are open", 1.0, (7, 8)),
)


class Looker:
    """Looks at an executor, from outside as far as possible."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._connector = pool.store.connector
        address = urlsplit(self._connector.address)
        session = parse_qs(address.query)["session"][0]
        self._place = Path(unquote(address.path), session)

    def __call__(self) -> list[float]:
        """Return the values of :data:`SERIES`."""
        workers = list(self._pool._processes)
        usage = self._connector.usage()
        kept = [self._kept(process) for process in (os.getpid(), *workers)]
        return [
            private_memory(os.getpid()),
            sum(map(private_memory, workers)),
            usage.bytes,
            usage.objects,
            _size_of(self._place),
            _descriptors(os.getpid()) - kept[0],
            sum(map(_descriptors, workers)) - sum(kept[1:]),
            kept[0],
            max(kept[1:]),
        ]

    def _kept(self, process: int) -> int:
        """How many files of the session a process has open."""
        directory = f"/proc/{process}/fd"
        found = 0
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                found += os.readlink(f"{directory}/{name}").startswith(f"{self._place}/")
        return found


def _size_of(place: Path) -> int:
    total = 0
    for folder, _, files in os.walk(place):
        for name in files:
            try:
                total += os.lstat(f"{folder}/{name}").st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _descriptors(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


class Counter:
    """Counts tasks that have ended, and holds the clients up at each number where to look."""

    def __init__(self) -> None:
        self.done = 0
        self._next = 0.0
        self._changed = threading.Condition()

    def count(self) -> None:
        """Count one more; called by clients, which wait here while it is looked at."""
        with self._changed:
            self.done += 1
            self._changed.notify_all()
            while self.done >= self._next:
                self._changed.wait()

    def go_on(self, number: float, failed: Callable[[], bool]) -> None:
        """Let the clients go on, and wait until so many are counted, or something has failed."""
        with self._changed:
            self._next = number
            self._changed.notify_all()
            while self.done < number and not failed():
                self._changed.wait(1)

    def end(self) -> None:
        """Let the clients go on to their end."""
        with self._changed:
            self._next = math.inf
            self._changed.notify_all()


def _small(pool: Any, thread: int, number: int, counter: Counter, stop: threading.Event) -> None:
    pending: deque[tuple[Any, int]] = deque()

    def check() -> None:
        future, expected = pending.popleft()
        if future.result() != expected:
            raise RuntimeError("wrong result")
        counter.count()

    for given in range(1_000_000 * thread, 1_000_000 * thread + number):
        if stop.is_set():
            return
        if len(pending) == _SMALL_WINDOW:
            check()
        pending.append((pool.submit(increase, given), given + 1))
    while pending:
        check()


def _large(pool: Any, thread: int, number: int, counter: Counter, stop: threading.Event) -> None:
    pending: deque[tuple[Any, NDArray[np.float64]]] = deque()

    def check() -> None:
        future, given = pending.popleft()
        if not np.array_equal(future.result(), given + 1):
            raise RuntimeError("wrong result")
        counter.count()

    for first in range(1_000_000 * thread, 1_000_000 * thread + number):
        if stop.is_set():
            return
        if len(pending) == _LARGE_WINDOW:
            check()
        given = np.arange(first, first + _NUMBERS, dtype=np.float64)
        pending.append((pool.submit(add_one, given), given))
    while pending:
        check()


_KINDS = {"small": _small, "1 MB": _large}


def _run(pool: Any, phase: Phase, threads: int, step: Callable[[str], None]) -> None:
    look, counter, stop = Looker(pool), Counter(), threading.Event()
    each = phase.tasks // threads
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as clients:
        running = [
            clients.submit(_KINDS[phase.name], pool, thread, each, counter, stop)
            for thread in range(threads)
        ]

        def failed() -> bool:
            return any(one.done() and one.exception() is not None for one in running)

        try:
            for number in range(1, _SAMPLES + 1):
                counter.go_on(each * threads * number // (_SAMPLES + 1), failed)
                if failed():
                    break
                phase.samples.append((counter.done, look()))
                step(f"{phase.name}: {counter.done:,} tasks")
        except BaseException:
            stop.set()
            raise
        finally:
            counter.end()
        for one in running:
            one.result()
    phase.seconds = time.perf_counter() - start


def _shown(value: float, unit: str) -> str:
    return size_name(value) if unit == "B" else f"{value:,.0f}"


def _table(phase: Phase) -> dict[str, Any]:
    rows = []
    for number, (name, unit) in enumerate(SERIES):
        first, last = phase.median(0, 0.25, number), phase.median(0.75, 1, number)
        growth = last - first
        most = max(phase.values(number))
        if unit == _KEPT:
            verdict = "bounded" if most <= _KEPT_AT_MOST else "GROWS"
        else:
            verdict = "flat" if growth <= max(_PART * first, _SLACK[unit]) else "GROWS"
        sign = "-" if growth < 0 else "+"
        rows.append(
            [
                name,
                _shown(first, unit),
                _shown(last, unit),
                _shown(most, unit),
                sign + _shown(abs(growth), unit),
                verdict,
            ]
        )
    rate = phase.tasks / phase.seconds
    return {
        "title": f"{phase.tasks:,} tasks, {phase.name}",
        "columns": ["", "first quarter", "last quarter", "most", "growth", ""],
        "rows": rows,
        "notes": [f"All results right, in {duration(phase.seconds)}: {rate:,.0f} tasks a second."],
    }


def _plot(phases: Sequence[Phase], path: str, caption: str) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - optional

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after its backend

    size = 6.5 * len(phases), 3 * len(_PANELS)
    figure, grid = plt.subplots(len(_PANELS), len(phases), figsize=size, squeeze=False)
    for column, phase in enumerate(phases):
        done = [number for number, _ in phase.samples]
        for row, (title, factor, numbers) in enumerate(_PANELS):
            panel = grid[row][column]
            for number, line in zip(numbers, ("-", "--"), strict=False):
                values = [value / factor for value in phase.values(number)]
                panel.plot(done, values, line, linewidth=1.2, label=SERIES[number][0])
            panel.set_ylim(bottom=0)
            panel.set_ylabel(title)
            panel.grid(visible=True, linewidth=0.4, alpha=0.6)
            panel.legend(fontsize=8, loc="lower right")
        grid[0][column].set_title(f"{phase.tasks:,} tasks, {phase.name}")
        grid[-1][column].set_xlabel("tasks that have ended")
    figure.text(0.01, 0.005, caption, fontsize=8)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=60)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    options = _options(arguments)
    machine = describe_machine(DISTRIBUTIONS)
    line = in_a_line(machine, f"{options.workers} workers", f"{options.threads} threads")
    print(line, file=sys.stderr)
    share = 10 if options.quick else 1
    phases = [
        Phase(name, number // share // options.threads * options.threads)
        for name, number in (("small", options.small), ("1 MB", options.large))
        if number // share >= 4 * options.threads
    ]
    finished: list[Phase] = []
    interrupted = False
    end_tidily_when_terminated()
    try:
        with ExitStack() as stack:
            with interrupts_ignored():
                pool = stack.enter_context(proxyexec.ProcessPoolExecutor(options.workers))
                for future in [pool.submit(pause, 0.2) for _ in range(options.workers)]:
                    future.result()
            progress = stack.enter_context(Progress(len(phases) * _SAMPLES))
            for phase in phases:
                _run(pool, Phase(phase.name, _BEFORE), options.threads, lambda _: None)
                _run(pool, phase, options.threads, progress.step)
                left = pool.store.usage()
                if left != (0, 0):
                    raise RuntimeError(f"left stored: {left}")
                finished.append(phase)
    except KeyboardInterrupt:
        print("interrupted; this is what there is", file=sys.stderr)
        interrupted = True
    tables = [_table(phase) for phase in finished]
    for table in tables:
        show_table(**table)
    if options.json is not None:
        write_results(
            options.json,
            machine,
            tables,
            workers=options.workers,
            threads=options.threads,
            series=[name for name, _ in SERIES],
            phases=[vars(phase) for phase in finished],
        )
    if options.plot is not None and finished:
        _plot(finished, options.plot, line)
    return 130 if interrupted else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: load.py --small 10000 --large 500 --json load.json --plot load.png",
    )
    number = at_least(0)
    parser.add_argument(
        "--small", type=number, default=100_000, metavar="N", help="tasks (default: %(default)s)"
    )
    parser.add_argument(
        "--large", type=number, default=2_000, metavar="N", help="of 1 MB (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=at_least(1), default=8, metavar="N", help="that submit (default: 8)"
    )
    parser.add_argument("--workers", type=at_least(1), default=2, metavar="N", help="default: 2")
    parser.add_argument("--quick", action="store_true", help="a tenth of the tasks")
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, with matplotlib")
    options = parser.parse_args(arguments)
    check_directories(parser, (options.json, options.plot))
    if options.plot is not None and not can_plot():
        parser.error("--plot needs matplotlib")
    return options


if __name__ == "__main__":
    sys.exit(main())
