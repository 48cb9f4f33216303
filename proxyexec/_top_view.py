"""How ``proxyexec top`` looks: one screen, whatever it shows.

Where the numbers come from is known to sources, ``_top_store`` for one: a source has a method that
returns a :class:`Screen` of now. Needs ``rich``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from proxyexec._cli_parts import shown
from proxyexec._sizes import format_size

__all__ = ["Rates", "Screen", "ScreenTable", "Source", "Terminal", "View"]

_BARS = " ▁▂▃▄▅▆▇█"

# Columns of texts are not cut off below so many characters before those of numbers are.
_LEAST_OF_TEXT = 8

# Lines that are not rows of a table: an empty one, its title, two for its head, and its caption.
_LINES_OF_TABLE = 5


@dataclass(frozen=True)
class Rates:
    """What was moved in a second."""

    put_objects: float
    put_bytes: float
    evicted_objects: float
    evicted_bytes: float


@dataclass(frozen=True)
class ScreenTable:
    """A table of a screen."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[str] = ()
    """Names of columns that are flush right."""
    share: int = 1
    """How much of the height it gets, compared with others."""


@dataclass(frozen=True)
class Screen:
    """What there is to see."""

    title: str
    facts: Sequence[tuple[str, str]]
    """Names and values, for the line below the title."""
    rates: Rates | None = None
    """``None`` as long as they are not known."""
    history: Sequence[float] = ()
    """Live bytes, at equal intervals, the latest last."""
    tables: Sequence[ScreenTable] = ()
    notes: Sequence[str] = ()
    time: float = field(default_factory=time.time)


class Source(Protocol):
    """What somebody looks at."""

    def screen(self) -> Screen:
        """Look, and return what there is to see."""
        ...

    def close(self) -> None:
        """Look no more."""
        ...


class Terminal(Console):
    """A console that lets callers end as they do when nobody reads what they write."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class View:
    """A screen, made to fit the terminal; a renderable of rich.

    Args:
        screen: what is shown.
        fits: whether rows that do not fit the terminal's height are left out.
    """

    def __init__(self, screen: Screen, *, fits: bool) -> None:
        self._screen = screen
        self._fits = fits

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        screen, width = self._screen, options.max_width
        top: list[RenderableType] = [_headline(screen, width)]
        top.append(_words(screen.facts))
        if screen.rates is not None:
            top.append(_words(_rates_in_words(screen.rates)))
        if screen.history:
            top.append(_history(screen.history, width))
        bottom = [Text(shown(note), style="italic", overflow="ellipsis") for note in screen.notes]
        height = console.size.height - len(top) - len(bottom)
        parts = [*top]
        for table, rows in zip(screen.tables, self._heights(height), strict=True):
            parts += [Text(), _table(table, rows, width)]
        yield Group(*parts, *bottom)

    def _heights(self, height: int) -> list[int]:
        """How many rows each table may have."""
        tables = self._screen.tables
        wanted = [len(table.rows) for table in tables]
        if not self._fits:
            return wanted
        left = max(height - _LINES_OF_TABLE * len(tables), len(tables))
        given = [0] * len(tables)
        while left > 0 and given != wanted:
            # A row to the one that has the least of its share.
            hungry = [place for place, rows in enumerate(given) if rows < wanted[place]]
            place = min(hungry, key=lambda one: given[one] / tables[one].share)
            given[place] += 1
            left -= 1
        return given


def _headline(screen: Screen, width: int) -> Text:
    clock = time.strftime("%H:%M:%S", time.localtime(screen.time))
    title = shown(screen.title)
    if len(title) > width - len(clock) - 2:
        title = title[: max(width - len(clock) - 5, 0)] + "..."
    line = Text(title.ljust(width - len(clock)), style="bold", no_wrap=True)
    line.append(clock)
    return line


def _words(facts: Sequence[tuple[str, str]]) -> Text:
    line = Text(overflow="ellipsis", no_wrap=True)
    for name, value in facts:
        line.append("   " if line.plain else "")
        line.append(f"{name} ", style="dim")
        line.append(shown(value), style="bold")
    return line


def _rates_in_words(rates: Rates) -> list[tuple[str, str]]:
    def in_words(objects: float, size: float) -> str:
        return f"{objects:,.1f} objects/s, {format_size(size)}/s"

    return [
        ("put", in_words(rates.put_objects, rates.put_bytes)),
        ("evicted", in_words(rates.evicted_objects, rates.evicted_bytes)),
    ]


def _history(values: Sequence[float], width: int) -> Text:
    line = Text("live bytes ", style="dim", no_wrap=True)
    most = max(values)
    end = f" most {format_size(most)}"
    room = max(width - len(line.plain) - len(end), 10)
    steps = len(_BARS) - 1
    bars = [
        _BARS[0 if value <= 0 else max(1, round(value / most * steps))] for value in values[-room:]
    ]
    line.append("".join(bars), style="cyan not dim")
    line.append(end)
    return line


def _table(table: ScreenTable, rows: int, width: int) -> Table:
    cells = [tuple(map(shown, row)) for row in table.rows[:rows]]
    left_out = len(table.rows) - rows
    drawn = Table(
        title=table.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        caption=f"{left_out:,} more" if left_out else None,
        caption_justify="left",
        expand=True,
        padding=(0, 1),
    )
    for name, room in zip(table.head, _widths(table, cells, width), strict=True):
        drawn.add_column(
            name,
            justify="right" if name in table.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            width=room,
        )
    for row in cells:
        drawn.add_row(*map(Text, row))
    return drawn


def _widths(table: ScreenTable, rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """How wide columns are: where there is too little room, the widest texts are cut off."""
    widths = [max(map(cell_len, column)) for column in zip(table.head, *rows, strict=True)]
    # Of each, a space at both sides, and one between them.
    left = width - 3 * len(widths) + 1 - sum(widths)
    widths[0] += max(left, 0)
    texts = [place for place, name in enumerate(table.head) if name not in table.right]
    for some, least in ((texts, _LEAST_OF_TEXT), (range(len(widths)), 1)):
        while left < 0:
            widest = max(some, key=widths.__getitem__)
            if widths[widest] <= least:
                break
            widths[widest] -= 1
            left += 1
    return widths
