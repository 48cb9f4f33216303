"""The commands ``proxyexec store …``."""

from __future__ import annotations

import argparse
from typing import Any

from proxyexec._cli_parts import add_store, command, many, say

__all__ = ["add_to"]


def add_to(subparsers: Any) -> None:
    """Add the commands to those of a parser; see :func:`proxyexec._group_cli.add_to`."""
    store = command(
        subparsers, "store", "clean up where data are", "proxyexec store gc file:///shared/groups"
    )
    commands = store.add_subparsers(metavar="COMMAND", required=True)
    collecting = command(
        commands,
        "gc",
        "remove the groups that have not been used for longer than their age",
        "proxyexec store gc file:///shared/groups",
        _collect,
    )
    add_store(collecting)


def _collect(arguments: argparse.Namespace) -> int:
    from proxyexec._group_cli import print_sessions  # noqa: PLC0415 - "--help" needs none of it
    from proxyexec.groups import collect_groups  # noqa: PLC0415

    removed = collect_groups(arguments.store)
    if removed or arguments.json:
        print_sessions(removed, as_json=arguments.json)
    if not arguments.json:
        size = sum(one.bytes for one in removed)
        say(f"removed {many(len(removed), 'group')}, {size:,} bytes")
    return 0
