"""Bars on a terminal or in a notebook, for :mod:`proxyexec._progress`: tqdm's or rich's.

They write to standard error. Neither library is imported before somebody wants to see something.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from proxyexec._sizes import format_size
from proxyexec.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyexec._progress import ProgressCounts

__all__ = ["Display", "RichBar", "Told", "TqdmBar", "bar_named"]


class Display(Protocol):
    """What shows how far tasks have come. Nobody calls it while it is being called."""

    waited_for: ClassVar[bool]
    """Whether who reads results may wait for it: it needs nothing but to write."""

    def show(self, counts: ProgressCounts) -> None:
        """Show these counts from now on; the first are those before any task has ended."""
        ...

    def close(self) -> None:
        """Leave what is shown, and let go of the place. Closing twice is fine."""
        ...


class Told:
    """Tells a function of the user's."""

    waited_for: ClassVar[bool] = False

    def __init__(self, callback: Callable[[ProgressCounts], object]) -> None:
        self._callback = callback

    def show(self, counts: ProgressCounts) -> None:
        self._callback(counts)

    def close(self) -> None:
        pass


class TqdmBar:
    """A bar of tqdm's, on a terminal or in a notebook.

    Args:
        name: what is shown before it.
    """

    waited_for: ClassVar[bool] = True

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._bar: Any = None
        self._start = self._next = time.monotonic()

    def show(self, counts: ProgressCounts) -> None:
        try:
            self._show(counts)
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Write no more, after that has failed: to a pipe that nobody reads, say."""
        from tqdm.auto import tqdm  # noqa: PLC0415 - see above

        bar, self._bar = self._bar, None
        if bar is not None:
            bar.disable = True
        # Which is still held where writing fails, and all other bars would wait for.
        with contextlib.suppress(RuntimeError, AssertionError, ValueError):
            tqdm.get_lock().release()

    def _show(self, counts: ProgressCounts) -> None:
        bar = self._bar
        if bar is None:
            from tqdm.auto import tqdm  # noqa: PLC0415 - see above

            bar = self._bar = tqdm(total=counts.total, desc=self._name, unit="task")
        elif bar.total != counts.total and not bar.disable:
            start = bar.start_t
            bar.reset(total=counts.total)  # a notebook's bar takes a total in no other way
            bar.start_t = start
        now = time.monotonic()
        if counts.closed or now >= self._next:  # what is beside takes longer to write than to draw
            self._next = now + _BESIDE_SECONDS
            bar.set_postfix_str(_beside(counts, now - self._start), refresh=False)
        bar.update(counts.ended - bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class RichBar:
    """A bar of rich's; all there are at a time stand below each other.

    Args:
        name: what is shown before it.
    """

    waited_for: ClassVar[bool] = True

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._progress: Any = None
        self._task: Any = None
        self._start = time.monotonic()

    def show(self, counts: ProgressCounts) -> None:
        if self._progress is None:
            self._progress = _screen.enter()
            self._task = self._progress.add_task(self._name or "", total=counts.total, beside="")
        self._progress.update(
            self._task,
            total=counts.total,
            completed=counts.ended,
            beside=_beside(counts, time.monotonic() - self._start),
        )

    def close(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            _screen.leave()


class _Screen:
    """The one place on the screen that rich writes to for all bars."""

    def __init__(self) -> None:
        # Reentrant, as the garbage collector may drop a map inside, whose bar is closed then.
        self._lock = threading.RLock()
        self._progress: Any = None
        self._bars = 0

    def enter(self) -> Any:
        """Return rich's ``Progress``, for one bar more."""
        with self._lock:
            if self._progress is None:
                progress = _rich_progress()
                progress.start()
                self._progress = progress
            self._bars += 1
            return self._progress

    def leave(self) -> None:
        """Count one bar less; what is shown stays, and after the last one is changed no more."""
        with self._lock:
            self._bars -= 1
            if not self._bars:
                progress, self._progress = self._progress, None
                progress.stop()


def _rich_progress() -> Any:
    from rich.console import Console  # noqa: PLC0415 - see above
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[beside]}", markup=False),
        console=Console(stderr=True),
        # What a program prints goes where it went without a bar.
        redirect_stdout=False,
        redirect_stderr=False,
    )


def bar_named(name: str | None) -> Display:
    """Return a bar of the library that is installed; of tqdm, if both are.

    Raises:
        MissingExtraError: neither is.
    """
    try:
        import tqdm.auto  # noqa: F401, PLC0415 - see above
    except ImportError:
        pass
    else:
        return TqdmBar(name)
    try:
        import rich.progress  # noqa: F401, PLC0415
    except ImportError as missing:
        raise MissingExtraError("a progress bar", "progress") from missing
    return RichBar(name)


def _beside(counts: ProgressCounts, seconds: float) -> str:
    """What is shown beside the number of tasks."""
    said = []
    if counts.result_bytes:
        rate = counts.result_bytes / max(seconds, 1e-3)
        said.append(f"{format_size(counts.result_bytes)} ({format_size(rate)}/s)")
    if counts.failed:
        said.append(f"{counts.failed} failed")
    if counts.cancelled:
        said.append(f"{counts.cancelled} cancelled")
    return ", ".join(said)


# tqdm draws as often.
_BESIDE_SECONDS = 0.1

_screen = _Screen()
