"""Compare ways to use Dask: a map-reduce that counts the words of real text.

The text is what Python's own library and the installed packages are written in, as it is on this
machine; nothing is made up. README.md in this directory says what exactly is timed.

    python benchmarks/dask_text.py --quick
    python benchmarks/dask_text.py --shards 4MB,16MB --json text.json
"""

from __future__ import annotations

import argparse
import functools
import re
import site
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from command import sizes
from dask_contenders import BY_HAND
from dask_run import Step, run
from screen import size_name
from workloads import Job, Workload

if TYPE_CHECKING:
    from dask_contenders import OnDask

_MB = 1_000_000

_WORD = re.compile(rb"[A-Za-z_]+")
_ENDINGS = (".py", ".rst", ".md", ".txt")

# How many shards there are, and how large each is.
_SHARDS = 16
_SIZES = (4 * _MB, 8 * _MB)
_QUICK_SIZES = (_MB,)

_SAMPLES = 7
_QUICK_SAMPLES = 2

# A shard is in the client, in a task, in a message, and in a worker.
_MEMORY_FOLD = 8


def count_words(text: bytes) -> Counter[bytes]:
    """Count the words of a text."""
    return Counter(_WORD.findall(text))


def merge(one: Counter[bytes], other: Counter[bytes]) -> Counter[bytes]:
    """Add counts up."""
    return one + other


def _text() -> Iterator[bytes]:
    """Text of this machine, file by file, always in the same order."""
    places = [sysconfig.get_path("stdlib"), *site.getsitepackages(), "/usr/share/common-licenses"]
    for place in dict.fromkeys(places):
        for path in sorted(Path(place).rglob("*")):
            if path.is_file() and (path.suffix in _ENDINGS or "licenses" in place):
                yield path.read_bytes()


@functools.cache
def _shards(size: int) -> list[bytes]:
    """Return shards of a size in bytes; words at their ends may be cut, for all alike."""
    shards: list[bytes] = []
    shard = bytearray()
    for text in _text():
        shard += text
        while len(shard) >= size:
            shards.append(bytes(shard[:size]))
            del shard[:size]
            if len(shards) == _SHARDS:
                return shards
    if len(shards) < 2:
        raise RuntimeError(f"this machine has no text for two shards of {size:,} bytes")
    return shards


@functools.cache
def _expected(size: int) -> Counter[bytes]:
    return sum(map(count_words, _shards(size)), Counter[bytes]())


def _job(size: int, _serial: int) -> Job:
    expected = _expected(size)
    return Job(merge, tuple(_shards(size)), float(expected.total()), lambda: expected)


def _run(contender: OnDask, job: Job) -> Counter[bytes]:
    counts = [contender.submit(count_words, contender.hand_over(one)) for one in job.arguments]
    while len(counts) > 1:
        pairs = zip(counts[::2], counts[1::2], strict=False)
        odd = counts[len(counts) - len(counts) % 2 :]
        counts = [*(contender.submit(merge, *pair) for pair in pairs), *odd]
    [total] = contender.gather(counts)
    return total


def _total(counts: Counter[bytes]) -> float:
    return float(counts.total())


_WORKLOAD = Workload(
    "text",
    f"words of {_SHARDS} shards of real text",
    _job,
    _total,
    run=_run,  # type: ignore[arg-type] - it is for contenders of Dask
    tasks=2 * _SHARDS - 1,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison that the command line asks for; return the exit code."""
    return run(
        (__doc__ or "").partition("\n\n")[0],
        "dask_text.py --shards 4MB --json out.json",
        _plan,
        arguments,
        more=_add_options,
        without=(BY_HAND,),  # what is handed over is an argument of one call
    )


def _plan(options: argparse.Namespace) -> list[Step]:
    wanted = options.shards or (_QUICK_SIZES if options.quick else _SIZES)
    samples = options.repeat or (_QUICK_SAMPLES if options.quick else _SAMPLES)
    return [
        Step(_WORKLOAD, size, samples, 1.0, options.contenders, _MEMORY_FOLD * _SHARDS * size)
        for size in wanted
    ]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shards",
        type=sizes,
        metavar="LIST",
        help=f"of which sizes (default: {', '.join(map(size_name, _SIZES))})",
    )


if __name__ == "__main__":
    sys.exit(main())
