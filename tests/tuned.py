"""A result of tuning that is made up: of a pipeline whose costs are known."""

from __future__ import annotations

import random

from proxyexec._costs import CostModel, Curve
from proxyexec.tune import (
    TuneCandidate,
    TuneMeasured,
    TunePlace,
    TunePolicy,
    TuneResult,
    TuneRun,
    TuneSpan,
    TuneTimeline,
    TuneUnread,
    TuneWay,
)

STORES = ("file:///dev/shm/proxyexec", "redis://127.0.0.1:6379/0")


def costs(latency: float, per_byte: float) -> CostModel:
    curves = {}
    for side in ("argument", "result"):
        for kind, slower in (("buffers", 1.0), ("pickle", 1.6)):
            sizes = (4_000, 60_000, 250_000, 1_000_000, 4_000_000)
            ways = {
                "inline": lambda size: 1.1e-4 + 2.4e-9 * size,
                "store": lambda size: latency + per_byte * size,
                "found": lambda size: 0.6 * latency + 0.4 * per_byte * size,
            }
            for way, seconds in ways.items():
                if side == "result" and way == "found":
                    continue
                points = tuple((size, slower * seconds(size)) for size in sizes)
                curves[side, kind, way] = Curve(points)
    return CostModel(curves, {"executor": "ProcessPoolExecutor"})


def timeline(
    tasks: int, workers: int, stored: bool, seed: int = 1, pace: float = 1.0
) -> TuneTimeline:
    """Images are loaded, filtered, and counted."""
    rng = random.Random(seed)
    spans: list[TuneSpan] = []
    live = [(0.0, 0)]
    free = [0.0] * workers
    now = 0.0
    total = 0
    for task in range(tasks):
        function = ("load", "sharpen", "count_cells")[task * 3 // tasks]
        size = 3_000_000 + rng.randrange(2_000_000)
        move = "put" if stored else "inline"

        def add(kind, lane, start, seconds, **facts):
            seconds *= pace
            spans.append(TuneSpan(kind, lane, start, start + seconds, task, function, **facts))
            return start + seconds

        moved = {"what": "argument 0", "type": "numpy.ndarray", "bytes": size}
        at = add("serialize", "client", now, 0.003, **moved)
        now = at = add(move, "client", at, 0.004 if stored else 0.016, **moved)
        if stored:
            total += size
            live.append((at, total))
        worker = min(range(workers), key=free.__getitem__)
        lane = f"worker {worker + 1}"
        at = max(at, free[worker])
        at = add("get" if stored else "inline", lane, at, 0.003 if stored else 0.012, **moved)
        at = add("run", lane, at, 0.03 + 0.05 * rng.random())
        moved["what"] = "result"
        free[worker] = add(move, lane, at, 0.004 if stored else 0.016, **moved)
        if stored and task % 3 == 2:
            total -= 2 * size
            live.append((free[worker], max(total, 0)))
            total = max(total, 0)
    live.sort()
    return TuneTimeline(max(free), tuple(sorted(spans, key=lambda one: one.start)), tuple(live))


def policy(name: str) -> TunePolicy:
    return TunePolicy(name.replace("Proxy", "").lower(), name, {"kind": name.lower()})


def result(tasks: int = 60, workers: int = 4, stores: int = 2, measured: bool = True) -> TuneResult:
    run = timeline(tasks, workers, stored=False, pace=1.1)
    names = [
        "ProxySize(100000)",
        "ProxyAdaptive()",
        "ProxyType(numpy.ndarray) & ProxySize(1000000)",
        "ProxyAlways()",
        "ProxyNever()",
        *(f"ProxySize({2**power})" for power in range(12, 25)),
    ]
    candidates = []
    for place, store in enumerate(STORES[:stores]):
        for rank, name in enumerate(names):
            stored = name != "ProxyNever()"
            line = (
                timeline(tasks, workers, stored) if rank < 3 and not place or not stored else None
            )
            seconds = (
                line.seconds if line else run.seconds * (1 + 0.02 * rank + 0.1 * place)
            ) * 1.1
            bytes_moved = tasks * 8_000_000
            candidates.append(
                TuneCandidate(
                    policy(name),
                    store,
                    not stored and not place,
                    seconds,
                    seconds / 1.1,
                    40_000 if stored else bytes_moved,
                    bytes_moved // 2 if stored else 0,
                    bytes_moved // 2 if stored else 0,
                    bytes_moved if stored else 0,
                    tasks * 4_000_000 if stored else 0,
                    tasks if stored else 0,
                    None if place else line,
                )
            )
    candidates.sort(key=lambda one: one.seconds)
    shown = [*candidates[:3], next(one for one in candidates if one.is_present)]
    rounds = (0.95, 1.02, 1.1)
    return TuneResult(
        run=TuneRun(
            "ProcessPoolExecutor",
            workers,
            STORES[0],
            "ProxyNever()",
            tasks,
            run.seconds,
            tasks * 8_000_000,
            0,
            0,
            "example",
            1_790_000_000.0,
            "0.1.0",
            timeline=run,
        ),
        factor=1.1,
        candidates=tuple(candidates),
        places=tuple(
            TunePlace(
                store,
                not place,
                costs(*((4.5e-4, 6e-10) if not place else (9e-4, 1.7e-9))),
                "a calibration just now" if place else "a calibration of 2026-01-02",
                (TuneWay("argument", "buffers", 230_000, 60_000),),
            )
            for place, store in enumerate(STORES[:stores])
        ),
        unread=(
            TuneUnread("sharpen", "result", "numpy.ndarray", 12, 48_000_000),
            TuneUnread("load", "argument 1", "pandas.DataFrame", 3, 5_200_000),
        ),
        measured=tuple(
            TuneMeasured(
                one.policy,
                one.store,
                one.is_present,
                one.seconds,
                tuple(one.seconds * factor for factor in rounds),
            )
            for one in shown
        )
        if measured
        else (),
        notes=("Two workers did not report: what they ran is taken to be like the rest.",),
    )
