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
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from contenders import CONTENDERS, Contender, interrupts_ignored
from machine import available_memory, describe_machine
from measure import LARGE, Cell, measure
from plot import can_plot, plot
from screen import Progress, duration, show_table, size_name
from workloads import TINY_TASKS, WORKLOADS

SIZES = "1KB,10KB,100KB,1MB,10MB,100MB,1GB"
QUICK_SIZES = "1KB,100KB,10MB"

# From here on, each call takes seconds.
HUGE = 1_000_000_000
HUGE_ROUNDS = 3

# The standard library's pool holds an argument five times over, and a result comes back.
MEMORY_FOLD = 8

DISTRIBUTIONS = ("proxyexec", "wrapt", "numpy", "proxystore", "joblib", "loky", "ray")

# How many times faster than the raw pool proxyexec is meant to be, at least.
GOALS = {
    **{("argument", size): 5.0 for size in (10_000_000, 100_000_000)},
    **{("result", size): 4.0 for size in (10_000_000, 100_000_000)},
    **{("roundtrip", size): 3.5 for size in (10_000_000, 100_000_000)},
    **{
        (workload, size): 0.9
        for workload in ("argument", "result", "roundtrip")
        for size in (1_000, 100_000)
    },
    ("tiny", 0): 0.85,
}

