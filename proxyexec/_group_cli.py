"""The commands ``proxyexec group …`` and ``proxyexec store gc``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxyexec_connectors.durable import DurableSession

__all__ = ["add_to"]

_STORE = (
    "URL of the place: file:///a/directory, redis://host:6379/0, ...; or env:NAME, to take it from "
    "the environment, as everybody can see the arguments of commands"
)


def add_to(subparsers: Any) -> None:
    """Add the commands to those of a parser.

    Args:
        subparsers: what ``add_subparsers()`` has returned. The command that is chosen is in the
            attribute ``run`` of the arguments: called with these, it returns the exit status.
    """
    group = _command(
        subparsers,
        "group",
        "list, show, cancel and delete task groups",
        "proxyexec group list file:///shared/groups",
    )
    commands = group.add_subparsers(metavar="COMMAND", required=True)
    listing = _command(
        commands,
        "list",
        "list the groups of a place",
        "proxyexec group list redis://host:6379/0 --json",
        _list,
    )
    shown = _command(
        commands,
        "show",
        "show how far the tasks of a group are",
        "proxyexec group show file:///shared/groups survey-2024 --state failed",
        _show,
    )
    cancelled = _command(
        commands,
        "cancel",
        "have no task of a group started any more",
        "proxyexec group cancel file:///shared/groups survey-2024",
        _cancel,
    )
    deleted = _command(
        commands,
        "delete",
        "remove a group with all its data",
        "proxyexec group delete file:///shared/groups survey-2024",
        _delete,
    )
    for one in (listing, shown, cancelled, deleted):
        _add_store(one)
    for one in (shown, cancelled, deleted):
        one.add_argument("id", metavar="ID", help="of the group")
    shown.add_argument(
        "--state",
        choices=["submitted", "running", "done", "failed", "cancelled"],
        help="only tasks that are in this state",
    )
    store = _command(
        subparsers, "store", "clean up where data are", "proxyexec store gc file:///shared/groups"
    )
    commands = store.add_subparsers(metavar="COMMAND", required=True)
    collecting = _command(
        commands,
        "gc",
        "remove the groups that have not been used for longer than their age",
        "proxyexec store gc file:///shared/groups",
        _collect,
    )
    _add_store(collecting)


def _command(
    subparsers: Any,
    name: str,
    what: str,
    example: str,
    run: Callable[[argparse.Namespace], int] | None = None,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if run is not None:
        parser.set_defaults(run=_reporting(run))
    return parser


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", type=_url, help=_STORE)
    parser.add_argument("--json", action="store_true", help="write JSON, for programs")


def _url(text: str) -> str:
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
            ProxyExecError,
            UnknownSchemeError,
        )

        try:
            return run(arguments)
        except (NotDurableError, UnknownSchemeError, MissingExtraError) as error:
            print(f"proxyexec: {error}", file=sys.stderr)  # noqa: T201
            return 2
        except ProxyExecError as error:
            print(f"proxyexec: {error}", file=sys.stderr)  # noqa: T201
            return 1
        except ValueError as error:  # a name, or a URL, that is none
            print(f"proxyexec: {error}", file=sys.stderr)  # noqa: T201
            return 2

    return running


def _list(arguments: argparse.Namespace) -> int:
    from proxyexec.groups import list_groups  # noqa: PLC0415

    _print_sessions(list_groups(arguments.store), as_json=arguments.json)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from proxyexec.groups import STATES, Group  # noqa: PLC0415

    with Group(arguments.store, arguments.id) as group:
        tasks = group.tasks()
    counts = {state: sum(task.state == state for task in tasks) for state in STATES}
    if arguments.state is not None:
        tasks = [task for task in tasks if task.state == arguments.state]
    if arguments.json:
        _print_json({"id": arguments.id, "counts": counts, "tasks": [t._asdict() for t in tasks]})
        return 0
    _print_table(
        ("TASK", "FUNCTION", "STATE", "SUBMITTED", "SECONDS", "ERROR"),
        [
            (
                task.id,
                task.name,
                task.state,
                _when(task.created),
                "" if task.seconds is None else f"{task.seconds:.3f}",
                _one_line(task.error),
            )
            for task in tasks
        ],
    )
    print(", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no tasks")  # noqa: T201
    return 0


def _cancel(arguments: argparse.Namespace) -> int:
    from proxyexec.groups import Group  # noqa: PLC0415

    with Group(arguments.store, arguments.id) as group:
        count = group.cancel()
    if arguments.json:
        _print_json({"id": arguments.id, "cancelled": count})
    else:
        print(f"cancelled {_many(count, 'task')} of {arguments.id}")  # noqa: T201
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    from proxyexec.groups import Group  # noqa: PLC0415

    Group(arguments.store, arguments.id).delete()
    if arguments.json:
        _print_json({"id": arguments.id, "deleted": True})
    else:
        print(f"deleted {arguments.id}")  # noqa: T201
    return 0


def _collect(arguments: argparse.Namespace) -> int:
    from proxyexec.groups import collect_groups  # noqa: PLC0415

    removed = collect_groups(arguments.store)
    if removed or arguments.json:
        _print_sessions(removed, as_json=arguments.json)
    if not arguments.json:
        size = sum(one.bytes for one in removed)
        print(f"removed {_many(len(removed), 'group')}, {size:,} bytes")  # noqa: T201
    return 0


def _print_sessions(sessions: Sequence[DurableSession], *, as_json: bool) -> None:
    if as_json:
        _print_json([one._asdict() for one in sessions])
        return
    if not sessions:
        print("no groups")  # noqa: T201
    _print_table(
        ("GROUP", "CREATED", "LAST USED", "MAX AGE", "OBJECTS", "BYTES"),
        [
            (
                one.name,
                _when(one.created),
                _when(one.used),
                f"{one.max_age:,.0f} s",
                f"{one.objects:,}",
                f"{one.bytes:,}",
            )
            for one in sessions
        ],
    )


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())  # noqa: T201


def _print_json(what: Any) -> None:
    print(json.dumps(what, indent=2))  # noqa: T201


def _one_line(text: str) -> str:
    return " ".join(text.split())[:80]


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _when(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
