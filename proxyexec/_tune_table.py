"""What tuning has found, as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

from proxyexec._cli_parts import many, shown
from proxyexec._sizes import format_size
from proxyexec._table import text_table
from proxyexec._tune_writing import as_python

if TYPE_CHECKING:
    from proxyexec._tune_result import TuneMeasured, TuneResult

__all__ = ["seconds_text", "text_of"]

# What takes less than so many times as long as now is said to be no faster.
_NO_FASTER = 0.98

_MILLISECOND = 1e-3

# From here on, three digits would be written with an exponent.
_LONG = 999.5


def text_of(result: TuneResult, *, top: int) -> Iterator[str]:
    """Say what was found, in lines.

    Args:
        result: it.
        top: how many candidates are listed; the present one always is.
    """
    run = result.run
    kind = run.executor.rpartition(".")[2]
    yield (
        f"{many(run.tasks, 'task')} on {many(run.workers, 'worker')} of {shown(kind)} in "
        f"{seconds_text(run.seconds)}, with {shown(run.policy)}: "
        f"{format_size(run.inline_bytes)} inline, {format_size(run.stored_bytes)} stored"
    )
    yield (
        f"Replayed with costs as measured, that takes {seconds_text(run.seconds / result.ratio)}: "
        f"moving is taken to take {result.moving:.2f} times as long."
    )
    for place in result.places:
        yield f"Costs of {shown(place.store)}: {place.source}."
    yield ""
    yield from _ranking(result, top)
    if result.unread:
        yield ""
        yield "Stored, and never fetched:"
        rows = [
            (
                f"{shown(one.function)}, {shown(one.what)}",
                shown(one.type),
                f"{one.objects:,}",
                format_size(one.bytes),
            )
            for one in result.unread[:top]
        ]
        yield from text_table(("", "type", "objects", "bytes"), rows, left=(0, 1)).splitlines()
    if result.measured:
        yield ""
        yield from _verification(result)
    for note in result.notes:
        yield ""
        yield f"note: {shown(note)}"
    yield ""
    yield from _advice(result)


def seconds_text(seconds: float) -> str:
    """Return seconds with three digits, or whole ones."""
    if seconds < _LONG * _MILLISECOND:
        return f"{seconds / _MILLISECOND:.3g} ms"
    return f"{seconds:.3g} s" if seconds < _LONG else f"{seconds:,.0f} s"


def _ranking(result: TuneResult, top: int) -> Iterator[str]:
    present = result.present
    several = len(result.places) > 1
    listed = list(enumerate(result.candidates, 1))
    listed = [one for one in listed if one[0] <= top or one[1].is_present]
    rows = []
    for rank, one in listed:
        ratio = one.seconds / present.seconds if present.seconds else 1.0
        rows.append(
            (
                f"{rank}",
                shown(one.policy.name),
                *((shown(one.store),) if several else ()),
                seconds_text(one.seconds),
                "now" if one.is_present else f"{ratio:.0%}",
                format_size(one.inline_bytes),
                format_size(one.stored_bytes),
                format_size(one.peak_bytes),
            )
        )
    head = ("", "policy", *(("store",) if several else ()))
    head = (*head, "expected", "of now", "inline", "stored", "at a time")
    yield from text_table(head, rows, left=(1, 2) if several else (1,)).splitlines()
    left_out = len(result.candidates) - len(listed)
    if left_out:
        yield f"... and {left_out} more"


def _verification(result: TuneResult) -> Iterator[str]:
    yield "The program itself:"
    rows = [
        (
            shown(one.policy.name),
            *((shown(one.store),) if len(result.places) > 1 else ()),
            seconds_text(one.predicted_seconds),
            seconds_text(statistics.median(one.measured_seconds)),
            _spread(one),
            f"{one.predicted_seconds / statistics.median(one.measured_seconds) - 1:+.0%}",
        )
        for one in result.measured
    ]
    head = ("policy", *(("store",) if len(result.places) > 1 else ()))
    head = (*head, "expected", "measured", "from, to", "off by")
    yield from text_table(head, rows).splitlines()


def _spread(one: TuneMeasured) -> str:
    least, most = min(one.measured_seconds), max(one.measured_seconds)
    return f"{seconds_text(least)}, {seconds_text(most)}"


def _advice(result: TuneResult) -> Iterator[str]:
    best, present = result.fastest, result.present
    if best.is_present:
        yield "Nothing that was tried is faster: leave it as it is."
        return
    yield f"The best is {shown(best.policy.name)}{_than(result)}:"
    yield f"  {shown(as_python(best, with_store=best.store != present.store))}"


def _than(result: TuneResult) -> str:
    """Say how many times as fast as now the best one is: as measured, or as expected."""
    taken = {(one.policy.python, one.store): one.seconds for one in result.candidates}
    for one in result.measured:
        taken[one.policy.python, one.store] = statistics.median(one.measured_seconds)
    now, best = (taken[one.policy.python, one.store] for one in (result.present, result.fastest))
    if not now or best > _NO_FASTER * now:
        return ""
    times = now / best
    return f", {f'{times:.2g}' if times < 99.5 else f'{times:,.0f}'} times as fast as now"
