"""How late an event loop is while tasks get, and return, large data.

A coroutine sleeps for a millisecond, over and over, and notes by how much it is late, while others
submit tasks: by loop.run_in_executor() on a pool of processes, and to an AsyncStoreExecutor around
one. The same functions, the same data; results are read by the loop.

    python benchmarks/asyncio_delay.py
    python benchmarks/asyncio_delay.py --sizes 1GB --repeat 3 --kinds array --json asyncio.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from command import (
    at_least,
    check_directories,
    end_tidily_when_terminated,
    sizes,
    write_results,
)
from machine import available_memory, describe_machine, in_a_line
from screen import Progress, duration, show_table, size_name

from proxyexec import ProxySize
from proxyexec.aio import AsyncStoreExecutor

DISTRIBUTIONS = ("proxyexec", "numpy")

_GOAL_SECONDS = 0.020
_TICK_SECONDS = 0.001

# How long the loop is watched while it does nothing: what it is late by then is the machine's.
_IDLE_SECONDS = 0.1

# Rounds that come before those that are kept: pools fill, memory is mapped.
_FIRST_ROUNDS = 2

# Tasks that are under way at a time, as many as there are workers.
_AT_A_TIME = 2

# For each of them, the data, what is stored, and what the worker has.
_MEMORY_FOLD = 5 * _AT_A_TIME

# Arrays of a list have so many bytes.
_ONE_OF_MANY = 1_000_000

# Bytes for each number of a list, when it is pickled.
_NUMBER_BYTES = 5


def _bytes(size: int, seed: int) -> Any:
    return np.random.default_rng(seed).bytes(size)


def _array(size: int, seed: int) -> Any:
    return np.arange(size // 8, dtype=np.float64) + seed


def _arrays(size: int, seed: int) -> Any:
    each = min(size, _ONE_OF_MANY)
    return [np.full(each // 8, float(number) + seed / 2) for number in range(size // each)]


def _numbers(size: int, seed: int) -> Any:
    start = (1 << 20) + seed
    return list(range(start, start + size // _NUMBER_BYTES))


KINDS: dict[str, Callable[[int, int], Any]] = {
    "bytes": _bytes,
    "array": _array,
    "list of arrays": _arrays,
    "list of int": _numbers,
}

# To look through, and to let go of, twenty million objects takes Python a while, in which nothing
# else runs: whoever keeps so many is late in any case.
_WITHOUT_GOAL = {"list of int"}


def length(data: Any) -> int:
    """Look at the data; what a task does that gets some."""
    return len(data)


def same(data: Any) -> Any:
    """Return the data; what a task does that returns some."""
    # An object that nobody has seen is stored anew.
    return data + data[:0] if isinstance(data, (bytes, list)) else data + 0


WORK = {"argument": length, "round trip": same}
CONTENDERS = ("run_in_executor", "AsyncStoreExecutor")


@dataclass
class Cell:
    """What one contender took for one kind of data.

    Args:
        size: of the data, in bytes.
        kind: of the data.
        work: what the task does with them.
        contender: who moves them.
    """

    size: int
    kind: str
    work: str
    contender: str
    delays: list[float] = field(default_factory=list)
    """Of each round, by how many seconds the loop was late at worst."""
    seconds: list[float] = field(default_factory=list)
    """Of each round, how long a task took."""
    idle_delays: list[float] = field(default_factory=list)
    """Before each round, by how much the loop was late that did nothing."""


class Probe:
    """By how much the running loop is late."""

    def __init__(self) -> None:
        self.worst = 0.0
        """In seconds, so far."""

    async def watch(self) -> None:
        """Look every millisecond, until cancelled."""
        while True:
            due = time.perf_counter() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            self.worst = max(self.worst, time.perf_counter() - due)


@contextlib.asynccontextmanager
async def probing() -> AsyncIterator[Probe]:
    """Watch the loop."""
    probe = Probe()
    watching = asyncio.ensure_future(probe.watch())
    try:
        await asyncio.sleep(_TICK_SECONDS)
        yield probe
        await asyncio.sleep(_TICK_SECONDS)  # a delay shows when it is over
    finally:
        watching.cancel()


async def measure(cell: Cell, repeat: int, progress: Progress) -> None:
    """Time the rounds of one cell."""
    data = [KINDS[cell.kind](cell.size, seed) for seed in range(_AT_A_TIME)]
    function = WORK[cell.work]
    pool = ProcessPoolExecutor(_AT_A_TIME)
    async with contextlib.AsyncExitStack() as stack:
        if cell.contender == "run_in_executor":
            stack.callback(pool.shutdown)
            loop = asyncio.get_running_loop()

            async def call(one: Any) -> Any:
                return await loop.run_in_executor(pool, function, one)

        else:
            executor = AsyncStoreExecutor(pool, should_proxy=ProxySize("100 KB"))
            await stack.enter_async_context(executor)

            async def call(one: Any) -> Any:
                return await executor.retrieve(executor.submit(function, one))

        for number in range(_FIRST_ROUNDS + repeat):
            progress.step(f"{cell.kind}, {cell.work}, {cell.contender}")
            gc.collect()
            async with probing() as idle:
                await asyncio.sleep(_IDLE_SECONDS)
            async with probing() as probe:
                start = time.perf_counter()
                results = await asyncio.gather(*map(call, data))
                seconds = time.perf_counter() - start
            for result, one in zip(results, data, strict=True):
                if (len(one) if function is length else len(result)) != len(one):
                    raise RuntimeError(f"a wrong result of {cell.contender}")
            del results
            if number >= _FIRST_ROUNDS:
                cell.idle_delays.append(idle.worst)
                cell.delays.append(probe.worst)
                cell.seconds.append(seconds / _AT_A_TIME)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    options = _options(arguments)
    available = available_memory()
    wanted = [
        size for size in options.sizes if available is None or _MEMORY_FOLD * size <= available
    ]
    for size in set(options.sizes).difference(wanted):
        needed = size_name(_MEMORY_FOLD * size)
        print(f"{size_name(size)} is left out: it may take {needed} of memory", file=sys.stderr)
    if not wanted:
        return 1
    machine = describe_machine(DISTRIBUTIONS)
    print(in_a_line(machine), file=sys.stderr)
    cells = [
        Cell(size, kind, work, contender)
        for size in wanted
        for kind in options.kinds
        for work in WORK
        for contender in CONTENDERS
    ]
    interrupted = False
    end_tidily_when_terminated()
    try:
        with Progress(len(cells) * (_FIRST_ROUNDS + options.repeat)) as progress:
            for cell in cells:
                asyncio.run(measure(cell, options.repeat, progress))
    except KeyboardInterrupt:
        print("interrupted; this is what there is", file=sys.stderr)
        interrupted = True
    table = _table([cell for cell in cells if cell.delays])
    show_table(**table, group_by_first=True)
    if options.json is not None:
        write_results(options.json, machine, [table], results=[vars(cell) for cell in cells])
    return 130 if interrupted else 0


def _table(cells: Sequence[Cell]) -> dict[str, Any]:
    return {
        "title": f"an event loop while {_AT_A_TIME} tasks at a time get, or also return, data",
        "columns": ["data", "task", "by", "worst delay", "median of worst", "a task", "goal"],
        "rows": [_row(cell) for cell in cells],
        "notes": [_note(cells)] if cells else [],
    }


def _note(cells: Sequence[Cell]) -> str:
    idle = [delay for cell in cells for delay in cell.idle_delays]
    median = duration(statistics.median(idle))
    return (
        f"doing nothing, on this machine, it was late by {median} ({duration(max(idle))} at worst)"
    )


def _row(cell: Cell) -> list[str]:
    worst = max(cell.delays)
    goal = ""
    if cell.contender == CONTENDERS[-1] and cell.kind not in _WITHOUT_GOAL:
        goal = f"{duration(_GOAL_SECONDS)} " + ("pass" if worst <= _GOAL_SECONDS else "SHORT")
    return [
        f"{size_name(cell.size)}, {cell.kind}",
        cell.work,
        cell.contender,
        duration(worst),
        duration(statistics.median(cell.delays)),
        duration(statistics.median(cell.seconds)),
        goal,
    ]


def _kinds(text: str) -> list[str]:
    kinds = [part.strip() for part in text.split(",")]
    for kind in kinds:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(KINDS)}")
    return kinds


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: asyncio_delay.py --sizes 1GB --repeat 3 --kinds array,bytes",
    )
    parser.add_argument(
        "--sizes",
        type=sizes,
        default="100MB",
        metavar="LIST",
        help="of the data of a task (default: %(default)s)",
    )
    parser.add_argument(
        "--kinds",
        type=_kinds,
        default=",".join(KINDS),
        metavar="LIST",
        help="of data (default: %(default)s)",
    )
    parser.add_argument(
        "--repeat",
        type=at_least(1),
        default=10,
        metavar="N",
        help=f"rounds, after {_FIRST_ROUNDS} that are not kept (default: 10)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    options = parser.parse_args(arguments)
    check_directories(parser, (options.json,))
    return options


if __name__ == "__main__":
    sys.exit(main())
