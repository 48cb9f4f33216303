"""The commands ``proxyexec store …``."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from proxyexec._cli_parts import (
    add_store,
    ago,
    command,
    many,
    print_json,
    print_table,
    say,
    shown,
    when,
)

if TYPE_CHECKING:
    from proxyexec_connectors.listing import Listing, StoredSession

    from proxyexec._store_listing import Totals

__all__ = ["add_to"]

_ROWS = 40

_LOOKS = """\
It can be somebody else's, in use or left by a process that has died; looking changes nothing.
"""


def add_to(subparsers: Any) -> None:
    """Add the commands to those of a parser; see :func:`proxyexec._group_cli.add_to`."""
    store = command(
        subparsers,
        "store",
        "see what is stored in a place, and clean up there",
        "proxyexec store ls redis://host:6379/0\nproxyexec store gc file:///shared/groups",
    )
    commands = store.add_subparsers(metavar="COMMAND", required=True)
    listing = command(
        commands,
        "ls",
        "list the sessions in a place: whose they are, since when, and how much is in them",
        "proxyexec store ls file://\nproxyexec store ls env:STORE --json",
        _list,
        _LOOKS,
    )
    showing = command(
        commands,
        "show",
        "show the objects of one session, or one object",
        "proxyexec store show file:// session-5d41402abc4b2a76\n"
        "proxyexec store show file:// 5d41 1b2c3d4e-7",
        _show,
        _LOOKS
        + """\
