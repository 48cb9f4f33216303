"""Run every benchmark, one after the other, and write what they found into the documentation.

Each writes docs/benchmarks/NAME.json, some a picture beside it; docs/benchmarks.md is then made
from all that is there, also from parts that an earlier run made.

    python benchmarks/all.py
    python benchmarks/all.py --quick --docs /tmp/pages
    python benchmarks/all.py --only store
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from command import end_tidily_when_terminated
from page import write_page
from plot import can_plot
from screen import duration

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Part:
    """A program of this directory, and how it is run.

    Args:
        program: its file.
        full: its options in a full run.
        quick: those in a smoke run.
        plots: whether it takes ``--plot``.
    """

    program: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    plots: bool = False


PARTS = {
    "compare": Part(
        "compare.py",
        full=("--repeat", "7", "--sizes", "1KB,100KB,1MB,10MB,100MB"),
        quick=("--quick",),
        plots=True,
    ),
    # Each library keeps what it has had: 1 GB is for few of them at a time.
    "large": Part(
        "compare.py",
        full=(
            *("--repeat", "7", "--sizes", "1GB", "--contenders", "raw,proxyexec,ray"),
            *("--workloads", "argument,result,roundtrip"),
        ),
        quick=("--quick", "--workloads", "argument", "--contenders", "raw,proxyexec"),
    ),
    "store": Part("store.py", quick=("--repeat", "7")),
    "memory": Part("memory.py", quick=("--size", "10MB", "--repeat", "1")),
    "growth": Part(
        "growth.py",
        quick=("--sizes", "1MB,16MB,64MB,256MB", "--live", "10,100", "--repeat", "3"),
    ),
    "load": Part("load.py", quick=("--quick",), plots=True),
    "dask": Part("dask_moves.py", quick=("--quick",)),
    "dask_text": Part("dask_text.py", quick=("--quick",)),
    "dask_factorize": Part("dask_factorize.py", quick=("--quick",)),
    "redis": Part("over_redis.py", quick=("--sizes", "10KB,10MB", "--repeat", "7")),
    "tuning": Part("tuning.py", quick=("--quick",)),
    "asyncio": Part("asyncio_delay.py", quick=("--repeat", "2")),
}

# How long a program gets to end by itself.
_PATIENCE = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return 1 if a part failed."""
    options = _options(arguments)
    place = options.docs / "benchmarks"
    place.mkdir(parents=True, exist_ok=True)
    end_tidily_when_terminated()
    failed: list[str] = []
    try:
        for name in options.only or PARTS:
            right = _run(name, place, quick=options.quick)
            failed += [] if right else [name]
    except KeyboardInterrupt:
        print("interrupted; the page is made of what there is", file=sys.stderr)
        failed.append("interrupted")
    write_page(options.docs, list(PARTS))
    print(f"written: {options.docs / 'benchmarks.md'}", file=sys.stderr)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, place: Path, *, quick: bool) -> bool:
    part = PARTS[name]
    # Beside the former one until it is whole.
    result, picture = place / f"{name}.new.json", place / f"{name}.new.png"
    command = [sys.executable, str(_HERE / part.program), *(part.quick if quick else part.full)]
    command += ["--json", str(result)]
    if part.plots and can_plot():
        command += ["--plot", str(picture)]
    print(f"== {name}", file=sys.stderr)
    start = time.monotonic()
    try:
        right = _ended_well(command)
        print(f"== {name}: {duration(time.monotonic() - start)}", file=sys.stderr)
        if right and result.exists():
            for made in filter(Path.exists, (result, picture)):
                made.replace(made.with_name(made.name.replace(".new", "")))
        return right
    finally:
        result.unlink(missing_ok=True)
        picture.unlink(missing_ok=True)


def _ended_well(command: Sequence[str]) -> bool:
    # In a session of its own, or Ctrl-C on a terminal would reach it, and then once more from here.
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            return process.wait() == 0
        except KeyboardInterrupt:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: all.py --quick --only store --docs /tmp/pages",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of some minutes")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(PARTS),
        metavar="NAME",
        help=f"of {list(PARTS)}; repeat",
    )
    parser.add_argument(
        "--docs",
        type=Path,
        default=_HERE.parent / "docs",
        metavar="DIR",
        help="where the page goes (default: the documentation)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
