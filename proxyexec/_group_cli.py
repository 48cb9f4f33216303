"""The commands ``proxyexec group …``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from proxyexec._cli_parts import (
    add_store,
    command,
    many,
    one_line,
    print_json,
    print_table,
    say,
    when,
)

if TYPE_CHECKING:
    from proxyexec_connectors.durable import DurableSession

__all__ = ["add_to", "print_sessions"]


def add_to(subparsers: Any) -> None:
    """Add the commands to those of a parser.

    Args:
        subparsers: what ``add_subparsers()`` has returned. The command that is chosen is in the
            attribute ``run`` of the arguments: called with these, it returns the exit status.
    """
    group = command(
        subparsers,
        "group",
        "list, show, cancel and delete task groups",
        "proxyexec group list file:///shared/groups",
    )
    commands = group.add_subparsers(metavar="COMMAND", required=True)
    listing = command(
        commands,
        "list",
        "list the groups of a place",
        "proxyexec group list redis://host:6379/0 --json",
        _list,
    )
    shown = command(
        commands,
        "show",
        "show how far the tasks of a group are",
        "proxyexec group show file:///shared/groups survey-2024 --state failed",
        _show,
    )
    cancelled = command(
        commands,
        "cancel",
        "have no task of a group started any more",
        "proxyexec group cancel file:///shared/groups survey-2024",
        _cancel,
    )
    deleted = command(
        commands,
        "delete",
        "remove a group with all its data",
        "proxyexec group delete file:///shared/groups survey-2024",
        _delete,
    )
    for one in (listing, shown, cancelled, deleted):
        add_store(one)
    for one in (shown, cancelled, deleted):
        one.add_argument("id", metavar="ID", help="of the group")
    shown.add_argument(
        "--state",
        choices=["submitted", "running", "done", "failed", "cancelled"],
        help="only tasks that are in this state",
    )


def _list(arguments: argparse.Namespace) -> int:
    from proxyexec.groups import list_groups  # noqa: PLC0415

    print_sessions(list_groups(arguments.store), as_json=arguments.json)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from proxyexec.groups import STATES, Group  # noqa: PLC0415

    with Group(arguments.store, arguments.id) as group:
        tasks = group.tasks()
    counts = {state: sum(task.state == state for task in tasks) for state in STATES}
    if arguments.state is not None:
        tasks = [task for task in tasks if task.state == arguments.state]
    if arguments.json:
        print_json({"id": arguments.id, "counts": counts, "tasks": [t._asdict() for t in tasks]})
        return 0
    print_table(
        ("TASK", "FUNCTION", "STATE", "SUBMITTED", "SECONDS", "ERROR"),
        [
            (
                task.id,
                task.name,
                task.state,
                when(task.created),
                "" if task.seconds is None else f"{task.seconds:.3f}",
                one_line(task.error),
            )
            for task in tasks
        ],
    )
    say(", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no tasks")
    return 0


def _cancel(arguments: argparse.Namespace) -> int:
    from proxyexec.groups import Group  # noqa: PLC0415

    with Group(arguments.store, arguments.id) as group:
        count = group.cancel()
    if arguments.json:
        print_json({"id": arguments.id, "cancelled": count})
    else:
        say(f"cancelled {many(count, 'task')} of {arguments.id}")
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    from proxyexec.groups import Group  # noqa: PLC0415

    Group(arguments.store, arguments.id).delete()
    if arguments.json:
        print_json({"id": arguments.id, "deleted": True})
    else:
        say(f"deleted {arguments.id}")
    return 0


def print_sessions(sessions: Sequence[DurableSession], *, as_json: bool) -> None:
    """Print a table of groups."""
    if as_json:
        print_json([one._asdict() for one in sessions])
        return
    if not sessions:
        say("no groups")
    print_table(
        ("GROUP", "CREATED", "LAST USED", "MAX AGE", "OBJECTS", "BYTES"),
        [
            (
                one.name,
                when(one.created),
                when(one.used),
                f"{one.max_age:,.0f} s",
                f"{one.objects:,}",
                f"{one.bytes:,}",
            )
            for one in sessions
        ],
    )
