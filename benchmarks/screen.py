"""What the programs here show: tables on stdout, progress on stderr; with rich where installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any

__all__ = ["Progress", "duration", "show_table", "size_name"]

_RICH = find_spec("rich") is not None

# What a plain terminal line has room for beside the counter.
_LINE = 60

# How wide a table may be that does not go to a terminal.
_FILE_WIDTH = 120


def duration(*seconds: float) -> str:
    """Return times in the unit that suits the first: ``"12.3 ms"``, ``"11.9 .. 13 ms"``."""
    units = (("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9))
    unit, factor = next((one for one in units if seconds[0] * one[1] >= 1), units[-1])
    return f"{' .. '.join(_three_digits(one * factor) for one in seconds)} {unit}"


def size_name(size: float) -> str:
    """Return a number of bytes in a unit that suits it: ``"10 MB"``; units are powers of 1000."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    notes: Sequence[str] = (),
    group_by_first: bool = False,
) -> None:
    """Print a table; the first column is aligned left, the others right.

    Args:
        title: stands above it.
        columns: their headings.
        rows: as many cells each as there are columns.
        notes: lines that stand below it.
        group_by_first: rows with the same first cell belong together.
    """
    show = _rich_table if _RICH else _plain_table
    show(title, columns, rows, group_by_first=group_by_first)
    for note in notes:
        print(f"  {note}")
    print(flush=True)


def _ends_group(rows: Sequence[Sequence[str]], number: int) -> bool:
    return number + 1 < len(rows) and rows[number + 1][0] != rows[number][0]


def _repeats(rows: Sequence[Sequence[str]], number: int) -> bool:
    return number > 0 and rows[number - 1][0] == rows[number][0]


def _rich_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, group_by_first: bool
) -> None:
    from rich.console import Console  # noqa: PLC0415 - rich is optional
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        # Rich would cut cells of a table that is too wide; a broken line can still be read.
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    for number, (first, *others) in enumerate(rows):
        table.add_row(
            "" if group_by_first and _repeats(rows, number) else first,
            *others,
            end_section=group_by_first and _ends_group(rows, number),
        )
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # A file or a pipe has no width; rich takes 80 columns for granted.
        console.width = max(console.width, _FILE_WIDTH)
    console.print(table)


def _plain_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, group_by_first: bool
) -> None:
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    print(title)
    print(_plain_row(columns, widths))
    print("  ".join("-" * width for width in widths))
    for number, (first, *others) in enumerate(rows):
        shown = "" if group_by_first and _repeats(rows, number) else first
        print(_plain_row([shown, *others], widths))
        if group_by_first and _ends_group(rows, number):
            print()


def _plain_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if position else cell.ljust(width)
        for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()


class Progress:
    """A bar on stderr, from ``with`` on; a context manager.

    On something else than a terminal, a line for each new text.

    Args:
        total: the number of steps.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._done = 0
        self._text = ""
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if _RICH and self._terminal:
            from rich import progress  # noqa: PLC0415 - rich is optional
            from rich.console import Console  # noqa: PLC0415

            self._bar = progress.Progress(
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("{task.description}", markup=False),
                console=Console(stderr=True),
                transient=True,
                # Drawn at each step: a thread that redraws would take time from what is timed.
                auto_refresh=False,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._terminal:
            print(f"\r{'':{_LINE + 20}}\r", end="", file=sys.stderr, flush=True)

    def step(self, text: str, count: int = 1) -> None:
        """Say what is being done, and that ``count`` more steps are."""
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, description=text, completed=self._done, refresh=True)
        elif self._terminal:
            line = f"{self._done:5d}/{self.total}  {text[:_LINE]:{_LINE}}"
            print(f"\r{line}", end="", file=sys.stderr, flush=True)
        elif text != self._text:
            print(f"[{self._done}/{self.total}] {text}", file=sys.stderr, flush=True)
        self._text = text
