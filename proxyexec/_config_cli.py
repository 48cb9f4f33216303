"""The commands ``proxyexec config …``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from proxyexec._cli_parts import command, say, shown, told

if TYPE_CHECKING:
    from proxyexec._config_stack import StoreExecutorSpec

__all__ = ["add_to"]

_EXAMPLE = "proxyexec config check pipeline.toml --try"


def add_to(subparsers: Any) -> None:
    """Add the commands to those of a parser.

    Args:
        subparsers: what ``add_subparsers()`` has returned. The command that is chosen is in the
            attribute ``run`` of the arguments: called with these, it returns the exit status.
    """
    config = command(subparsers, "config", "check configurations of executors", _EXAMPLE)
    commands = config.add_subparsers(metavar="COMMAND", required=True)
    check = command(
        commands,
        "check",
        "check a configuration, and show what it describes",
        f"{_EXAMPLE}\nproxyexec config check pipeline.yaml --allow concurrent.futures --allow mine",
        _check,
        "The exit status is 0 if it is right, 1 if it is not, or cannot be built, and 2 if it "
        "cannot be read.",
    )
    check.add_argument(
        "file", metavar="FILE", help="JSON, TOML or YAML, as its name ends in .json, .toml or .yaml"
    )
    check.add_argument(
        "--try",
        action="store_true",
        dest="trial",
        help="build it, run a task through it, and take it down",
    )
    check.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="for --try: how long that task may take, workers to be started included (60)",
    )
    check.add_argument(
        "--allow",
        metavar="MODULE",
        action="append",
        help="import only this module, with all that are in it (repeatable); all, if none is named",
    )
    check.add_argument(
        "--no-environment",
        action="store_true",
        help="leave variables such as PROXYEXEC_STORE out of it",
    )
    command(
        commands,
        "schema",
        "print the JSON schema of configurations, for editors",
        "proxyexec config schema > proxyexec.schema.json",
        _schema,
    )


def _check(options: argparse.Namespace) -> int:
    from proxyexec._config_tree import tree_of, warnings_of  # noqa: PLC0415 - "--help" needs none
    from proxyexec.config import load  # noqa: PLC0415

    try:
        spec = load(options.file, allow=options.allow, environment=not options.no_environment)
    except OSError as error:
        print(f"proxyexec: {options.file}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 2
    for line in tree_of(spec):
        say(shown(line))
    warnings = warnings_of(spec)
    if warnings:
        say("")
    for warning in warnings:
        say(shown(f"note: {warning}"))
    return _try(spec, options.timeout) if options.trial else 0


def _try(spec: StoreExecutorSpec, timeout: float) -> int:
    from proxyexec._config_trial import TrialError, try_out  # noqa: PLC0415

    say("")
    try:
        for line in try_out(spec, timeout):
            say(line)
            sys.stdout.flush()
    except TrialError as error:
        print(f"proxyexec: {told(error)}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("proxyexec: interrupted; what was built has been taken down", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _schema(_: argparse.Namespace) -> int:
    from proxyexec.config import schema  # noqa: PLC0415

    say(json.dumps(schema(), indent=2))
    return 0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds
