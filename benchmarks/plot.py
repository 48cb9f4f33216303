"""The picture of a run: time over size, a panel for each workload; readable without colour."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from screen import size_name
from workloads import WORKLOADS

if TYPE_CHECKING:
    from measure import Cell

__all__ = ["can_plot", "plot"]

# A marker, a line and a hatch each, in the order of the contenders.
_STYLES = [
    (".", ":", ""),
    ("o", "-", "////"),
    ("s", "-", "xxxx"),
    ("^", "--", "...."),
    ("v", "-.", "----"),
    ("D", (0, (5, 1, 1, 1, 1, 1)), "oooo"),
    ("X", (0, (1, 1)), "++++"),
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
    columns = min(2, len(workloads))
    rows = -(-len(workloads) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(6.5 * columns, 5 * rows), squeeze=False)
    panels = list(grid.flat)
    for unused in panels[len(workloads) :]:
        unused.axis("off")
    for panel, workload in zip(panels, workloads, strict=False):
        mine = [cell for cell in cells if cell.workload == workload]
        draw = _bars if workload == "tiny" else _lines
        draw(panel, mine, contenders)
        panel.set_title(WORKLOADS[workload].title)
    figure.suptitle("Time of a call: medians, with quartiles", fontsize=13)
    figure.text(0.01, 0.01, caption, fontsize=8, wrap=True)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=120)
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
    sizes = sorted({cell.size for cell in cells})
    panel.set_xticks(sizes, [size_name(size) for size in sizes], rotation=45, fontsize=8)
    panel.minorticks_off()
    panel.set_xlabel("size of the array")
    panel.set_ylabel("seconds")
    panel.grid(visible=True, which="major", linewidth=0.4, alpha=0.6)
    panel.legend(fontsize=8)


def _bars(panel: Any, cells: Sequence[Cell], contenders: Sequence[str]) -> None:
    # The function itself takes a thousandth of any pool's time: its bar would hide the others.
    pools = [cell for cell in cells if cell.contender != "direct"]
    for cell in sorted(pools, key=lambda one: list(contenders).index(one.contender), reverse=True):
        _, _, hatch, colour = _style(contenders, cell.contender)
        rate = 1 / cell.median
        first, third = cell.quartiles
        panel.barh(
            cell.contender,
            rate,
            xerr=[[rate - 1 / third], [1 / first - rate]],
            color="white",
            edgecolor=colour,
            hatch=hatch,
            capsize=2,
        )
    panel.set_xlabel("tasks a second")
    panel.grid(visible=True, which="major", axis="x", linewidth=0.4, alpha=0.6)
