"""What counting costs tiny tasks: this checkout beside another one, which does not count, or less.

Two programs, each with the packages of one checkout, take turns within each round. Processor time
counts as well as time: where the machine has other things to do, it tells more.

    git worktree add /tmp/before REVISION
    python benchmarks/collecting.py --before /tmp/before
    python benchmarks/collecting.py --before /tmp/before --repeat 1001 --json collecting.json
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command import at_least, check_directories, end_tidily_when_terminated, write_results
from machine import describe_machine, in_a_line
from measure import quartiles
from screen import Progress, duration, show_table

DISTRIBUTIONS = ("proxyexec", "wrapt")

_HERE = Path(__file__).resolve().parent.parent

# Rounds that come before those that are kept: code is warm then.
_FIRST_ROUNDS = 3

# How many tasks a sample is: few, so that some samples meet a machine that does nothing else.
_TASKS = 500

# How many times the other's it may be.
_GOAL = 1.02

# Runs in each checkout. With "call", the base executor pickles as a pool does, and calls at once:
# what is left is what one task costs the client and a worker, in one thread, and little else.
_PROGRAM = """
import pickle, sys, time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import proxyexec._executor
from proxyexec import ProxySize, StoreExecutor
from proxyexec._adapters import Base

assert Path(proxyexec.__file__).is_relative_to(sys.argv[1]), proxyexec.__file__


class Caller:
    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        fn, args, kwargs = pickle.loads(pickle.dumps((fn, args, kwargs)))
        future.set_result(pickle.loads(pickle.dumps(fn(*args, **kwargs))))
        return future

    def shutdown(self, wait=True):
        pass


def cpu_of(pids):
    # The kernel counts in nanoseconds, of the only thread that a worker has.
    seconds = time.process_time()
    for pid in pids:
        with open(f"/proc/{pid}/schedstat") as counts:
            seconds += int(counts.read().split()[0]) / 1e9
    return seconds


if sys.argv[2] == "call":
    proxyexec._executor.adapt = lambda executor: Base(executor, crosses=True, main="value")
    executor = StoreExecutor(Caller(), should_proxy=ProxySize("100 kB"))
    pids = []
else:
    pool = ProcessPoolExecutor(2)
    executor = StoreExecutor(pool, should_proxy=ProxySize("100 kB"))
    list(executor.map(abs, range(100)))
    pids = list(pool._processes)
tasks = int(sys.argv[3])
with executor:
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), cpu_of(pids)
        futures = [executor.submit(abs, -n) for n in range(tasks)]
        total = sum(future.result() for future in futures)
        print(time.perf_counter() - start, cpu_of(pids) - cpu, flush=True)
        assert total == tasks * (tasks - 1) // 2
"""


class Side:
    """One of the two, running.

    Args:
        root: of the checkout.
        kind: ``"call"`` or ``"pool"``.
    """

    def __init__(self, root: Path, kind: str) -> None:
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        path = os.pathsep.join((str(root), str(root / "connectors")))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(root), kind, str(_TASKS)],
            env={**os.environ, "PYTHONPATH": path},
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def sample(self, *, keep: bool) -> None:
        """Run the tasks once."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the program has no pipes")
        stdin.write("\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError("a program has ended")
        seconds, cpu = map(float, line.split())
        if keep:
            self.seconds.append(seconds / _TASKS)
            self.cpu.append(cpu / _TASKS)

    def end(self) -> None:
        """End the program."""
        self._process.communicate(timeout=60)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    options = _options(arguments)
    machine = describe_machine(DISTRIBUTIONS)
    print(in_a_line(machine), file=sys.stderr)
    entries: list[dict[str, Any]] = []
    interrupted = False
    end_tidily_when_terminated()
    try:
        with Progress(2 * (options.repeat + _FIRST_ROUNDS)) as progress:
            for kind in ("call", "pool"):
                _run(kind, options.before.resolve(), options.repeat, entries, progress)
    except KeyboardInterrupt:
        print("interrupted; this is what there is", file=sys.stderr)
        interrupted = True
    table = _table(entries)
    show_table(**table, group_by_first=True)
    if options.json is not None:
        write_results(options.json, machine, [table], results=entries)
    return 130 if interrupted else 0


def _run(
    kind: str, before: Path, repeat: int, entries: list[dict[str, Any]], progress: Progress
) -> None:
    sides = {"before": Side(before, kind), "now": Side(_HERE, kind)}
    order = random.Random(0)
    names = list(sides)
    try:
        for number in range(repeat + _FIRST_ROUNDS):
            progress.step(kind)
            order.shuffle(names)
            for name in names:
                sides[name].sample(keep=number >= _FIRST_ROUNDS)
    finally:
        for one in sides.values():
            one.end()
        if sides["now"].seconds:
            entries.extend(_entries(kind, sides))


def _entries(kind: str, sides: dict[str, Side]) -> list[dict[str, Any]]:
    entries = []
    for what in ("time", "processor time"):
        samples = {
            name: side.seconds if what == "time" else side.cpu for name, side in sides.items()
        }
        # Those of one round saw the same machine.
        pairs = zip(samples["now"], samples["before"], strict=False)
        ratios = [now / before for now, before in pairs]
        entries.append(
            {
                "executor": kind,
                "what": what,
                **samples,
                "ratio": statistics.median(ratios),
                "quartiles": quartiles(ratios),
                "least": min(samples["now"]) / min(samples["before"]),
                "goal": _GOAL,
            }
        )
    return entries


def _table(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": f"a tiny task, of {_TASKS:,} submitted one by one: what counting costs",
        "columns": [
            "executor",
            "",
            "before",
            "now",
            "now / before",
            "quartiles",
            "of least",
            "goal",
        ],
        "rows": [_row(entry) for entry in entries],
        "notes": [
            "call: the base executor pickles as a pool does, and calls at once, in the same thread",
            "pool: two processes; processor time is that of the client and both workers",
            "of least: the ratio of the least samples, which others have disturbed least",
        ],
    }


def _row(entry: dict[str, Any]) -> list[str]:
    low, high = entry["quartiles"]
    goal = ""
    if entry["executor"] == "pool":
        goal = f"{entry['goal']} {'pass' if entry['ratio'] <= entry['goal'] else 'miss'}"
    return [
        entry["executor"],
        entry["what"],
        duration(statistics.median(entry["before"])),
        duration(statistics.median(entry["now"])),
        f"{entry['ratio']:.3f}",
        f"{low:.3f} .. {high:.3f}",
        f"{entry['least']:.3f}",
        goal,
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: collecting.py --before /tmp/before --repeat 1001",
    )
    parser.add_argument(
        "--before",
        type=Path,
        required=True,
        metavar="DIR",
        help="another checkout, as 'git worktree add DIR REVISION' makes",
    )
    parser.add_argument(
        "--repeat",
        type=at_least(7),
        default=301,
        metavar="N",
        help="samples of each (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the samples here")
    options = parser.parse_args(arguments)
    check_directories(parser, [options.json])
    if not (options.before / "proxyexec").is_dir():
        parser.error(f"no checkout: {options.before}")
    return options


if __name__ == "__main__":
    sys.exit(main())
