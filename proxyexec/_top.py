"""The command ``proxyexec top``."""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from proxyexec._cli_parts import command, store_url

if TYPE_CHECKING:
    from rich.console import Console

    from proxyexec._top_view import Source

__all__ = ["add_to"]

_MORE = """\
Of a place: how many objects and bytes are stored and evicted a second, how much there is now and
has been, the largest objects, and the sessions with their owners. Of a trace, which an executor's
trace() writes: also the functions, and the slowest tasks. Looking changes nothing. It takes the
extra 'tune': pip install 'proxyexec[tune]'.

End it with Ctrl-C. Where the output is no terminal, one screen follows the other.
"""


def add_to(subparsers: Any) -> None:
    """Add the command to those of a parser; see :func:`proxyexec._group_cli.add_to`."""
    top = command(
        subparsers,
        "top",
        "watch what is stored in a place, or what a run does that is traced",
        "proxyexec top file://\nproxyexec top env:STORE --interval 5\nproxyexec top run.jsonl",
        _watch,
        _MORE,
    )
    top.add_argument(
        "source",
        metavar="STORE|TRACE",
        type=store_url,
        help="URL of the place, as for 'proxyexec store', or env:NAME, to take it from the "
        "environment; or the path of a trace",
    )
    top.add_argument(
        "--interval",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="between two looks; 1 if not told",
    )
    top.add_argument(
        "--once",
        action="store_true",
        help="look twice, print one screen, all of it, and end",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds <= threading.TIMEOUT_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, such as 0.5")
    return seconds


def _watch(arguments: argparse.Namespace) -> int:
    from proxyexec.errors import MissingExtraError  # noqa: PLC0415 - "--help" needs none of it

    try:
        from proxyexec._top_view import Terminal  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise MissingExtraError("proxyexec top", "tune") from missing
    console = Terminal()
    with contextlib.closing(_source(arguments.source)) as source, _ended_by_signals():
        if arguments.once:
            _print_once(console, source, arguments.interval)
        elif sys.stdout.isatty() and console.is_interactive:  # not a dumb one, nor colours forced
            _show(console, source, arguments.interval)
        else:
            _print_all(console, source, arguments.interval)
    return 0


def _source(name: str) -> Source:
    if "://" not in name:
        from proxyexec._top_trace import TraceSource  # noqa: PLC0415

        return TraceSource(name)
    from proxyexec._store_listing import listing_of  # noqa: PLC0415
    from proxyexec._top_store import StoreSource  # noqa: PLC0415

    return StoreSource(listing_of(name))


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Have Ctrl-C end what runs within, as one is meant to; and others tidy up first."""

    def end(number: int, frame: object) -> NoReturn:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_once(console: Console, source: Source, interval: float) -> None:
    from proxyexec._top_view import View  # noqa: PLC0415

    source.screen()
    time.sleep(interval)
    console.print(View(source.screen(), fits=False))


def _print_all(console: Console, source: Source, interval: float) -> NoReturn:
    from proxyexec._top_view import View  # noqa: PLC0415

    while True:
        console.print(View(source.screen(), fits=False))
        console.file.flush()
        time.sleep(interval)


def _show(console: Console, source: Source, interval: float) -> NoReturn:
    from rich.live import Live  # noqa: PLC0415

    from proxyexec._top_view import View  # noqa: PLC0415

    view = View(source.screen(), fits=True)  # errors are told before the screen is another one
    with Live(view, console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.refresh()
            time.sleep(interval)
            live.update(View(source.screen(), fits=True))
