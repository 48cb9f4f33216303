"""The rules of ``proxyexec_connectors._segments`` as a model, and all interleavings of its steps.

One segment, two writers, two readers, an evictor for each object, and who discards. The first
writer may be killed between any two steps. Searched exhaustively: no reader ever sees anything
but its object, whole; nobody touches pages that are gone; who asks for an object that is there gets
it. Leaving out any one rule is found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

FREE = "free"


class Violation(Exception):
    """Something happened that must not."""


@dataclasses.dataclass(frozen=True)
class Segment:
    name: str | None = "one"  # of the object, or free0, free1, …, or gone
    frees: int = 0
    header: str = "one"
    halves: tuple[str, str] = ("one", "one")
    truncated: bool = False
    writer: str | None = None  # holds the exclusive lock
    readers: frozenset[str] = frozenset()  # hold a shared one

    def but(self, **changes: object) -> Segment:
        return dataclasses.replace(self, **changes)

    @property
    def is_locked(self) -> bool:
        return self.writer is not None or bool(self.readers)

    @property
    def is_free(self) -> bool:
        return self.name is not None and self.name.startswith(FREE)


# An actor's state: its next step, and the name of the free segment that it has seen. A step
# returns the segment and the actor's state; nothing, where the actor has to wait.
Actor = tuple[str, "str | None"]
Steps = Iterator[tuple[Segment, Actor]]

END: Actor = ("end", None)


def write(me: str, segment: Segment, actor: Actor, broken: str) -> Steps:
    """Write the object ``me``."""
    step, seen = actor
    order = ["rename", "unlock"] if broken != "unlocks before naming" else ["unlock", "rename"]
    if step == "start" and segment.is_free:
        yield segment, ("lock", segment.name)
    elif step == "lock" and segment.is_locked and broken != "writes without lock":
        yield segment, END
    elif step == "lock":
        yield segment.but(writer=me), ("verify", seen)
    elif step == "verify" and segment.name != seen and broken != "does not look again":
        yield segment.but(writer=None), END
    elif step == "verify":
        yield segment, ("empty", seen)
    elif step == "empty":
        header = segment.header if broken == "leaves the header until the end" else ""
        yield touched(segment).but(header=header), ("first", seen)
    elif step == "first":
        yield touched(segment).but(halves=(me, segment.halves[1])), ("second", seen)
    elif step == "second":
        yield touched(segment).but(halves=(segment.halves[0], me)), ("whole", seen)
    elif step == "whole":
        yield touched(segment).but(header=me), (order[0], seen)
    elif step == "rename":
        # It fails if the segment was discarded meanwhile.
        name = me if segment.name == seen else segment.name
        yield segment.but(name=name), (following(order, "rename"), seen)
    elif step == "unlock":
        yield segment.but(writer=None), (following(order, "unlock"), seen)


def following(order: list[str], step: str) -> str:
    return [*order, "end"][order.index(step) + 1]


def touched(segment: Segment) -> Segment:
    if segment.truncated:
        raise Violation("a page is used that is gone: SIGBUS")
    return segment


def die(me: str, segment: Segment, actor: Actor) -> Steps:
    """The kernel lets go of what a killed process had locked."""
    if actor[0] not in ("start", "end"):
        yield segment.but(writer=None if segment.writer == me else segment.writer), END


def read(me: str, key: str, segment: Segment, actor: Actor, broken: str) -> Steps:
    step, _ = actor
    readers = segment.readers | {me}
    if broken == "reads without lock":
        readers = segment.readers
    gone = segment.but(readers=segment.readers - {me}), END
    if step == "start" and segment.name == key:
        yield segment, ("lock", None)
    elif step == "lock":
        if segment.writer is None or broken == "reads without lock":
            yield segment.but(readers=readers), ("header", None)
        elif segment.name == key and broken != "does not wait for who has just named it":
            yield segment, ("wait", None)
        elif segment.name == key:
            raise Violation("an object that is there is said to be missing")
        else:
            yield gone
    elif step == "wait" and segment.writer is None:
        yield segment.but(readers=readers), ("header", None)
    elif step == "header":
        if broken == "does not look at the header" or (
            segment.header == key and not segment.truncated
        ):
            yield segment, ("first", None)
        elif segment.name == key:
            raise Violation("an object that is there is said to be missing")
        else:
            yield gone
    elif step in ("first", "second"):
        seen = touched(segment).halves[step == "second"]
        if seen != key:
            raise Violation(f"who reads {key} sees {seen}")
        yield (segment, ("second", None)) if step == "first" else gone


def evict(key: str, segment: Segment, actor: Actor) -> Steps:
    if actor[0] == "start" and segment.name == key:
        yield segment.but(name=f"{FREE}{segment.frees}", frees=segment.frees + 1), END


def discard(segment: Segment, actor: Actor, broken: str) -> Steps:
    step, seen = actor
    order = ["unlink", "lock", "truncate"]
    if broken == "unlinks last":
        order = ["lock", "truncate", "unlink"]
    if broken == "truncates without lock":
        order = ["unlink", "truncate"]
    if step == "start" and segment.is_free:
        yield segment, (order[0], segment.name)
    elif step == "unlink":
        if segment.name == seen:
            yield segment.but(name=None), (following(order, "unlink"), seen)
        else:
            yield segment, END
    elif step == "lock":
        if segment.is_locked:
            yield segment, END
        else:
            yield segment.but(writer="discarder"), ("truncate", seen)
    elif step == "truncate":
        writer = None if segment.writer == "discarder" else segment.writer
        yield segment.but(truncated=True, writer=writer), (following(order, "truncate"), seen)


def moves(segment: Segment, actors: tuple[Actor, ...], broken: str) -> Iterator[tuple[int, Steps]]:
    yield 0, write("two", segment, actors[0], broken)
    yield 0, die("two", segment, actors[0])
    yield 1, write("three", segment, actors[1], broken)
    yield 2, read("r1", "one", segment, actors[2], broken)
    yield 3, read("r2", "two", segment, actors[3], broken)
    yield 4, evict("one", segment, actors[4])
    yield 5, evict("two", segment, actors[5])
    yield 6, discard(segment, actors[6], broken)


def explore(broken: str = "") -> tuple[int, set[tuple[str, ...]]]:
    """Go through all that can happen; return the number of states, and where actors end."""
    first = (Segment(), (("start", None),) * 7)
    seen, pending = {first}, [first]
    ends = set()
    while pending:
        segment, actors = pending.pop()
        stuck = True
        for number, steps in moves(segment, actors, broken):
            for changed, actor in steps:
                stuck = False
                following_state = (changed, (*actors[:number], actor, *actors[number + 1 :]))
                if following_state not in seen:
                    seen.add(following_state)
                    pending.append(following_state)
        if stuck:
            ends.add(tuple(step for step, _ in actors))
            if segment.is_locked:
                raise Violation("a lock is left")
    return len(seen), ends


def test_no_interleaving_shows_what_it_must_not():
    states, ends = explore()
    assert states > 1000
    # Nobody is stuck in the middle, and everybody can get to the end.
    assert all(step in ("start", "end") for end in ends for step in end)
    assert any(end[0] == end[3] == "end" for end in ends)


@pytest.mark.parametrize(
    "broken",
    [
        "writes without lock",
        "does not look again",
        "leaves the header until the end",
        "unlocks before naming",
        "reads without lock",
        "does not wait for who has just named it",
        "does not look at the header",
        "truncates without lock",
        "unlinks last",
    ],
)
def test_every_rule_is_needed(broken):
    with pytest.raises(Violation):
        explore(broken)
