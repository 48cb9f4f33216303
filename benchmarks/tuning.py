"""Compare policies: the best fixed one that a search finds, ``ProxyAdaptive``, and no proxying.

Four pipelines (images, tables, text, a model) run on a process pool with files, on one with Redis,
and on Dask with Redis. README.md in this directory says what exactly is timed.

    python benchmarks/tuning.py --quick
    python benchmarks/tuning.py --json tuning.json
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

# Workers are what runs in parallel; numerical libraries look when they are loaded.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from command import (  # noqa: E402 - after the above
    at_least,
    check_directories,
    end_tidily_when_terminated,
    write_results,
)
from machine import describe_machine, in_a_line  # noqa: E402
from measure import quartiles  # noqa: E402
from over_redis import Server  # noqa: E402
from screen import Progress, duration, show_table  # noqa: E402
from tuning_pipelines import PIPELINES, Pipeline  # noqa: E402
from tuning_predictions import Prediction, predict, stored_in, traced  # noqa: E402
from tuning_setups import ADAPTIVE, FIXED, NEVER, QUICK, SETUPS, executors  # noqa: E402

DISTRIBUTIONS = (
    *("proxyexec", "distributed", "redis", "hiredis", "cryptography"),
    *("numpy", "pandas", "scikit-image", "scikit-learn"),
)

# How many times the median of the best fixed policy, and of none, the adaptive one's may be; and in
# which share of the cases the former.
_OF_BEST = 1.10
_OF_NEVER = 1.05
_CASES = 0.9

# Rounds that come before those that are kept: executors learn, and so do allocators.
_FIRST_ROUNDS = 2

# Of those that are kept, which tell what is best, and which how long that takes.
_ALL, _TOLD_BY, _MEASURED_BY = slice(None), slice(None, None, 2), slice(1, None, 2)


@dataclass
class Case:
    """One pipeline in one setup, and what each policy took."""

    pipeline: str
    setup: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    stored: dict[str, Counter[tuple[object, ...]]] = field(default_factory=dict)
    """By policy, what it had stored."""
    calibration_seconds: float | None = None
    frozen: str = ""
    predicted: Prediction | None = None

    def alike(self, policy: str) -> list[str]:
        """The fixed policies that had stored what this one had: here, they are the same."""
        if policy == ADAPTIVE:
            return [policy]
        mine = self.stored[policy]
        return [one for one in self.fixed if self.stored[one] == mine]

    def median(self, policy: str, rounds: slice = _ALL) -> float:
        """The median of a policy's samples, and of those of others that are the same."""
        samples = [
            seconds
            for one in self.alike(policy)
            for seconds in self.seconds[one][rounds] or self.seconds[one]
        ]
        return statistics.median(samples)

    def medians(self, rounds: slice = _ALL) -> dict[str, float]:
        """Those of all fixed policies."""
        return {one: self.median(one, rounds) for one in self.fixed}

    @property
    def fixed(self) -> list[str]:
        """The fixed policies."""
        return [one for one in self.seconds if one != ADAPTIVE]

    @property
    def best(self) -> str:
        """The fixed policy that is fastest, as every other round tells."""
        told = self.medians(_TOLD_BY)
        return min(told, key=told.__getitem__)

    @property
    def of_best(self) -> float:
        """How many times as long as that the adaptive one takes, in the other rounds.

        By the same rounds, the best of many would be the luckiest.
        """
        return self.median(ADAPTIVE, _MEASURED_BY) / self.median(self.best, _MEASURED_BY)

    @property
    def of_never(self) -> float:
        """How many times as long as without proxying."""
        return self.median(ADAPTIVE) / self.median(NEVER)


