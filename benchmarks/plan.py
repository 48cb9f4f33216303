"""What a run consists of: which workloads at which sizes, how many samples each, and the goals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from measure import LARGE
from screen import size_name
from workloads import WORKLOADS, Workload

__all__ = ["FEW_SAMPLES", "GOALS", "SAMPLES", "SIZES", "Step", "make_plan"]

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

SAMPLES = 11
_QUICK_SAMPLES = 5

# Where the tasks of one call get so much in all, each call takes seconds.
_HUGE = _GB
FEW_SAMPLES = 3

# The standard library's pool holds an argument five times over, and a result comes back. Each
# task more may add what is stored for it.
_MEMORY_FOLD = 8

# How many times faster than the raw pool proxyexec is meant to be, at least.
GOALS = {
    **{("argument", size): 5.0 for size in (10 * _MB, 100 * _MB)},
    **{("result", size): 4.0 for size in (10 * _MB, 100 * _MB)},
    **{("roundtrip", size): 3.5 for size in (10 * _MB, 100 * _MB)},
    **{
        (workload, size): 0.9
        for workload in ("argument", "result", "roundtrip")
        for size in (_KB, 100 * _KB)
    },
    **{(workload, 100 * _MB): 5.0 for workload in ("dict", "arrays", "dataframe", "chain")},
    **{(workload, 100 * _MB): 30.0 for workload in ("broadcast", "partial")},
    ("tiny", 0): 0.85,
}


@dataclass(frozen=True)
class Step:
    """A workload at a size, and how many samples each contender gives."""

    workload: Workload
    size: int
    samples: int

    @property
    def title(self) -> str:
        """What it is called while it runs."""
        return self.workload.title + (f", {size_name(self.size)}" if self.size else "")

    @property
    def memory(self) -> int:
        """How many bytes it may take, at most."""
        return (_MEMORY_FOLD + self.workload.tasks - 1) * self.size


def make_plan(
    names: Sequence[str],
    sizes: Sequence[int] | None,
    samples: int | None,
    available: int | None,
    *,
    quick: bool,
) -> tuple[list[Step], list[str]]:
    """Return what to run, and for what is left out a line that says why.

    Args:
        names: of workloads.
        sizes: in bytes; by default those that suit each workload.
        samples: of each; fewer are taken where a call takes seconds.
        available: bytes of memory, where the machine tells.
        quick: take fewer sizes and samples, where none are given.
    """
    wanted = samples or (_QUICK_SAMPLES if quick else SAMPLES)
    steps = [
        Step(workload, size, _samples(workload, size, wanted))
        for workload in (WORKLOADS[name] for name in names)
        for size in _sizes(workload, sizes, quick=quick)
    ]
    slow = [one for one in steps if sizes is None and _takes_minutes(one)]
    large = [one for one in steps if one not in slow and not _fits(one, available)]
    reasons = [*_minutes(slow), *_lacking(large, available)]
    return [one for one in steps if one not in slow and one not in large], reasons


def _sizes(workload: Workload, sizes: Sequence[int] | None, *, quick: bool) -> Sequence[int]:
    if workload.name == "tiny":
        return (0,)
    return sizes or (_QUICK_SIZES[workload.name] if quick else SIZES)


def _samples(workload: Workload, size: int, wanted: int) -> int:
    return min(wanted, FEW_SAMPLES) if size * workload.tasks >= _HUGE else wanted


def _takes_minutes(step: Step) -> bool:
    return step.workload.tasks > 1 and step.size >= _HUGE


def _fits(step: Step, available: int | None) -> bool:
    return available is None or step.size < LARGE or step.memory <= available


def _minutes(steps: Sequence[Step]) -> Iterator[str]:
    for size in dict.fromkeys(one.size for one in steps):
        names = ", ".join(one.workload.name for one in steps if one.size == size)
        name = size_name(size)
        yield f"{name} is left out of {names}: a sample would take minutes (--sizes asks for it)"


def _lacking(steps: Sequence[Step], available: int | None) -> Iterator[str]:
    for size, memory in dict.fromkeys((one.size, one.memory) for one in steps):
        names = ", ".join(
            one.workload.name for one in steps if (one.size, one.memory) == (size, memory)
        )
        yield (
            f"{size_name(size)} is left out of {names}: it may take {size_name(memory)} of "
            f"memory, and {size_name(available or 0)} are available"
        )
