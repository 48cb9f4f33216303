"""Schedules of faults, drawn by chance from a seed, and what must hold under any of them.

A schedule is a place, a kind of executor, and steps: tasks of many kinds, and faults. The program
that takes the steps knows what each future must come to, and which errors the faults so far
excuse. What happens to servers and to the place, and to the program as a whole, is done to it from
outside, while it goes on. In the end everything is let go of, and what is left is counted.

One seed always makes the same schedule; what the operating system makes of it may differ.

    python -m tests.chaos.schedules --count 200
    python -m tests.chaos.schedules --seed 17
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from proxyexec import Store
from tests.chaos import suffering
from tests.chaos.census import family
from tests.chaos.client import AWAITED, FILL, MAKE_ROOM, SIZES, WORK, take_steps
from tests.chaos.places import KINDS, MOUNTED, place_of
from tests.chaos.programs import Program, program

# What is done to the program from outside, by the place's kind.
OUTSIDE = {
    "tmpfs": ["stop the client"],
    "disk": ["stop the client"],
    MOUNTED: ["stop the client", FILL, FILL, FILL],
    "redis": [
        "stop the client",
        "pause the server",
        "restart the server empty",
        "cut all connections",
        "lose an object",
    ],
}

# What the program does to itself and to its workers.
INSIDE = [f"kill a worker {stage.__name__}" for stage in suffering.STAGES] + ["fork and exit"]

ENDS = ["shut down", "leave without shutting down", "be killed"]


@dataclass
class Schedule:
    """What is done, in which order, and where."""

    seed: int
    place: str
    start: str
    lazy: bool
    nested: bool
    end: str
    steps: list[Any] = field(default_factory=list)

    @classmethod
    def drawn(cls, seed: int) -> Schedule:
        """Draw the schedule of a seed."""
        chance = random.Random(seed)
        place = chance.choice([*KINDS, "redis", MOUNTED])
        one = cls(
            seed=seed,
            place=place,
            start=chance.choice(["fork", "fork", "forkserver"]),
            lazy=chance.random() < 0.5,
            nested=chance.random() < 0.3,
            end=chance.choice(ENDS),
        )
        full = 0  # for how many more steps
        for _ in range(chance.randint(4, 12)):
            if chance.random() < 0.45:
                step = ["fault", chance.choice([*OUTSIDE[place], *INSIDE])]
            else:
                kind = chance.choice([*WORK, *WORK, "drop", "cancel", "look"])
                step = [kind, chance.choice(SIZES), chance.randint(1, 12)]
            if step[1] == FILL:
                if full:
                    continue
                full = 4
            one.steps.append(step)
            if full:
                full -= 1
                if not full:
                    one.steps.append(["fault", MAKE_ROOM])
        if full:
            one.steps.append(["fault", MAKE_ROOM])
        return one

    def faults(self) -> list[str]:
        """The faults of the schedule, in order, its end included."""
        named = [step[1] for step in self.steps if step[0] == "fault"]
        return [*named, f"end: {self.end}"]


@dataclass
class Outcome:
    """What came of a schedule."""

    seed: int
    place: str
    faults: list[str]
    right: int = 0
    excused: int = 0
    wrong: list[str] = field(default_factory=list)
    hung: bool = False
    left: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not (self.wrong or self.hung or self.left)


def carry_out(schedule: Schedule) -> Outcome:
    """Run a schedule, do what is to be done from outside, and count what is left."""
    outcome = Outcome(schedule.seed, schedule.place, schedule.faults())
    with place_of(schedule.place) as place, family() as ours:
        url = place.url + ("?grace=20&timeout=10" if schedule.place == "redis" else "")
        with program(take_steps, asdict(schedule), url, family=ours) as client:
            try:
                _attend(client, place, url, outcome)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                outcome.hung = "says nothing" in str(error) or not isinstance(error, AssertionError)
                outcome.wrong.append(str(error))
        outcome.left += [f"process {name}" for name in ours.members().values()]
        ours.kill()
        _sweep(place, url, killed=schedule.end == "be killed")
        outcome.left += _left(place)
    return outcome


def _attend(client: Program, place: Any, url: str, outcome: Outcome) -> None:
    chance = random.Random(outcome.seed)
    while True:
        kind, *what = client.hear()
        if kind == "fault":
            _do(what[0], client, place, url, chance)
            if what[0] in AWAITED:
                client.tell()
        elif kind == "ending":
            if what[0] == "be killed":
                client.kill()
                client.process.wait()
                return
        else:
            counts, wrong = what
            outcome.right, outcome.excused = counts.get("right", 0), counts.get("excused", 0)
            outcome.wrong = wrong
            break
    code, errors = client.ended()
    if code or "Traceback" in errors:
        outcome.wrong.append(f"exit code {code}: {errors}")


def _do(fault: str, client: Program, place: Any, url: str, chance: random.Random) -> None:
    if fault == "stop the client":
        client.kill(signal.SIGSTOP)
        with Store.from_url(url) as other:  # which sweeps
            assert other.proxy([1]) == [1]
        client.kill(signal.SIGCONT)
    elif fault == "pause the server":
        place.server.process.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        place.server.process.send_signal(signal.SIGCONT)
    elif fault == "restart the server empty":
        place.server.kill()
        place.server.start()
    elif fault == "cut all connections":
        with place.server.client() as server:
            server.client_kill_filter(_type="normal", skipme=True)
    elif fault == FILL:
        place.fill(left=chance.randrange(4_000_000))
    elif fault == MAKE_ROOM:
        place.make_room()
    elif fault == "lose an object":
        names = place.objects()
        if names:
            with place.server.client() as server:
                server.delete(names[0])


def _sweep(place: Any, url: str, *, killed: bool) -> None:
    if killed and url.startswith("redis"):
        # What the grace is for is tested elsewhere; here, it is over.
        with place.server.client() as server:
            for name in server.scan_iter("proxyexec:*:alive"):
                server.delete(name)
    with Store.from_url(url):
        pass


def _left(place: Any) -> list[str]:
    if hasattr(place, "server"):
        return [name for name in place.residue() if name.count(":") > 1]
    return place.residue()


def main() -> int:
    """Run schedules and report; return 1 if one of them did not hold."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: python -m tests.chaos.schedules --count 20 --first 100",
    )
    parser.add_argument("--count", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seed", type=int, help="only this one, with all its steps shown")
    parser.add_argument("--json", metavar="FILE", help="write what came of each")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.count)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
        print(json.dumps(asdict(Schedule.drawn(options.seed)), indent=1))
    outcomes = []
    for seed in seeds:
        outcome = carry_out(Schedule.drawn(seed))
        outcomes.append(outcome)
        state = "holds" if outcome.passed else f"DOES NOT HOLD: {asdict(outcome)}"
        print(f"seed {seed} ({outcome.place}, {', '.join(outcome.faults)}): {state}", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(outcome) for outcome in outcomes], file, indent=1)
    for name in ("right", "excused"):
        print(f"{name}: {sum(getattr(outcome, name) for outcome in outcomes)}", end=", ")
    bad = [outcome.seed for outcome in outcomes if not outcome.passed]
    print(f"{len(outcomes)} schedules; not holding: {bad or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
