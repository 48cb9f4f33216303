"""What the commands have in common: how they explain themselves, print, and tell of errors.

What may come from others (names, keys, messages) is printed so that it does nothing to a terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

__all__ = [
    "add_store",
    "ago",
    "command",
    "many",
    "one_line",
    "print_json",
    "print_table",
    "say",
    "shown",
    "store_url",
    "told",
    "when",
]

_STORE = (
    "URL of the place: file:///a/directory, redis://host:6379/0, ...; or env:NAME, to take it from "
    "the environment, as everybody can see the arguments of commands"
)


# In seconds: what somebody else has written is no time.
_TOO_LONG = 1e11


def command(
    subparsers: Any,
    name: str,
    what: str,
    example: str,
    run: Callable[[argparse.Namespace], int] | None = None,
    more: str = "",
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        subparsers: what ``add_subparsers()`` has returned.
        name: of the command.
        what: it does, in a line.
        example: one or more lines.
        run: does it, given the arguments, and returns the exit status; ``None`` for a command that
            has others below it.
        more: said after ``what``.
    """
    sentence = f"{what[0].upper()}{what[1:]}."
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=what,
        description=f"{sentence}\n\n{more}" if more else sentence,
        epilog="example:\n" + "".join(f"  {line}\n" for line in example.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if run is not None:
        parser.set_defaults(run=_reporting(run))
    return parser


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all commands have that look at a place."""
    parser.add_argument("store", metavar="STORE", type=store_url, help=_STORE)
    parser.add_argument("--json", action="store_true", help="write JSON, for programs")


def store_url(text: str) -> str:
    """Return the URL that an argument stands for."""
    if not text.startswith("env:"):
        return text
    name = text.removeprefix("env:")
    if name not in os.environ:
        raise argparse.ArgumentTypeError(f"there is no environment variable {name!r}")
    return os.environ[name]


def _reporting(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Have errors told in one line; they name places without their passwords."""

    def running(arguments: argparse.Namespace) -> int:
        from proxyexec.errors import (  # noqa: PLC0415 - "--help" needs none of it
            MissingExtraError,
            NotDurableError,
            NotListableError,
            ProxyExecError,
            UnknownSchemeError,
        )

        try:
            status = run(arguments)
            sys.stdout.flush()
        except (NotDurableError, NotListableError, UnknownSchemeError, MissingExtraError) as error:
            print(f"proxyexec: {told(error)}", file=sys.stderr)  # noqa: T201
            return 2
        except ProxyExecError as error:
            print(f"proxyexec: {told(error)}", file=sys.stderr)  # noqa: T201
            return 1
        except ValueError as error:  # a name, or a URL, that is none
            print(f"proxyexec: {told(error)}", file=sys.stderr)  # noqa: T201
            return 2
        except BrokenPipeError:  # the reader has seen enough, as "head" does
            # Python would fail once more, at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt:
            print("proxyexec: interrupted", file=sys.stderr)  # noqa: T201
            return 130
        else:
            return status

    return running


def say(text: str) -> None:
    """Print a line."""
    print(text)  # noqa: T201


def print_json(what: Any) -> None:
    """Print something as JSON."""
    say(json.dumps(what, indent=2))


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()
) -> None:
    """Print a table, if it has any rows.

    Args:
        head: names of columns.
        rows: cells.
        right: names of columns that are flush right, as numbers are.
    """
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, head, strict=True)
        ]
        say("  ".join(cells).rstrip())


def shown(text: str) -> str:
    """Return a text with what is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def told(error: BaseException) -> str:
    """Return what an error says, in lines that do nothing to a terminal."""
    return "\n".join(map(shown, str(error).split("\n")))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def one_line(text: str) -> str:
    """Return the beginning of a text, in one line."""
    return shown(" ".join(text.split())[:80])


def many(count: int, what: str) -> str:
    """Return a number of things."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def when(seconds: float | None) -> str:
    """Return a time that is given in seconds since the epoch."""
    if seconds is None:
        return ""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):  # somebody else has written it
        return "?"


def ago(seconds: float) -> str:
    """Return a span of time, in its two largest units."""
    if not abs(seconds) < _TOO_LONG:
        return "?"
    left = max(round(seconds), 0)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for place, (unit, length) in enumerate(units):
        if left >= length:
            text = f"{left // length} {unit}"
            if place + 1 < len(units):
                lower, shorter = units[place + 1]
                rest = left % length // shorter
                text += f" {rest} {lower}" if rest else ""
            return text
    return "0 s"
