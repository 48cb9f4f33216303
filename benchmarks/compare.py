"""Compare process pools side by side: how long a call takes with much data, little, or none.

In one run, in turns: the standard library's pool, proxyexec's, and where installed ProxyStore,
loky, joblib and Ray. README.md in this directory says what exactly is timed.

    python benchmarks/compare.py --quick
    python benchmarks/compare.py --json compare.json --plot compare.png
    python benchmarks/compare.py --workloads argument --sizes 10MB,100MB --contenders raw,proxyexec
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from command import (
    at_least,
    check_directories,
    end_tidily_when_terminated,
    sizes,
    write_results,
)
from contenders import CONTENDERS, Contender, interrupts_ignored
from machine import available_memory, describe_machine, in_a_line
from measure import Cell, measure
from plan import GOALS, RIVALS_RAY, SAMPLES, SIZES, Step, make_plan
from plot import can_plot, plot
from screen import Progress, duration, show_table, size_name
from workloads import TINY_TASKS, WORKLOADS, Workload

# Medians that differ by less do so by chance.
_LEVEL = 0.95

DISTRIBUTIONS = (
    "proxyexec",
    "wrapt",
    "numpy",
    "pandas",
    "proxystore",
    "joblib",
    "loky",
    "ray",
    "distributed",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison that the command line asks for; return the exit code."""
    options = _options(arguments)
    plan, left_out = make_plan(
        options.workloads,
        options.sizes,
        options.repeat,
        available_memory(),
        contenders=len(options.contenders),
        quick=options.quick,
    )
    for reason in left_out:
        print(reason, file=sys.stderr)
    if not plan:
        print("nothing to do: no size fits into the memory that is available", file=sys.stderr)
        return 1
    machine = describe_machine(DISTRIBUTIONS)
    print(_describe(machine, options.workers), file=sys.stderr)
    cells: list[Cell] = []
    interrupted = False
    end_tidily_when_terminated()
    try:
        with _started(options.contenders, options.workers, plan) as ready:
            _run(ready, plan, cells)
    except KeyboardInterrupt:
        print("interrupted; this is what there is", file=sys.stderr)
        interrupted = True
    tables = list(_tables(cells))
    for table in tables:
        show_table(**table, group_by_first=True)
    if options.json is not None:
        _write(options, machine, cells, tables)
    if options.plot is not None and any(cell.seconds for cell in cells):
        names = [name for name in CONTENDERS if name in options.contenders]
        plot(cells, names, options.plot, _describe(machine, options.workers))
    return 130 if interrupted else 0


@contextmanager
def _started(names: Sequence[str], workers: int, plan: Sequence[Step]) -> Iterator[list[Contender]]:
    """Start and warm up contenders; stop them at the end, whatever happens."""
    largest = max(step.size for step in plan)
    modules = sorted({one.workload.requires for one in plan if one.workload.requires is not None})
    with ExitStack() as stack:
        ready = []
        # In the registry's order, where those who fork come first.
        for name in [one for one in CONTENDERS if one in names]:
            print(f"starting {name}: {CONTENDERS[name].about}", file=sys.stderr)
            try:
                with interrupts_ignored():
                    contender = CONTENDERS[name](workers, largest)
                    stack.callback(contender.close)
                    contender.warm_up(modules)
            except Exception as error:  # noqa: BLE001 - the others can be compared without it
                print(f"{name} does not start: {type(error).__name__}: {error}", file=sys.stderr)
            else:
                ready.append(contender)
        yield ready


def _run(contenders: Sequence[Contender], plan: Sequence[Step], cells: list[Cell]) -> None:
    # Each takes part in one round more than is kept.
    samples = sum(
        step.samples + 1
        for step in plan
        for one in contenders
        if one.suits is None or step.workload.name in one.suits
    )
    with Progress(samples) as progress:
        for step in plan:
            measure(
                contenders,
                step.workload,
                step.size,
                step.samples,
                lambda _, title=step.title: progress.step(title),
                cells,
            )


