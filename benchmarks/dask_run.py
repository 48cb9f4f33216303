"""What the programs that compare ways to use Dask share: command lines, rounds, and tables.

The bar is the faster of Dask as it is and Dask with ``scatter``.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from command import at_least, check_directories, end_tidily_when_terminated, write_results
from dask_contenders import OURS, WAYS, OnDask, started
from dask_costs import Costs, Watch
from machine import available_memory, describe_machine, in_a_line
from measure import Cell, measure
from screen import Progress, duration, show_table, size_name

if TYPE_CHECKING:
    from workloads import Workload

__all__ = ["Step", "run"]

DISTRIBUTIONS = ("proxyexec", "distributed", "dask", "numpy")

# Medians that differ by less do so by chance.
_LEVEL = 0.95

_COLUMNS = (
    *("data", "contender", "median", "quartiles", "of the better"),
    *("through scheduler", "workers' peak", "shared once", "bar"),
)


@dataclass(frozen=True)
class Step:
    """What is timed: a workload at a size.

    Args:
        workload: what is called.
        size: in bytes; 0 if that makes no difference.
        samples: of each contender.
        bar: how many times the median of the better one ours may take; ``None`` for no bar.
        contenders: names of those who take part.
        memory: bytes that it may take; 0 for little.
    """

    workload: Workload
    size: int
    samples: int
    bar: float | None
    contenders: Sequence[str]
    memory: int = 0

    @property
    def title(self) -> str:
        """What it is called while it runs."""
        return self.workload.title + (f", {size_name(self.size)}" if self.size else "")


@dataclass
class _Row:
    step: Step
    cell: Cell
    costs: Costs | None = None


def run(
    description: str,
    example: str,
    plan: Callable[[argparse.Namespace], list[Step]],
    arguments: Sequence[str] | None,
    *,
    more: Callable[[argparse.ArgumentParser], object] = lambda _: None,
    without: Sequence[str] = (),
) -> int:
    """Run what a command line asks for, show it, and write it; return the exit code.

    Args:
        description: of the program.
        example: of a command line.
        plan: says what is to be timed.
        arguments: of the command line.
        more: adds options of the program's own.
        without: names of contenders who take part only if asked for.
    """
    options = _options(description, example, arguments, more, without)
    steps = _that_fit(plan(options))
    if not steps:
        print("nothing to do", file=sys.stderr)
        return 1
    machine = describe_machine(DISTRIBUTIONS)
    print(in_a_line(machine, f"{options.workers} workers"), file=sys.stderr)
    rows: list[_Row] = []
    interrupted = False
    end_tidily_when_terminated()
    try:
        largest = max(step.size for step in steps)
        with started(options.contenders, options.workers, largest) as contenders:
            _measure(contenders, steps, rows)
    except KeyboardInterrupt:
        print("interrupted; this is what there is", file=sys.stderr)
        interrupted = True
    tables = list(_tables(rows))
    for table in tables:
        show_table(**table, group_by_first=True)
    if options.json is not None:
        write_results(
            options.json,
            machine,
            tables,
            workers=options.workers,
            contenders={name: WAYS[name].about for name in options.contenders},
            results=[_entry(row) for row in rows],
        )
    return 130 if interrupted else 0


def _that_fit(steps: Sequence[Step]) -> list[Step]:
    available = available_memory()
    fitting = []
    for step in steps:
        if available is not None and step.memory > available:
            need = f"it may take {size_name(step.memory)} of memory"
            print(f"{step.title}, is left out: {need}", file=sys.stderr)
        else:
            fitting.append(step)
    return fitting


def _measure(contenders: Sequence[OnDask], steps: Sequence[Step], rows: list[_Row]) -> None:
    taking_part = [[one for one in contenders if one.name in step.contenders] for step in steps]
    total = sum(
        (step.samples + 1) * len(those) for step, those in zip(steps, taking_part, strict=True)
    )
    with Progress(total) as progress:
        for step, those in zip(steps, taking_part, strict=True):
            cells: list[Cell] = []
            try:
                measure(
                    those,
                    step.workload,
                    step.size,
                    step.samples,
                    lambda _, title=step.title: progress.step(title),
                    cells,
                )
            finally:
                rows += [_Row(step, cell) for cell in cells]
            for one, row in zip(those, rows[-len(cells) :], strict=True):
                row.costs = _costs(one, step, row.cell)


def _costs(contender: OnDask, step: Step, cell: Cell) -> Costs | None:
    """Count what one call more costs, which is not timed."""
    if cell.error is not None:
        return None
    job = step.workload.job(step.size, 0)  # no sample has had this one
    gc.collect()
    try:
        with Watch(contender) as costs:
            result = step.workload.run(contender, job)
            received = step.workload.receive(result)
    except Exception as error:  # noqa: BLE001 - one that fails must not end the run
        cell.error = f"{type(error).__name__}: {error}, in the call whose costs were counted"
        return None
    if received != job.expected_touch:
        cell.error = "a wrong result, in the call whose costs were counted"
        return None
    return costs


def _tables(rows: Sequence[_Row]) -> Iterator[dict[str, Any]]:
    verdicts: list[list[str]] = []
    for name in dict.fromkeys(row.step.workload.name for row in rows):
        mine = [row for row in rows if row.step.workload.name == name]
        workload = mine[0].step.workload
        shown = []
        for row in mine:
            ratio = _of_the_better(row, mine)
            shown.append(_cells(row, ratio))
            known = row.cell.seconds or row.cell.error
            if row.cell.contender in OURS and row.step.bar is not None and known:
                verdicts.append([row.step.title, row.cell.contender, *_verdict(row, ratio)])
        yield {
            "title": f"{workload.title}: time of {'all tasks' if workload.tasks > 1 else 'a call'}",
            "columns": list(_COLUMNS),
            "rows": shown,
            "notes": [f"{row.cell.contender}: {row.cell.error}" for row in mine if row.cell.error],
        }
    if verdicts:
        yield {
            "title": "no slower than the better of Dask as it is and with scatter",
            "columns": ["what", "contender", "of the better", "bar", "met"],
            "rows": verdicts,
        }


def _of_the_better(row: _Row, rows: Sequence[_Row]) -> float | None:
    """Return how many times the median of the fastest other one a median is."""
    others = [
        one.cell.median
        for one in rows
        if one.step is row.step and one.cell.contender not in OURS and one.cell.seconds
    ]
    return row.cell.median / min(others) if others and row.cell.seconds else None


def _cells(row: _Row, ratio: float | None) -> list[str]:
    step, cell, costs = row.step, row.cell, row.costs
    heading = size_name(step.size) if step.size else ""
    if cell.error is not None or not cell.seconds:
        return [heading, cell.contender, "failed" if cell.error else "-", *[""] * 6]
    counted = [""] * 3
    if costs is not None:
        counted = [size_name(one) for one in (costs.scheduler, costs.resident, costs.share)]
    bar = ""
    if cell.contender in OURS and step.bar is not None:
        bar = " ".join(_verdict(row, ratio)[1:])
    return [
        *(heading, cell.contender, duration(cell.median), duration(*cell.quartiles)),
        *("" if ratio is None else f"{ratio:.2f}", *counted, bar),
    ]


def _verdict(row: _Row, ratio: float | None) -> tuple[str, str, str]:
    """Return the ratio, the bar, and whether it is met."""
    bar = row.step.bar
    if ratio is None or bar is None or row.cell.error is not None:
        return "-", f"{bar:g}", "no"
    verdict = "yes" if ratio <= bar else "no"
    if bar == 1 < ratio <= 1 / _LEVEL:
        verdict = "yes, level"
    return f"{ratio:.2f}", f"{bar:g}", verdict


def _entry(row: _Row) -> dict[str, Any]:
    entry = dataclasses.asdict(row.cell)
    if row.cell.seconds:
        first, third = row.cell.quartiles
        entry.update(median=row.cell.median, first_quartile=first, third_quartile=third)
    if row.costs is not None:
        entry["costs"] = dataclasses.asdict(row.costs)
    return entry


def _options(
    description: str,
    example: str,
    arguments: Sequence[str] | None,
    more: Callable[[argparse.ArgumentParser], object],
    without: Sequence[str],
) -> argparse.Namespace:
    usual = ",".join(name for name in WAYS if name not in without)
    parser = argparse.ArgumentParser(description=description, epilog=f"example: {example}")
    more(parser)
    parser.add_argument("--contenders", default=usual, metavar="LIST", help="default: %(default)s")
    parser.add_argument(
        "--repeat", type=at_least(1), metavar="N", help="samples of each (default: it depends)"
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=2, metavar="N", help="processes (default: 2)"
    )
    parser.add_argument("--quick", action="store_true", help="well below a minute")
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    options = parser.parse_args(arguments)
    options.contenders = options.contenders.split(",")
    unknown = [name for name in options.contenders if name not in WAYS]
    if unknown:
        parser.error(f"no contender is called {unknown[0]!r}; there are {', '.join(WAYS)}")
    check_directories(parser, (options.json,))
    return options
