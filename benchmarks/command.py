"""What command lines here share: reading values, writing results, and ending a run early."""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = [
    "at_least",
    "check_directories",
    "end_tidily_when_terminated",
    "sizes",
    "write_results",
]

_UNITS = {"B": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}


def at_least(minimum: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """Return a parser of numbers, whole ones by default, that are not less than ``minimum``."""

    # argparse shows the parser's name where the text is no number.
    def number(text: str) -> float:
        value = kind(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text} is less than {minimum}")
        return value

    return number


def sizes(text: str) -> list[int]:
    """Parse sizes like ``"10KB,100MB"``, in bytes; units are powers of 1000."""
    return [_size(part) for part in text.split(",")]


def _size(text: str) -> int:
    stripped = text.strip().upper()
    digits = stripped.rstrip("KMGB")
    unit = _UNITS.get(stripped[len(digits) :].strip() or "B")
    if unit is None or not digits.strip().isdigit() or int(digits) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 10KB, 100MB or 1GB")
    return int(digits) * unit


def check_directories(parser: argparse.ArgumentParser, paths: Iterable[str | None]) -> None:
    """End the program if a file could not be written for want of its directory.

    Better now than after minutes of work.
    """
    for path in filter(None, paths):
        if not Path(path).resolve().parent.is_dir():
            parser.error(f"no such directory: {Path(path).parent}")


def write_results(
    path: str, machine: dict[str, Any], tables: Sequence[dict[str, Any]], **results: Any
) -> None:
    """Write what a program found, in the form that ``page.py`` reads.

    Args:
        path: of the JSON file.
        machine: what it was found on.
        tables: as ``show_table`` takes them.
        results: what else is worth keeping.
    """
    made = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    document = {"made": made, "machine": machine, **results, "tables": tables}
    Path(path).write_text(json.dumps(document, indent=1) + "\n")


def end_tidily_when_terminated() -> None:
    """Have a signal that ends this program do what Ctrl-C does."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