Types are read off how objects begin; nothing is unpickled. Which call has stored an object, and
which futures and proxies hold it, only the process knows that owns the session: call leaks() of
its executor.
""",
    )
    summing = command(
        commands,
        "du",
        "add up how many bytes the sessions of a place take",
        "proxyexec store du file:///shared/objects",
        _sum,
        _LOOKS,
    )
    collecting = command(
        commands,
        "gc",
        "remove the groups that have not been used for longer than their age",
        "proxyexec store gc file:///shared/groups",
        _collect,
    )
    for one in (listing, showing, summing, collecting):
        add_store(one)
    showing.add_argument(
        "session",
        metavar="SESSION",
        nargs="?",
        help="its name, or how that begins; not needed if there is only one",
    )
    showing.add_argument("key", metavar="KEY", nargs="?", help="of one object")
    showing.add_argument(
        "--sort",
        choices=["bytes", "since", "key"],
        default="bytes",
        help="which objects come first: the largest (which is the default), the oldest, or by key",
    )
    showing.add_argument(
        "--limit",
        type=_limit,
        default=_ROWS,
        metavar="N",
        help=f"show so many objects, {_ROWS} if not told; 0 for all",
    )


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of objects, such as 100, or 0")
    return int(text)


def _list(arguments: argparse.Namespace) -> int:
    from proxyexec import _store_listing as listed  # noqa: PLC0415 - "--help" needs none of it

    with listed.look_at(arguments.store) as listing:
        sessions = listing.sessions()
    if arguments.json:
        print_json([one._asdict() for one in sessions])
        return 0
    print_table(
        ("SESSION", "OWNER", "STATE", "SINCE", "AGE", "OBJECTS", "BYTES"),
        [
            (
                shown(one.name),
                shown(listed.owner_of(one)),
                listed.state_of(one),
                when(one.since),
                "" if one.since is None else ago(time.time() - one.since),
                f"{one.objects:,}",
                f"{one.bytes:,}",
            )
            for one in sessions
        ],
        right=("OBJECTS", "BYTES"),
    )
    say(_in_words(listed.totals_of(sessions)))
    dead = listed.totals_of([one for one in sessions if one.state == "dead"])
    if dead.sessions:
        say(f"of dead owners: {_in_words(dead)}; the next store that opens here removes them")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from proxyexec import _store_listing as listed  # noqa: PLC0415

    name = arguments.session or listed.session_in(arguments.store)
    with listed.look_at(arguments.store) as listing:
        try:
            session = listed.find_session(listing, name)
            if arguments.key is not None:
                return _show_object(listing, session, arguments)
        except listed.NotThereError as error:
            print(f"proxyexec: {shown(str(error))}", file=sys.stderr)  # noqa: T201
            return 1
        objects = listed.in_order(listing.objects(session.name), arguments.sort)
        told = [
            listed.tell(listing, session.name, one) for one in objects[: arguments.limit or None]
        ]
    if arguments.json:
        rows = [{"key": o.key, "bytes": o.bytes, "since": o.since, "type": o.type} for o in told]
        print_json(
            {"session": session._asdict(), "objects": rows, "left_out": len(objects) - len(told)}
        )
        return 0
    _print_facts(
        {
            "session": session.name,
            "owner": listed.owner_of(session),
            "state": listed.state_of(session),
            "since": when(session.since),
            "objects": f"{session.objects:,}",
            "bytes": f"{session.bytes:,}",
            "idle bytes": f"{session.idle_bytes:,}" if session.idle_bytes else "",
        }
    )
    if told:
        say("")
    print_table(
        ("KEY", "SINCE", "BYTES", "TYPE"),
        [(shown(one.key), when(one.since), f"{one.bytes:,}", shown(one.type)) for one in told],
        right=("BYTES",),
    )
    if len(told) < len(objects):
        say(f"{len(objects) - len(told):,} more: --limit 0 shows all")
    if session.kind == "durable":
        group = session.name.removeprefix("durable-")
        say(f"what its calls are is told by: proxyexec group show STORE {group}")
    elif session.state == "alive" and objects:
        say("who holds them is known to their owner: see leaks() of its executor")
    return 0


def _show_object(listing: Listing, session: StoredSession, arguments: argparse.Namespace) -> int:
    from proxyexec import _store_listing as listed  # noqa: PLC0415

    found = [one for one in listing.objects(session.name) if one.key == arguments.key]
    if not found:
        raise listed.NotThereError(
            f"there is no object {arguments.key!r} in {session.name} of {listing.url}"
        )
    told = listed.tell(listing, session.name, found[0])
    facts = {"key": told.key, "bytes": told.bytes, "since": told.since, "type": told.type}
    if arguments.json:
        print_json({"session": session._asdict(), "object": {**facts, "frames": told.frames}})
        return 0
    shown_frames = ", ".join(f"{one:,}" for one in told.frames[:10])
    _print_facts(
        {
            "key": told.key,
            "session": session.name,
            "owner": listed.owner_of(session),
            "state": listed.state_of(session),
            "since": when(told.since),
            "bytes": f"{told.bytes:,}",
            "type": told.type or "(not known)",
            "frames": f"{shown_frames}{', ...' if len(told.frames) > 10 else ''}",
        }
    )
    return 0


def _sum(arguments: argparse.Namespace) -> int:
    from proxyexec import _store_listing as listed  # noqa: PLC0415

    with listed.look_at(arguments.store) as listing:
        sessions = sorted(listing.sessions(), key=lambda one: (-one.bytes, one.name))
    totals = listed.totals_of(sessions)
    if arguments.json:
        by_state = {
            state: vars(listed.totals_of([o for o in sessions if listed.state_of(o) == state]))
            for state in sorted({listed.state_of(one) for one in sessions})
        }
        print_json({**vars(totals), "by_state": by_state})
        return 0
    rows = [
        (
            f"{one.bytes:,}",
            f"{one.idle_bytes:,}",
            f"{one.objects:,}",
            listed.state_of(one),
            shown(one.name),
        )
        for one in sessions
    ]
    total = (f"{totals.bytes:,}", f"{totals.idle_bytes:,}", f"{totals.objects:,}", "", "total")
    numbers = ("BYTES", "IDLE", "OBJECTS")
    print_table((*numbers, "STATE", "SESSION"), [*rows, total], right=numbers)
    return 0


def _collect(arguments: argparse.Namespace) -> int:
    from proxyexec._group_cli import print_sessions  # noqa: PLC0415
    from proxyexec.groups import collect_groups  # noqa: PLC0415

    removed = collect_groups(arguments.store)
    if removed or arguments.json:
        print_sessions(removed, as_json=arguments.json)
    if not arguments.json:
        size = sum(one.bytes for one in removed)
        say(f"removed {many(len(removed), 'group')}, {size:,} bytes")
    return 0


def _in_words(totals: Totals) -> str:
    idle = f", {totals.idle_bytes:,} idle" if totals.idle_bytes else ""
    return (
        f"{many(totals.sessions, 'session')}, {many(totals.objects, 'object')}, "
        f"{many(totals.bytes, 'byte')}{idle}"
    )


def _print_facts(facts: dict[str, str]) -> None:
    """Print what there is of some facts, one a line."""
    known = {name: shown(fact) for name, fact in facts.items() if fact}
    width = max(map(len, known))
    for name, fact in known.items():
        say(f"{name.ljust(width)}  {fact}")
