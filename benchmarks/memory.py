"""Compare how much memory a call takes while a task holds its data, each page counted once.

The function itself says when it holds the array, and waits until that was looked at. What is
counted: the private memory of this process and all below it (``Pss`` less ``Pss_Shmem``), and the
machine's shared memory (``Shmem``), mapped by many, by one or by nobody; less what there was
before the first call, when the caller's own array was there already.

    python benchmarks/memory.py
    python benchmarks/memory.py --contenders proxyexec,ray --json memory.json
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from command import (
    at_least,
    check_directories,
    end_tidily_when_terminated,
    sizes,
    write_results,
)
from contenders import CONTENDERS, Contender, interrupts_ignored
from machine import available_memory, describe_machine, in_a_line
from screen import show_table, size_name
from workloads import touch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Watch", "memory_in_use", "private_memory"]

DISTRIBUTIONS = ("proxyexec", "numpy", "proxystore", "joblib", "loky", "ray")

# Where workers leave word; they inherit the variable.
_PLACE = "PROXYEXEC_BENCHMARK_PLACE"
_GO = "go"

# How long a task waits to be looked at, at most: a program that died must not leave it behind.
_PATIENCE = 120.0
_PAUSE = 0.002

# Memory that changes by less than this in a second has settled; it is given so many seconds.
_STILL = 1_000_000
_LOOKS = 30

_SHARERS = 64

# How many copies beyond the caller's there may be; what else a process allocates is in the rest.
_GOAL = 1.1

# One has no workers, the other would be sent the array within a task's description.
_NOT_HERE = ("direct", "dask")

# Most take less than this many times the size at once.
_MEMORY_FOLD = 8


def hold(array: NDArray[np.float64]) -> float:
    """Read all pages of an array, say so, and keep it until it was seen."""
    total = touch(array)
    place = Path(os.environ[_PLACE])
    place.joinpath(f"task-{os.getpid()}").touch()
    end = time.monotonic() + _PATIENCE
    while not place.joinpath(_GO).exists() and time.monotonic() < end:
        time.sleep(_PAUSE)
    return total


def memory_in_use() -> int:
    """Return the bytes that this process, all below it, and shared memory take."""
    return sum(map(private_memory, _family())) + _fields("/proc/meminfo")["Shmem"]


def private_memory(process: int) -> int:
    """Return the bytes that a process takes beside shared memory; 0 if it has ended."""
    try:
        fields = _fields(f"/proc/{process}/smaps_rollup")
    except (OSError, KeyError):
        return 0  # It has ended.
    return fields.get("Pss", 0) - fields.get("Pss_Shmem", 0)


def _fields(path: str) -> dict[str, int]:
    lines = (line.partition(":") for line in Path(path).read_text().splitlines())
    return {name: int(value.split()[0]) * 1024 for name, _, value in lines if value.endswith(" kB")}


def _settled() -> int:
    """Return the memory in use once it no longer changes: Ray starts and ends spare workers."""
    gc.collect()
    used = memory_in_use()
    for _ in range(_LOOKS):
        time.sleep(1)
        former, used = used, memory_in_use()
        if abs(used - former) < _STILL:
            return used
    return used


def _family() -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The command's name stands in brackets, and may hold anything.
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.name))
    waiting = [os.getpid()]
    while waiting:
        process = waiting.pop()
        yield process
        waiting += children.get(process, [])


class Watch:
    """Looks at the memory, from ``with`` on, until tasks hold their data; then lets them go on.

    Args:
        place: the directory where tasks leave word.
        holders: how many tasks have to hold theirs.
    """

    def __init__(self, place: Path, holders: int) -> None:
        self.held = 0
        self.peak = 0
        self._place = place
        self._holders = holders
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        for path in self._place.iterdir():
            path.unlink()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                ready = len(list(self._place.glob("task-*"))) >= self._holders
                used = memory_in_use()
                self.peak = max(self.peak, used)
                if ready:
                    self.held = used
                    return
                self._over.wait(_PAUSE)
        finally:
            self._place.joinpath(_GO).touch()


@dataclass
class Cell:
    """Bytes beyond the caller's own, a number for each round."""

    workload: str
    size: int
    contender: str
    held: list[int] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    error: str | None = None

    def copies(self, name: str) -> float:
        """Return the median as a multiple of the array's size."""
        return statistics.median(getattr(self, name)) / self.size


def _one(contender: Contender, array: Any) -> list[Any]:
    return [contender.call(hold, array)]


def _many(contender: Contender, array: Any) -> list[Any]:
    return contender.broadcast(hold, array, tasks=_SHARERS)


_Run = Callable[[Contender, Any], list[Any]]
_WORKLOADS: dict[str, tuple[_Run, bool, str]] = {
    "argument": (_one, False, "one task, one array"),
    "broadcast": (_many, True, f"{_SHARERS} tasks, one array"),
}


