"""Tables, as text and as HTML, and numbers as people read them."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence

__all__ = ["html_table", "seconds_text", "text_table"]


def text_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)
) -> str:
    """Return a table as text.

    Args:
        columns: what stands above them.
        rows: the cells of each.
        left: which columns have their text at the left; numbers have not.
    """
    lines = [columns, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def html_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)
) -> str:
    """Return a table as HTML; see :func:`text_table`."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag} style="text-align: {"left" if place in left else "right"}">'
            f"{html.escape(cell)}</{tag}>"
            for place, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{line(columns, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def seconds_text(seconds: float) -> str:
    """Write a time: ``0``, ``35 µs``, ``1.5 ms``, ``2.25 s``."""
    if seconds <= 0:
        return "0"
    if seconds < 0.00095:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"
