"""Compare ways to use Dask: what it takes to move arguments and results, and to run tiny tasks.

In one run, in turns: the client as it is, with scatter, and with a StoreExecutor around it.
README.md in this directory says what exactly is timed.

    python benchmarks/dask_moves.py --quick
    python benchmarks/dask_moves.py --json moves.json
    python benchmarks/dask_moves.py --workloads argument,chain --sizes 1MB,100MB
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from command import sizes
from dask_contenders import BY_HAND
from dask_run import Step, run
from screen import size_name
from workloads import WORKLOADS, Job, Workload

if TYPE_CHECKING:
    from dask_contenders import OnDask

_KB, _MB, _GB = 1_000, 1_000_000, 1_000_000_000

_SIZES = (_KB, 100 * _KB, _MB, 10 * _MB, 100 * _MB, _GB)
_QUICK_SIZES = (_MB, 10 * _MB)
_QUICK_SIZE_FOR_MANY = (_MB,)

# From this size on, ours is to be no slower than the better of the others.
_BAR_FROM = _MB

_TINY_TASKS = 1000

# How many times what the client takes by itself tiny tasks may take.
_BAR_OF_TINY = 1.15

_SAMPLES = 11
_QUICK_SAMPLES = 3

# With so many bytes for all tasks of a call, each takes seconds.
_LONG = _GB
_FEW_SAMPLES = 3

# An argument is in a task, a message, and what workers make of it, more than once each.
_MEMORY_FOLD = 12

# More than this for all tasks takes each of those who send it to each task several times as much
# memory: in the client, in messages, and in workers.
_ENDLESS = 5 * _GB
_SENDS_TO_EACH = "plain"

# Those who would be the same as another one.
_NOT_FOR = {
    "argument": (BY_HAND,),
    "result": ("scatter", BY_HAND),
    "chain": (BY_HAND,),
    "tiny": ("scatter", "scatter direct", BY_HAND),
}


def inc(number: int) -> int:
    """Do next to nothing."""
    return number + 1


def _tiny_job(_size: int, serial: int) -> Job:
    numbers = range(serial, serial + _TINY_TASKS)
    expected = [number + 1 for number in numbers]
    return Job(inc, tuple(numbers), float(sum(expected)), lambda: expected)


def _run_tiny(contender: OnDask, job: Job) -> list[int]:
    return contender.call_many(job.function, [(number,) for number in job.arguments])


_TINY = Workload(
    "tiny",
    f"{_TINY_TASKS:,} tiny tasks",
    _tiny_job,
    sum,
    run=_run_tiny,  # type: ignore[arg-type] - it is for contenders of Dask
    tasks=_TINY_TASKS,
)

_WORKLOADS = {
    **{name: WORKLOADS[name] for name in ("argument", "result", "broadcast", "chain")},
    _TINY.name: _TINY,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison that the command line asks for; return the exit code."""
    return run(
        (__doc__ or "").partition("\n\n")[0],
        "dask_moves.py --workloads argument,tiny --sizes 1KB,100MB --json out.json",
        _plan,
        arguments,
        more=_add_options,
    )


def _plan(options: argparse.Namespace) -> list[Step]:
    steps = []
    for name in options.workloads:
        workload = _WORKLOADS[name]
        names = [one for one in options.contenders if one not in _NOT_FOR.get(name, ())]
        for size in _sizes(workload, options):
            bar = _BAR_OF_TINY if workload is _TINY else 1.0 if size >= _BAR_FROM else None
            samples = options.repeat or (_QUICK_SAMPLES if options.quick else _SAMPLES)
            moved = size * workload.tasks
            samples = min(samples, _FEW_SAMPLES) if moved >= _LONG else samples
            those = [one for one in names if moved <= _ENDLESS or one != _SENDS_TO_EACH]
            several = 3 * workload.tasks if _SENDS_TO_EACH in those else 0
            memory = (_MEMORY_FOLD + several) * size
            steps.append(Step(workload, size, samples, bar, those, memory))
    return steps


def _sizes(workload: Workload, options: argparse.Namespace) -> Sequence[int]:
    if workload is _TINY:
        return (0,)
    if options.sizes:
        return options.sizes
    if options.quick:
        return _QUICK_SIZES if workload.tasks == 1 else _QUICK_SIZE_FOR_MANY
    return _SIZES


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes",
        type=sizes,
        metavar="LIST",
        help=f"of the data (default: {', '.join(map(size_name, _SIZES))})",
    )
    parser.add_argument(
        "--workloads",
        type=_names,
        default=list(_WORKLOADS),
        metavar="LIST",
        help=f"of {', '.join(_WORKLOADS)} (default: all)",
    )


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in _WORKLOADS:
            raise argparse.ArgumentTypeError(f"no workload is called {name!r}")
    return names


if __name__ == "__main__":
    sys.exit(main())
