"""The command ``proxyexec call``, which is ``python -m proxyexec.call`` as well."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

__all__ = ["add_to", "main"]

_WHAT = "run a call that has been written down, and write down what came of it"

_EXAMPLE = """\
example:
  %(prog)s call.json result.json && python -m json.tool result.json

The exit status is 0 if the function returned, 1 if it did not (the result says why), and 2 if there
was nothing to run."""


def add_to(subparsers: Any) -> None:
    """Add the command to those of a parser.

    Args:
        subparsers: what ``add_subparsers()`` has returned. The command that is chosen is in the
            attribute ``run`` of the arguments: called with these, it returns the exit status.
    """
    _set_up(
        subparsers.add_parser(
            "call",
            help=_WHAT,
            description=f"{_WHAT[0].upper()}{_WHAT[1:]}.",
            epilog=_EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m proxyexec.call",
        description=f"{_WHAT[0].upper()}{_WHAT[1:]}.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _set_up(parser)
    return _run(parser.parse_args(argv))


def _set_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("call", metavar="CALL.json", help="the record of the call")
    parser.add_argument(
        "result", metavar="RESULT.json", help="where the result goes; one that is there is replaced"
    )
    parser.add_argument(
        "--allow",
        metavar="STRATEGY",
        action="append",
        help="run the call only if function and arguments travel by this strategy (repeatable): "
        "with '--allow reference --allow json', no code comes from the record",
    )
    # For our own use: standard input ends with those who want the result.
    parser.add_argument("--lifeline", action="store_true", help=argparse.SUPPRESS)
    # As above: the environment is as the call wants it.
    parser.add_argument("--settled", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from proxyexec._call_running import run_recorded  # noqa: PLC0415 - "--help" needs none of it

    return run_recorded(options)
