"""Compare ways to use Dask: a blocked Cholesky factorization, whose blocks many tasks share.

A positive definite matrix A is taken apart into L times its transpose, block by block, as LAPACK
does it: the right-looking variant. README.md in this directory says what exactly is timed.

    python benchmarks/dask_factorize.py --quick
    python benchmarks/dask_factorize.py --blocks 1MB,8MB --json factorize.json
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from command import sizes
from dask_contenders import BY_HAND
from dask_run import Step, run
from numpy.typing import NDArray
from screen import size_name
from workloads import Job, Workload

if TYPE_CHECKING:
    from dask_contenders import OnDask

_MB = 1_000_000

# How many rows, and columns, of blocks there are, and how large each is.
_ROWS = 6
_SIZES = (_MB, 2 * _MB, 8 * _MB)
_QUICK_SIZES = (_MB,)

_SAMPLES = 7
_QUICK_SAMPLES = 2

# The matrix, its factor, what is expected, and blocks in tasks, messages and workers.
_MEMORY_FOLD = 12

# By which part of an element another order of additions may change it.
_TOLERANCE = 1e-9

Array = NDArray[np.float64]


def factor(block: Array) -> Array:
    """Factorize a block of the diagonal."""
    return np.linalg.cholesky(block)


def solve(block: Array, diagonal: Array) -> Array:
    """Make a block below the diagonal one of the factor; ``diagonal`` is the factor's above it."""
    return np.ascontiguousarray(np.linalg.solve(diagonal, block.T).T)


def update(block: Array, left: Array, right: Array) -> Array:
    """Take out of a block what the factor's columns so far account for."""
    return block - left @ right.T


@dataclass
class Blocks:
    """The lower triangle of a matrix, by rows; equal to one that differs by rounding only."""

    lower: list[Array]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocks) and all(
            np.allclose(one, its, rtol=_TOLERANCE, atol=_TOLERANCE)
            for one, its in zip(self.lower, other.lower, strict=True)
        )

    __hash__ = None  # type: ignore[assignment] - it can be changed


def _lower(matrix: Array) -> list[Array]:
    side = len(matrix) // _ROWS
    return [
        matrix[row * side : (row + 1) * side, column * side : (column + 1) * side].copy()
        for row, column in _PLACES
    ]


@functools.cache
def _problem(size: int) -> tuple[Blocks, Blocks]:
    """Return a matrix of blocks of a size in bytes, and its factor as numpy has it."""
    rows = _ROWS * max(1, math.isqrt(size // 8))
    matrix = np.random.default_rng(0).random((rows, rows))
    matrix += matrix.T
    matrix[np.diag_indices(rows)] += 2 * rows  # more than all others of its row: it is definite
    return Blocks(_lower(matrix)), Blocks(_lower(np.linalg.cholesky(matrix)))


def _job(size: int, _serial: int) -> Job:
    matrix, expected = _problem(size)
    return Job(factor, (matrix,), _pages(expected), lambda: expected)


def _pages(blocks: Blocks) -> float:
    """Read one number from every page of all blocks; return how many are numbers indeed."""
    return float(sum(np.isfinite(block.ravel()[::_PAGE]).sum() for block in blocks.lower))


def _run(contender: OnDask, job: Job) -> Blocks:
    [matrix] = job.arguments
    submit = contender.submit
    blocks = {
        place: contender.hand_over(block)
        for place, block in zip(_PLACES, matrix.lower, strict=True)
    }
    for k in range(_ROWS):
        below = range(k + 1, _ROWS)
        blocks[k, k] = submit(factor, blocks[k, k])
        for i in below:
            blocks[i, k] = submit(solve, blocks[i, k], blocks[k, k])
        for i in below:
            for j in range(k + 1, i + 1):
                blocks[i, j] = submit(update, blocks[i, j], blocks[i, k], blocks[j, k])
    return Blocks(contender.gather([blocks[place] for place in _PLACES]))


# Of blocks on the diagonal and below it: row and column.
_PLACES = [(row, column) for row in range(_ROWS) for column in range(row + 1)]

# The float64 in a page of memory.
_PAGE = 512

_WORKLOAD = Workload(
    "factorize",
    f"Cholesky factorization of {_ROWS} x {_ROWS} blocks",
    _job,
    _pages,
    run=_run,  # type: ignore[arg-type] - it is for contenders of Dask
    tasks=math.comb(_ROWS + 2, 3),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison that the command line asks for; return the exit code."""
    return run(
        (__doc__ or "").partition("\n\n")[0],
        "dask_factorize.py --blocks 2MB --json out.json",
        _plan,
        arguments,
        more=_add_options,
        without=(BY_HAND,),  # what is handed over is an argument of one call
    )


def _plan(options: argparse.Namespace) -> list[Step]:
    wanted = options.blocks or (_QUICK_SIZES if options.quick else _SIZES)
    samples = options.repeat or (_QUICK_SAMPLES if options.quick else _SAMPLES)
    memory = _MEMORY_FOLD * _ROWS**2
    return [
        Step(_WORKLOAD, size, samples, 1.0, options.contenders, memory * size) for size in wanted
    ]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--blocks",
        type=sizes,
        metavar="LIST",
        help=f"of which sizes (default: {', '.join(map(size_name, _SIZES))})",
    )


if __name__ == "__main__":
    sys.exit(main())