def _measure(name: str, options: argparse.Namespace, place: Path, cells: list[Cell]) -> None:
    # Alone: what the others keep would be counted too.
    with interrupts_ignored():
        contender = CONTENDERS[name](options.workers, options.size)
    try:
        contender.warm_up(["numpy"])
        array = np.arange(options.size // 8, dtype=np.float64)
        # Once for all: what a library keeps from one workload counts in the next.
        before = _settled()
        for workload, (run, all_workers, _) in _WORKLOADS.items():
            print(f"{name}: {workload}", file=sys.stderr)
            cell = Cell(workload, options.size, name)
            cells.append(cell)
            try:
                for _ in range(options.repeat):
                    array += 1
                    _round(
                        contender,
                        run,
                        array,
                        place,
                        options.workers if all_workers else 1,
                        before,
                        cell,
                    )
            except Exception as error:  # noqa: BLE001 - the others can be compared without it
                cell.error = f"{type(error).__name__}: {error}"
    finally:
        contender.close()


def _round(
    contender: Contender, run: _Run, array: Any, place: Path, holders: int, before: int, cell: Cell
) -> None:
    with Watch(place, holders) as watch:
        results = run(contender, array)
    if not watch.held or set(results) != {touch(array)}:
        raise RuntimeError("wrong result, or no task held its data in time")
    cell.held.append(watch.held - before)
    cell.peak.append(watch.peak - before)
    cell.after.append(memory_in_use() - before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    options = _options(arguments)
    machine = describe_machine(DISTRIBUTIONS)
    print(in_a_line(machine, f"{options.workers} workers"), file=sys.stderr)
    cells: list[Cell] = []
    interrupted = False
    end_tidily_when_terminated()
    with tempfile.TemporaryDirectory(prefix="memory-") as place:
        os.environ[_PLACE] = place
        try:
            for name in options.contenders:
                try:
                    _measure(name, options, Path(place), cells)
                except Exception as error:  # noqa: BLE001 - the others can be compared without it
                    print(f"{name} is left out: {type(error).__name__}: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("interrupted; this is what there is", file=sys.stderr)
            interrupted = True
    table = _table(cells)
    show_table(**table, group_by_first=True)
    if options.json is not None:
        write_results(
            options.json,
            machine,
            [table],
            workers=options.workers,
            results=[vars(cell) for cell in cells],
        )
    return 130 if interrupted else 0


def _table(cells: Sequence[Cell]) -> dict[str, Any]:
    rows = [
        [_WORKLOADS[name][2], *_row(cell)]
        for name in _WORKLOADS
        for cell in cells
        if cell.workload == name
    ]
    size = size_name(cells[0].size) if cells else ""
    return {
        "title": f"memory beyond the caller's own, in copies of an array of {size}",
        "columns": ["tasks", "contender", "held", "peak seen", "kept afterwards", "goal"],
        "rows": rows,
        "notes": [f"{one.contender}: {one.error[:300]}" for one in cells if one.error],
    }


def _row(cell: Cell) -> list[str]:
    if cell.error is not None or not cell.held:
        return [cell.contender, "failed" if cell.error else "-", "", "", ""]
    goal = ""
    if cell.contender == "proxyexec":
        goal = f"{_GOAL:g} " + ("pass" if cell.copies("peak") <= _GOAL else "SHORT")
    shown = [f"{cell.copies(name):.2f}" for name in ("held", "peak", "after")]
    return [cell.contender, *shown, goal]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    installed = [n for n, kind in CONTENDERS.items() if kind.is_installed() and n not in _NOT_HERE]
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: memory.py --contenders raw,proxyexec --json memory.json",
    )
    parser.add_argument("--size", type=sizes, default="100MB", help="default: %(default)s")
    parser.add_argument(
        "--contenders", default=",".join(installed), metavar="LIST", help="default: %(default)s"
    )
    parser.add_argument("--repeat", type=at_least(1), default=3, metavar="N", help="default: 3")
    parser.add_argument("--workers", type=at_least(1), default=2, metavar="N", help="default: 2")
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    options = parser.parse_args(arguments)
    if len(options.size) != 1:
        parser.error("--size takes one size")
    options.size = options.size[0]
    options.contenders = options.contenders.split(",")
    unknown = [name for name in options.contenders if name not in installed]
    if unknown:
        parser.error(f"not known or not installed: {', '.join(unknown)}")
    if (available_memory() or sys.maxsize) < _MEMORY_FOLD * options.size:
        parser.error(f"it may take {size_name(_MEMORY_FOLD * options.size)} of memory")
    check_directories(parser, (options.json,))
    return options


if __name__ == "__main__":
    sys.exit(main())
