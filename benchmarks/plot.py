"""The picture of a run: time over size, a panel for each workload; readable without colour."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from screen import duration, size_name
from workloads import WORKLOADS

if TYPE_CHECKING:
    from measure import Cell

__all__ = ["can_plot", "plot"]

# A long page is hard to read, and so is one with very small panels.
_WIDE_FROM = 5

# Times that differ by less than this many times get more ticks than powers of ten.
_NARROW = 1000

# A marker, a line and a hatch each, in the order of the contenders.
_STYLES = [
    (".", ":", ""),
    ("o", "-", "////"),
    ("s", "-", "xxxx"),
    ("^", "--", "...."),
    ("v", "-.", "----"),
    ("D", (0, (5, 1, 1, 1, 1, 1)), "oooo"),
    ("X", (0, (1, 1)), "++++"),
    ("P", (0, (3, 1, 1, 1)), "\\\\\\\\"),
]


def can_plot() -> bool:
    """Tell whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot(cells: Sequence[Cell], contenders: Sequence[str], path: str, caption: str) -> None:
    """Draw all cells that have samples into a file.

    Args:
        cells: of any number of workloads and sizes.
        contenders: their names; the position decides on the style.
        path: of the picture, whose ending says its format.
        caption: stands below.
    """
    import matplotlib as mpl  # noqa: PLC0415 - optional

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after its backend

    cells = [cell for cell in cells if cell.seconds]
    workloads = [name for name in WORKLOADS if any(cell.workload == name for cell in cells)]
    columns = min(2 if len(workloads) < _WIDE_FROM else 3, len(workloads))
    rows = -(-len(workloads) // columns)
    width, height = 6.5 * columns, 5 * rows
    figure, grid = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    panels = list(grid.flat)
    for unused in panels[len(workloads) :]:
        unused.axis("off")
    for panel, workload in zip(panels, workloads, strict=False):
        mine = [cell for cell in cells if cell.workload == workload]
        draw = _bars if len({cell.size for cell in mine}) == 1 else _lines
        draw(panel, mine, contenders)
        panel.set_title(WORKLOADS[workload].title)
    figure.suptitle(
        "Time until the client has all results: medians, with quartiles", fontsize=13, y=0.995
    )
    figure.text(0.01, 0.01, caption, fontsize=8, wrap=True)
    # Inches for what stands above and below.
    figure.tight_layout(rect=(0, 0.4 / height, 1, 1 - 0.3 / height))
    figure.savefig(path, dpi=60)
    plt.close(figure)


def _style(contenders: Sequence[str], name: str) -> tuple[str, Any, str, str]:
    position = list(contenders).index(name)
    marker, line, hatch = _STYLES[position % len(_STYLES)]
    return marker, line, hatch, f"C{position}"


def _lines(panel: Any, cells: Sequence[Cell], contenders: Sequence[str]) -> None:
    for name in contenders:
        mine = sorted((cell for cell in cells if cell.contender == name), key=lambda c: c.size)
        if not mine:
            continue
        marker, line, _, colour = _style(contenders, name)
        medians = [cell.median for cell in mine]
        low = [cell.median - cell.quartiles[0] for cell in mine]
        high = [cell.quartiles[1] - cell.median for cell in mine]
        panel.errorbar(
            [cell.size for cell in mine],
            medians,
            yerr=[low, high],
            label=name,
            marker=marker,
            linestyle=line,
            color=colour,
            linewidth=1.4,
            markersize=6,
            capsize=2,
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    _mark_times(panel)
    sizes = sorted({cell.size for cell in cells})
    panel.set_xticks(sizes, [size_name(size) for size in sizes], rotation=45, fontsize=8)
    panel.minorticks_off()
    panel.set_xlabel("size of the data")
    panel.grid(visible=True, which="major", linewidth=0.4, alpha=0.6)
    panel.legend(fontsize=8)


def _mark_times(panel: Any) -> None:
    from matplotlib import ticker  # noqa: PLC0415 - optional

    low, high = panel.get_ylim()
    steps = (1.0, 2.0, 5.0) if high / low < _NARROW else (1.0,)
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=steps))
    panel.yaxis.set_major_formatter(lambda seconds, _: duration(seconds))


def _bars(panel: Any, cells: Sequence[Cell], contenders: Sequence[str]) -> None:
    rate = WORKLOADS[cells[0].workload].together is not None
    # The function itself takes a thousandth of any pool's time: as a rate, its bar would hide
    # the others.
    shown = [cell for cell in cells if not (rate and cell.contender == "direct")]
    for cell in sorted(shown, key=lambda one: list(contenders).index(one.contender), reverse=True):
        _, _, hatch, colour = _style(contenders, cell.contender)
        low, middle, high = cell.quartiles[0], cell.median, cell.quartiles[1]
        if rate:
            low, middle, high = 1 / high, 1 / middle, 1 / low
        panel.barh(
            cell.contender,
            middle,
            xerr=[[middle - low], [high - middle]],
            color="white",
            edgecolor=colour,
            hatch=hatch,
            capsize=2,
        )
    panel.set_xlabel("tasks a second" if rate else f"{size_name(cells[0].size)} of data")
    if not rate:
        panel.xaxis.set_major_formatter(lambda seconds, _: duration(seconds) if seconds else "0")
    panel.grid(visible=True, which="major", axis="x", linewidth=0.4, alpha=0.6)