def _tables(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    for name, workload in WORKLOADS.items():
        mine = [cell for cell in cells if cell.workload == name]
        if not mine:
            continue
        rate = workload.together is not None
        raw, ray = _medians(mine, "raw"), _medians(mine, "ray")
        rows = [_row(cell, raw.get(cell.size), ray.get(cell.size), rate=rate) for cell in mine]
        yield {
            "title": f"{workload.title}: {_what_is_timed(workload)}",
            "columns": [
                "tasks" if rate else "size",
                "contender",
                "median",
                "quartiles",
                "x raw",
                "goal",
            ],
            "rows": rows,
            "notes": [
                f"{cell.contender}{_at(cell)}: {cell.error[:300]}" for cell in mine if cell.error
            ],
        }


def _medians(cells: Sequence[Cell], contender: str) -> dict[int, float]:
    return {one.size: one.median for one in cells if one.contender == contender and one.seconds}


def _at(cell: Cell) -> str:
    return f" at {size_name(cell.size)}" if cell.size else ""


def _what_is_timed(workload: Workload) -> str:
    if workload.together is not None:
        return "throughput"
    return "time of all tasks" if workload.tasks > 1 else "time of a call"


def _row(cell: Cell, raw: float | None, ray: float | None, *, rate: bool) -> list[str]:
    heading = f"{TINY_TASKS:,}" if rate else size_name(cell.size)
    if cell.error is not None or not cell.seconds:
        return [heading, cell.contender, "failed" if cell.error else "-", "", "", ""]
    first, third = cell.quartiles
    if rate:
        median, spread = f"{1 / cell.median:,.0f}/s", f"{1 / third:.0f} .. {1 / first:.0f}"
    else:
        median, spread = duration(cell.median), duration(first, third)
    if raw is None:
        return [heading, cell.contender, median, spread, "", ""]
    ratio = raw / cell.median
    return [heading, cell.contender, median, spread, f"{ratio:.2f}", _verdict(cell, ratio, ray)]


def _verdict(cell: Cell, ratio: float, ray: float | None) -> str:
    goal = GOALS.get((cell.workload, cell.size)) if cell.contender == "proxyexec" else None
    if goal is None:
        return ""
    verdict = f"{goal:g} " + ("pass" if ratio >= goal else "SHORT")
    if ray is None or (cell.workload, cell.size) not in RIVALS_RAY:
        return verdict
    return f"{verdict}, {_beside_ray(ray / cell.median)}"


def _beside_ray(ratio: float) -> str:
    if ratio > 1:
        return "ahead of ray"
    return "level with ray" if ratio >= _LEVEL else "behind ray"


def _write(
    options: argparse.Namespace,
    machine: dict[str, Any],
    cells: Sequence[Cell],
    tables: Sequence[dict[str, Any]],
) -> None:
    raw = {(one.workload, one.size): one for one in cells if one.contender == "raw"}
    results = []
    for cell in cells:
        entry: dict[str, Any] = dataclasses.asdict(cell)
        if cell.seconds:
            first, third = cell.quartiles
            entry.update(median=cell.median, first_quartile=first, third_quartile=third)
            base = raw.get((cell.workload, cell.size))
            if base is not None and base.seconds:
                entry["times_raw"] = base.median / cell.median
        results.append(entry)
    write_results(
        options.json,
        machine,
        tables,
        workers=options.workers,
        contenders={name: CONTENDERS[name].about for name in options.contenders},
        results=results,
    )


def _describe(machine: dict[str, Any], workers: int) -> str:
    return in_a_line(machine, f"{workers} workers")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    installed = [name for name, kind in CONTENDERS.items() if kind.is_installed()]
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: compare.py --workloads argument,tiny --sizes 1KB,100MB --json out.json",
    )
    parser.add_argument(
        "--sizes",
        type=sizes,
        metavar="LIST",
        help=f"of the data of a task (default: {', '.join(map(size_name, SIZES))})",
    )
    parser.add_argument(
        "--workloads",
        type=_names("workload", list(WORKLOADS)),
        metavar="LIST",
        help=f"of {', '.join(WORKLOADS)} (default: all that can be run)",
    )
    parser.add_argument(
        "--contenders",
        type=_names("contender", list(CONTENDERS)),
        metavar="LIST",
        help=f"of {','.join(CONTENDERS)} (default: all installed, here {','.join(installed)})",
    )
    parser.add_argument(
        "--repeat",
        type=at_least(1),
        metavar="N",
        help=f"samples of each (default: {SAMPLES}; fewer where a call moves 1 GB or more)",
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=2, metavar="N", help="processes (default: 2)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer sizes and samples: about four minutes"
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture (PNG, SVG or PDF)")
    options = parser.parse_args(arguments)
    if options.workloads is None:
        options.workloads = _possible_workloads()
    if options.contenders is None:
        options.contenders = list(installed)
    _check(parser, options, installed)
    return options


def _possible_workloads() -> list[str]:
    for workload in WORKLOADS.values():
        if not workload.is_possible():
            reason = f"{workload.requires} is not installed"
            print(f"{workload.name} is left out: {reason}", file=sys.stderr)
    return [name for name, workload in WORKLOADS.items() if workload.is_possible()]


def _check(
    parser: argparse.ArgumentParser, options: argparse.Namespace, installed: Sequence[str]
) -> None:
    missing = [name for name in options.contenders if name not in installed]
    workloads = [WORKLOADS[name] for name in options.workloads]
    missing += [str(one.requires) for one in workloads if not one.is_possible()]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}")
    if options.plot is not None and not can_plot():
        parser.error("--plot needs matplotlib")
    check_directories(parser, (options.json, options.plot))


def _names(kind: str, known: Sequence[str]) -> Any:
    def parse(text: str) -> list[str]:
        names = [part.strip() for part in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"no {kind} is called {name!r}; there are {', '.join(known)}"
                )
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