_UNITS = {"B": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison that the command line asks for; return the exit code."""
    options = _options(arguments)
    sizes = _sizes_that_fit(options.sizes)
    plan = [
        (workload, size)
        for workload in options.workloads
        for size in (sizes if workload != "tiny" else [0])
    ]
    if not plan:
        print("nothing to do: no size fits into the memory that is available", file=sys.stderr)
        return 1
    machine = describe_machine(DISTRIBUTIONS)
    print(_describe(machine, options.workers), file=sys.stderr)
    cells: list[Cell] = []
    interrupted = False
    # Whoever stops this with a signal gets the same tidy end as with Ctrl-C.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with _started(options.contenders, options.workers, max(size for _, size in plan)) as ready:
            _run(ready, plan, options.repeat, cells)
    except KeyboardInterrupt:
        print("interrupted; this is what there is", file=sys.stderr)
        interrupted = True
    _show(cells)
    if options.json is not None:
        _write(options, machine, cells)
    if options.plot is not None and any(cell.seconds for cell in cells):
        names = [name for name in CONTENDERS if name in options.contenders]
        plot(cells, names, options.plot, _describe(machine, options.workers))
    return 130 if interrupted else 0


@contextmanager
def _started(names: Sequence[str], workers: int, largest: int) -> Iterator[list[Contender]]:
    """Start and warm up contenders; stop them at the end, whatever happens."""
    with ExitStack() as stack:
        ready = []
        # In the registry's order, where those who fork come first.
        for name in [one for one in CONTENDERS if one in names]:
            print(f"starting {name}: {CONTENDERS[name].about}", file=sys.stderr)
            try:
                with interrupts_ignored():
                    contender = CONTENDERS[name](workers, largest)
                    stack.callback(contender.close)
                    contender.warm_up()
            except Exception as error:  # noqa: BLE001 - the others can be compared without it
                print(f"{name} does not start: {type(error).__name__}: {error}", file=sys.stderr)
            else:
                ready.append(contender)
        yield ready


def _run(
    contenders: Sequence[Contender],
    plan: Sequence[tuple[str, int]],
    repeat: int,
    cells: list[Cell],
) -> None:
    rounds = [_rounds(size, repeat) for _, size in plan]
    steps = sum(number + 1 for number in rounds) * len(contenders)
    with Progress(steps) as progress:
        for (workload, size), number in zip(plan, rounds, strict=True):
            title = WORKLOADS[workload].title + (f", {size_name(size)}" if size else "")
            measure(
                contenders,
                WORKLOADS[workload],
                size,
                number,
                lambda _, title=title: progress.step(title),
                cells,
            )


def _rounds(size: int, repeat: int) -> int:
    return min(repeat, HUGE_ROUNDS) if size >= HUGE else repeat


def _show(cells: Sequence[Cell]) -> None:
    for name, workload in WORKLOADS.items():
        mine = [cell for cell in cells if cell.workload == name]
        if not mine:
            continue
        rate = name == "tiny"
        raw = {one.size: one.median for one in mine if one.contender == "raw" and one.seconds}
        rows = [_row(cell, raw.get(cell.size), rate=rate) for cell in mine]
        show_table(
            f"{workload.title}: " + ("throughput" if rate else "time of a call"),
            ["tasks" if rate else "size", "contender", "median", "quartiles", "x raw", "goal"],
            rows,
            notes=[
                f"{cell.contender} at {size_name(cell.size)}: {cell.error[:300]}"
                for cell in mine
                if cell.error
            ],
            group_by_first=True,
        )


def _row(cell: Cell, raw: float | None, *, rate: bool) -> list[str]:
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
    return [heading, cell.contender, median, spread, f"{ratio:.2f}", _verdict(cell, ratio)]


def _verdict(cell: Cell, ratio: float) -> str:
    goal = GOALS.get((cell.workload, cell.size)) if cell.contender == "proxyexec" else None
    if goal is None:
        return ""
    return f"{goal:g} " + ("pass" if ratio >= goal else "SHORT")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _write(options: argparse.Namespace, machine: dict[str, Any], cells: Sequence[Cell]) -> None:
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
    document = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine,
        "workers": options.workers,
        "contenders": {name: CONTENDERS[name].about for name in options.contenders},
        "results": results,
    }
    Path(options.json).write_text(json.dumps(document, indent=1) + "\n")


def _describe(machine: dict[str, Any], workers: int) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    memory = size_name(machine["memory_bytes"] or 0)
    return (
        f"{machine['processor']}, {machine['cores']} cores, {memory}, "
        f"{machine['system']} {machine['kernel']}, {machine['python']}, {workers} workers; "
        f"{versions}"
    )


def _sizes_that_fit(sizes: Sequence[int]) -> list[int]:
    available = available_memory()
    fitting = []
    for size in sizes:
        if available is not None and size >= LARGE and MEMORY_FOLD * size > available:
            print(
                f"{size_name(size)} is left out: it takes {size_name(MEMORY_FOLD * size)} of "
                f"memory, and {size_name(available)} are available",
                file=sys.stderr,
            )
        else:
            fitting.append(size)
    return fitting


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    installed = [name for name, kind in CONTENDERS.items() if kind.is_installed()]
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: compare.py --workloads argument,tiny --sizes 1KB,100MB --json out.json",
    )
    parser.add_argument(
        "--sizes", type=_sizes, metavar="LIST", help=f"of the arrays (default: {SIZES})"
    )
    parser.add_argument(
        "--workloads",
        type=_names("workload", list(WORKLOADS)),
        default=list(WORKLOADS),
        metavar="LIST",
        help=f"of {','.join(WORKLOADS)} (default: all)",
    )
    parser.add_argument(
        "--contenders",
        type=_names("contender", list(CONTENDERS)),
        metavar="LIST",
        help=f"of {','.join(CONTENDERS)} (default: all installed, here {','.join(installed)})",
    )
    parser.add_argument(
        "--repeat",
        type=_positive,
        metavar="N",
        help=f"samples of each (default: 11; at most {HUGE_ROUNDS} from 1 GB on)",
    )
    parser.add_argument(
        "--workers", type=_positive, default=2, metavar="N", help="processes (default: 2)"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"sizes {QUICK_SIZES}, 5 samples: about a minute"
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture (PNG, SVG or PDF)")
    options = parser.parse_args(arguments)
    options.sizes = options.sizes or _sizes(QUICK_SIZES if options.quick else SIZES)
    options.repeat = options.repeat or (5 if options.quick else 11)
    _check(parser, options, installed)
    return options


def _check(
    parser: argparse.ArgumentParser, options: argparse.Namespace, installed: Sequence[str]
) -> None:
    if options.contenders is None:
        options.contenders = list(installed)
    missing = [name for name in options.contenders if name not in installed]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}")
    if options.plot is not None and not can_plot():
        parser.error("--plot needs matplotlib")
    for path in filter(None, (options.json, options.plot)):
        # Better now than after minutes of work.
        if not Path(path).resolve().parent.is_dir():
            parser.error(f"no such directory: {Path(path).parent}")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _sizes(text: str) -> list[int]:
    return [_size(part) for part in text.split(",")]


def _size(text: str) -> int:
    stripped = text.strip().upper()
    digits = stripped.rstrip("KMGB")
    unit = _UNITS.get(stripped[len(digits) :].strip() or "B")
    if unit is None or not digits.strip().isdigit() or int(digits) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 10KB, 100MB or 1GB")
    return int(digits) * unit


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
