"""What a run consists of: which workloads at which sizes, how many samples each, and the goals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from measure import LARGE
from screen import size_name
from workloads import WORKLOADS, Workload

__all__ = ["GOALS", "RIVALS_RAY", "SAMPLES", "SIZES", "Step", "make_plan"]

_KB, _MB, _GB = 1_000, 1_000_000, 1_000_000_000

SIZES = (_KB, 10 * _KB, 100 * _KB, _MB, 10 * _MB, 100 * _MB, _GB)

# One size says enough about what is like an argument, or takes seconds.
_QUICK_SIZES = {
    "argument": (_KB, 100 * _KB, 10 * _MB),
    "result": (_KB, 100 * _KB, 10 * _MB),
    "roundtrip": (_KB, 100 * _KB, 10 * _MB),
    "dict": (10 * _MB,),
    "arrays": (10 * _MB,),
    "dataframe": (10 * _MB,),
    "broadcast": (_MB,),
    "partial": (_MB,),
    "chain": (10 * _MB,),
}

# All sizes are for the three basic workloads: the others' small ones are much alike.
_BASIC = ("argument", "result", "roundtrip")
_FEWER_SIZES = (_MB, 10 * _MB, 100 * _MB)

SAMPLES = 11
_QUICK_SAMPLES = 7

# From 1 GB for all tasks of a call, each call takes seconds, and the least that is worth a
# median is enough.
_LONG = _GB
_LEAST_SAMPLES = 7

# Where the tasks of one call get more than this in all, as 64 do that get 100 MB each, the standard
# library's pool takes more than 20 seconds for a sample.
_ENDLESS = 5 * _GB
_FEW_SAMPLES = 3

# The standard library's pool holds an argument five times over, and a result comes back. Each
# task more may add what is stored for it.
_MEMORY_FOLD = 8

# What each contender may go on holding while the others have their turns.
_KEPT_FOLD = 2

_LARGE_SIZES = (10 * _MB, 100 * _MB, _GB)
_NESTED = ("dict", "arrays", "dataframe", "chain")

# How many times faster than the raw pool proxyexec is meant to be, at least.
GOALS = {
    **{("argument", size): 15.0 for size in _LARGE_SIZES},
    **{("result", size): 8.0 for size in _LARGE_SIZES},
    **{("roundtrip", size): 8.0 for size in _LARGE_SIZES},
    ("argument", _MB): 3.0,
    ("argument", 100 * _KB): 1.0,
    ("argument", _KB): 0.95,
    ("broadcast", 100 * _MB): 40.0,
    ("partial", 100 * _MB): 150.0,
    **{(workload, 100 * _MB): 12.0 for workload in _NESTED},
    ("tiny", 0): 0.9,
    ("tiny_map", 0): 8.0,
}

# Where it is also meant to be ahead of Ray; with an argument of 1 GB, level with it.
RIVALS_RAY = frozenset(
    [
        *((workload, size) for workload in _BASIC for size in _LARGE_SIZES),
        ("partial", 100 * _MB),
        *((workload, 100 * _MB) for workload in _NESTED),
    ]
)


@dataclass(frozen=True)
class Step:
    """A workload at a size, and how many samples each contender gives."""

    workload: Workload
    size: int
    samples: int
    contenders: int

    @property
    def title(self) -> str:
        """What it is called while it runs."""
        return self.workload.title + (f", {size_name(self.size)}" if self.size else "")

    @property
    def memory(self) -> int:
        """How many bytes it may take, at most."""
        kept = _KEPT_FOLD * self.contenders
        return (_MEMORY_FOLD + kept + self.workload.tasks - 1) * self.size


def make_plan(
    names: Sequence[str],
    sizes: Sequence[int] | None,
    samples: int | None,
    available: int | None,
    *,
    contenders: int,
    quick: bool,
) -> tuple[list[Step], list[str]]:
    """Return what to run, and for what is left out a line that says why.

    Args:
        names: of workloads.
        sizes: in bytes; by default those that suit each workload.
        samples: of each; fewer are taken where a call takes seconds.
        available: bytes of memory, where the machine tells.
        contenders: how many take turns.
        quick: take fewer sizes and samples, where none are given.
    """
    wanted = samples or (_QUICK_SAMPLES if quick else SAMPLES)
    steps = [
        Step(workload, size, _samples(workload, size, wanted), contenders)
        for workload in (WORKLOADS[name] for name in names)
        for size in _sizes(workload, sizes, quick=quick)
    ]
    large = [one for one in steps if not _fits(one, available)]
    return [one for one in steps if one not in large], list(_lacking(large, available))


def _sizes(workload: Workload, sizes: Sequence[int] | None, *, quick: bool) -> Sequence[int]:
    if workload.together is not None:
        return (0,)
    usual = SIZES if workload.name in _BASIC else _FEWER_SIZES
    return sizes or (_QUICK_SIZES[workload.name] if quick else usual)


def _samples(workload: Workload, size: int, wanted: int) -> int:
    moved = size * workload.tasks
    if moved > _ENDLESS:
        return min(wanted, _FEW_SAMPLES)
    return min(wanted, _LEAST_SAMPLES) if moved >= _LONG else wanted


def _fits(step: Step, available: int | None) -> bool:
    return available is None or step.size < LARGE or step.memory <= available


def _lacking(steps: Sequence[Step], available: int | None) -> Iterator[str]:
    for size, memory in dict.fromkeys((one.size, one.memory) for one in steps):
        names = ", ".join(
            one.workload.name for one in steps if (one.size, one.memory) == (size, memory)
        )
        yield (
            f"{size_name(size)} is left out of {names}: it may take {size_name(memory)} of "
            f"memory, and {size_name(available or 0)} are available"
        )