class WrongResultError(Exception):
    """A pipeline came to something else than without an executor."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    options = _options(arguments)
    executable = shutil.which("redis-server")
    if executable is None:
        print("nothing to do: there is no redis-server", file=sys.stderr)
        return 1
    machine = describe_machine(DISTRIBUTIONS)
    print(in_a_line(machine, f"{options.workers} workers"), file=sys.stderr)
    cases: list[Case] = []
    interrupted = False
    end_tidily_when_terminated()
    with tempfile.TemporaryDirectory() as directory:
        # What is measured here is for this run: neither read from the user's cache nor put there.
        os.environ["XDG_CACHE_HOME"] = directory
        with contextlib.closing(Server(executable, directory)) as server:
            machine["versions"]["redis-server"] = server.version
            try:
                _run(options, server.url, cases)
            except KeyboardInterrupt:
                print("interrupted; this is what there is", file=sys.stderr)
                interrupted = True
    cases = [case for case in cases if all(case.seconds.get(one) for one in options.policies)]
    tables = _tables(cases)
    for table in tables:
        show_table(**table, group_by_first=True)
    if options.json is not None:
        results = [_entry(case) for case in cases]
        write_results(options.json, machine, tables, workers=options.workers, cases=results)
    return 130 if interrupted else 0


def _run(options: argparse.Namespace, redis_url: str, cases: list[Case]) -> None:
    rounds = _FIRST_ROUNDS + options.repeat
    total = len(options.setups) * len(options.pipelines) * rounds * len(options.policies)
    with Progress(total) as progress:
        for setup in options.setups:
            with executors(setup, options.policies, options.workers, redis_url) as made:
                start = time.perf_counter()
                made[ADAPTIVE]._context.policy.calibrate()
                seconds = time.perf_counter() - start
                for name in options.pipelines:
                    case = Case(name, setup, calibration_seconds=seconds)
                    cases.append(case)
                    _measure(case, PIPELINES[name], made, rounds, progress)


def _measure(
    case: Case, pipeline: Pipeline, made: dict[str, Any], rounds: int, progress: Progress
) -> None:
    order = random.Random(0)
    serials = count(1)
    turns = list(made.items())
    traces = []
    # As machines are not the same for long, among the runs that are foretold.
    traced_after = {_FIRST_ROUNDS, (_FIRST_ROUNDS + rounds) // 2, rounds - 1}
    for number in range(rounds):
        order.shuffle(turns)
        for policy, executor in turns:
            progress.step(f"{pipeline.name} on {case.setup}")
            data = pipeline.data(next(serials))
            if number == 0:
                result, trace = traced(pipeline, executor, data)
                case.stored[policy] = stored_in(trace)
                if not pipeline.equal(result, pipeline.direct(data)):
                    raise WrongResultError(f"{pipeline.name} with {policy}")
                del result
                executor.store.usage()
                continue
            gc.collect()
            start = time.perf_counter()
            result = pipeline.run(executor, data)
            seconds = time.perf_counter() - start
            del result
            # Evicting goes on after it, in a thread: it is not to disturb the next one.
            executor.store.usage()
            if number >= _FIRST_ROUNDS:
                case.seconds.setdefault(policy, []).append(seconds)
        if number in traced_after:
            traces.append(traced(pipeline, made[NEVER], pipeline.data(next(serials)))[1])
    adaptive = made[ADAPTIVE]._context.policy
    case.frozen = repr(adaptive.frozen())
    case.predicted = predict(traces, made, list(made))


def _tables(cases: Sequence[Case]) -> list[dict[str, Any]]:
    summary = [
        [
            case.setup,
            case.pipeline,
            duration(case.median(NEVER)),
            case.best,
            duration(case.median(case.best)),
            duration(case.median(ADAPTIVE)),
            f"{case.of_best:.2f} {_verdict(case.of_best <= _OF_BEST)}",
            f"{case.of_never:.2f} {_verdict(case.of_never <= _OF_NEVER)}",
        ]
        for case in cases
    ]
    near = sum(case.of_best <= _OF_BEST for case in cases)
    slower = sum(case.of_never > _OF_NEVER for case in cases)
    tables = [
        {
            "title": "the best fixed policy, and ProxyAdaptive: medians",
            "columns": [
                *("setup", "pipeline", "no proxying", "best fixed", "its median"),
                *("ProxyAdaptive", "of best", "of none"),
            ],
            "rows": summary,
            "notes": [
                "Fixed policies that store the same objects are one: their samples count together.",
                (
                    f"Within {_OF_BEST - 1:.0%} of the best fixed policy in {near} of {len(cases)} "
                    f"cases (goal: {_CASES:.0%})."
                ),
                f"More than {_OF_NEVER - 1:.0%} slower than no proxying in {slower} (goal: none).",
                "Calibrated in "
                + ", ".join(
                    f"{duration(seconds)} ({setup})"
                    for setup, seconds in {
                        case.setup: case.calibration_seconds for case in cases
                    }.items()
                    if seconds is not None
                )
                + ".",
            ],
        }
    ]
    tables.append(_foretold(cases))
    for name in dict.fromkeys(case.pipeline for case in cases):
        mine = [case for case in cases if case.pipeline == name]
        policies = list(mine[0].seconds)
        policies.sort(key=[*FIXED, ADAPTIVE].index)
        rows = [[policy, *(_spread(case.seconds[policy]) for case in mine)] for policy in policies]
        tables.append(
            {
                "title": f"{name}: {PIPELINES[name].about}; medians and quartiles",
                "columns": ["policy", *(case.setup for case in mine)],
                "rows": rows,
                "notes": [f"On {case.setup}, it freezes to {case.frozen}." for case in mine],
            }
        )
    return tables


def _foretold(cases: Sequence[Case]) -> dict[str, Any]:
    rows = []
    right, near = 0, 0
    told = [(case, case.predicted) for case in cases if case.predicted is not None]
    for case, predicted in told:
        medians = case.medians()
        ranked = predicted.ranks_rightly(case.medians(_TOLD_BY), case.medians(_MEASURED_BY))
        is_near = predicted.is_near(medians)
        right, near = right + ranked, near + is_near
        best = predicted.best()
        rows.append(
            [
                *(case.setup, case.pipeline, best),
                *(duration(predicted.seconds[best]), duration(medians[best])),
                *(f"{predicted.off(medians):+.0%} {_verdict(is_near)}", _verdict(ranked)),
                f"{predicted.ratio:.2f}",
            ]
        )
    return {
        "title": "what proxyexec tune foretells from a trace without proxying",
        "columns": [
            *("setup", "pipeline", "said to be best", "expected", "its median"),
            *("best is off by", "best and worst right", "run / replay"),
        ],
        "rows": rows,
        "notes": [
            (
                f"The best and the worst are told rightly, but for those within 10 %, in {right} "
                f"of {len(told)} cases (goal: all)."
            ),
            f"The time of the best is within 25 % in {near} (goal: all).",
        ],
    }


def _verdict(met: bool) -> str:
    return "yes" if met else "NO"


def _spread(seconds: Sequence[float]) -> str:
    return f"{duration(statistics.median(seconds))}, {duration(*quartiles(seconds))}"


def _entry(case: Case) -> dict[str, Any]:
    return {
        "pipeline": case.pipeline,
        "setup": case.setup,
        "seconds": case.seconds,
        "medians": {policy: case.median(policy) for policy in case.seconds},
        "alike": [*{tuple(case.alike(policy)): None for policy in case.fixed}],
        "best": case.best,
        "of_best": case.of_best,
        "of_never": case.of_never,
        "calibration_seconds": case.calibration_seconds,
        "frozen": case.frozen,
        "predicted": None if case.predicted is None else dict(case.predicted.seconds),
        "run_of_replay": None if case.predicted is None else case.predicted.ratio,
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: tuning.py --setups 'processes, files' --pipelines text,model --repeat 5",
    )
    parser.add_argument("--quick", action="store_true", help="a minute; few policies and samples")
    parser.add_argument(
        "--pipelines", default=",".join(PIPELINES), metavar="LIST", help="default: %(default)s"
    )
    parser.add_argument(
        "--setups", default="; ".join(SETUPS), metavar="LIST", help="default: '%(default)s'"
    )
    parser.add_argument(
        "--repeat", type=at_least(1), metavar="N", help="samples (default: 9; 3 with --quick)"
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=2, metavar="N", help="processes (default: 2)"
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    options = parser.parse_args(arguments)
    options.pipelines = options.pipelines.split(",")
    options.setups = [one.strip() for one in options.setups.split(";")]
    for given, known in ((options.pipelines, PIPELINES), (options.setups, SETUPS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"nothing is called {unknown[0]!r}; there are {', '.join(known)}")
    options.policies = [*(QUICK if options.quick else FIXED), ADAPTIVE]
    options.repeat = options.repeat or (3 if options.quick else 9)
    check_directories(parser, (options.json,))
    return options


if __name__ == "__main__":
    sys.exit(main())
