"""Tuning: rankings in known worlds, real traces, the command, and programs that are tried out."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import importlib.util
import json
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from proxyexec import (
    ProxyAdaptive,
    ProxyNever,
    ProxySize,
    StoreExecutor,
    _calibrations,
    _tune_fitting,
    cli,
)
from proxyexec._costs import CostModel, Curve
from proxyexec._tune_candidates import RecordedRule
from proxyexec._tune_cli import _status_line
from proxyexec._tune_fitting import fitted_to
from proxyexec._tune_prices import Prices
from proxyexec._tune_override import REPORT
from proxyexec._tune_replay import replay
from proxyexec._tune_result import TuneMeasured, TunePolicy
from proxyexec._tune_run import run_of
from proxyexec._tune_table import seconds_text, text_of
from proxyexec.metrics import read_trace
from proxyexec.tune import Place, TuneResult, tune
from tests import functions
from tests.test_tune_run import header, moved, read, task

FORK = multiprocessing.get_context("fork")
ROOT = Path(__file__).resolve().parent.parent
BIG = 2_000_000
STORE = "file:///tmp/x"


def model(inline=1.0, store=0.1, base=1e-4):
    """Seconds for each MB inline, and through the store."""

    def line(slope, base=base):
        return Curve(((0, base), (10**9, base + slope * 1000)))

    curves = {}
    for kind in ("buffers", "pickle"):
        for side in ("argument", "result"):
            curves[side, kind, "inline"] = line(inline)
            curves[side, kind, "store"] = line(store, 3 * base)
        curves["argument", kind, "put"] = line(store / 2)
        curves["argument", kind, "get"] = line(store / 2)
    return CostModel(curves)


def trace_of(*tasks, end=None, **changed):
    from proxyexec.metrics import Trace, TraceEnd

    last = None if end is None else TraceEnd(end, 0, None)
    return Trace(header(**changed), list(tasks), end=last)


def inline_run(number=6, size=BIG, **changed):
    """A run that has sent an array to each of its tasks, each another one."""
    tasks = [
        task(f"{n}", 0.01 * n, 4.0 + n, moved(size=size, content=f"{n}"), run_s=1.0)
        for n in range(number)
    ]
    return trace_of(*tasks, end=5.0 + number, policy="ProxyNever()", **changed)


def test_what_is_cheaper_comes_first():
    cheap_store = tune(inline_run(), {STORE: model(inline=1.0, store=0.01)})
    assert cheap_store.best.stored_bytes == 6 * BIG
    assert cheap_store.best.inline_bytes == 0
    dear_store = tune(inline_run(), {STORE: model(inline=0.01, store=1.0)})
    assert dear_store.best.is_present
    assert dear_store.candidates[-1].stored_bytes == 6 * BIG
    for result in (cheap_store, dear_store):
        seconds = [one.seconds for one in result.candidates]
        assert seconds[1:] == sorted(seconds[1:])
        assert seconds[0] <= 1.02 * min(seconds)


def test_of_policies_that_are_as_good_the_simplest_is_best():
    result = tune(inline_run(), {STORE: model(inline=1.0, store=0.01)})
    # Also as good: "always", types, ProxyAdaptive.
    assert result.best.policy.name == "size 100 kB"
    same = tune(inline_run(), {STORE: model(inline=0.6, store=0.6, base=0.0)})
    assert same.best.is_present


def test_expectations_are_corrected_by_what_replaying_the_run_shows():
    costs = {STORE: model()}
    once = tune(inline_run(), costs)
    slower = inline_run()
    slower = replace(slower, end=replace(slower.end, t=2 * slower.end.t))
    # All the time after the last task is the program's; it is in every replay.
    longer = tune(slower, costs)
    assert longer.run.seconds == 2 * once.run.seconds
    slow = tune(inline_run(), {STORE: model(inline=0.01)})
    assert slow.ratio > once.ratio
    for result in (once, longer, slow):
        # It was moving that took longer, or less long, than measured.
        assert (result.moving > 1) is (result.ratio > 1)
        for one in result.candidates:
            assert one.seconds == pytest.approx(result.factor * one.simulated_seconds)
    assert once.present.seconds == pytest.approx(once.run.seconds, rel=0.02)
    # But not more than four times as long; the rest is not believed altogether.
    assert slow.moving == pytest.approx(4.0, rel=0.05)
    assert 1.0 < slow.factor < slow.run.seconds / slow.present.simulated_seconds


def test_the_path_that_the_run_did_not_take_is_slower_in_part():
    costs = model(inline=0.01)
    fitted = fitted_to(
        run_of(inline_run()), RecordedRule(TunePolicy("", "")), costs, directly=False
    )
    assert fitted.is_inline
    measured = Prices(costs, 2)
    for is_present in (True, False):
        prices = fitted.prices(costs, is_present=is_present)
        size = 1_000_000
        assert prices.send("buffers", size) / measured.send("buffers", size) == pytest.approx(
            fitted.moving, 0.01
        )
        assert prices.put("buffers", size) / measured.put("buffers", size) == pytest.approx(
            fitted.moving**0.5, 0.01
        )
    # One of which most was stored tells of that store alone.
    stored = replace(fitted, is_inline=False)
    factors = [
        stored.prices(costs, is_present=is_present).put("buffers", size)
        / measured.put("buffers", size)
        for is_present in (True, False)
    ]
    assert factors == pytest.approx([fitted.moving, fitted.moving**0.5], 0.01)


def test_a_run_is_replayed_as_often_as_that_tells_something(monkeypatch):
    scales = []

    def counted(run, rule, prices, **facts):
        scales.append(round(prices._inline, 3))
        return replay(run, rule, prices, **facts)

    def fitted(run):
        scales.clear()
        return fitted_to(run, RecordedRule(TunePolicy("", "")), costs, directly=False)

    monkeypatch.setattr(_tune_fitting, "replay", counted)
    costs, run = model(inline=0.01), run_of(inline_run())
    # There are cores for all: functions took as long as alone, and it is replayed once for each.
    slow = fitted(run)
    assert slow.moving > 3
    assert len(scales) == len(set(scales)) == 7
    # It takes as long as it did: that is that.
    exact = fitted(replace(run, seconds=run.seconds / slow.ratio))
    assert (exact.moving, exact.ratio, scales) == (1.0, pytest.approx(1.0), [1.0])
    # What takes nothing took no longer than that.
    free = tune(inline_run(crosses=False), {STORE: model(inline=0.0, base=0.0)})
    assert (free.moving, free.factor) == (1.0, pytest.approx(free.ratio**0.25))
    assert free.ratio > 1.1
    # One that is long is known less exactly.
    monkeypatch.setattr(_tune_fitting, "_LONG", 6)
    assert fitted(run).moving == pytest.approx(slow.moving, 0.1)
    assert len(scales) == 5


def test_the_present_policy_is_there_once():
    result = tune(inline_run(), {STORE: model()})
    assert [one.policy.name for one in result.candidates].count("present: ProxyNever()") == 1
    assert not any(one.policy.name == "never" for one in result.candidates)
    sized = trace_of(task("a", 0.0, 1.0, moved()), policy="ProxySize(100000)")
    names = [one.policy.name for one in tune(sized, {STORE: model()}).candidates]
    assert "size 100 kB" not in names
    assert "never" in names


def test_each_place_has_every_policy():
    there = "redis://cache:6379/0"
    result = tune(inline_run(), [Place(STORE, model()), Place(there, model(store=0.02), "known")])
    here = {one.policy.name for one in result.candidates if one.store == STORE}
    other = {one.policy.name for one in result.candidates if one.store == there}
    assert other - here == {"never"}
    assert result.best.store == there
    assert [(one.store, one.is_present) for one in result.places] == [(STORE, True), (there, False)]
    assert result.places[1].source == "known"


def test_a_place_stands_for_one_that_is_not_at_hand():
    result = tune(inline_run(), {"file:///elsewhere": model()})
    assert result.present.store == "file:///elsewhere"
    assert any("stands for it" in one for one in result.notes)


def test_crossovers_are_those_of_the_costs():
    costs = model(inline=1.0, store=0.1, base=0.01)
    ways = tune(inline_run(), {STORE: costs}).places[0].ways
    assert {(one.side, one.kind) for one in ways} == {
        (side, kind) for side in ("argument", "result") for kind in ("buffers", "pickle")
    }
    for way in ways:
        assert way.crossover_bytes == costs.threshold(way.side, way.kind)
        assert way.crossover_bytes is not None


def test_what_was_stored_for_nothing_is_told():
    from proxyexec.metrics import Trace, TraceEvicted

    tasks = [
        task(
            f"{n}", 0.1 * n, 2.0,
            moved(path="store", key=f"k{n}"),
            moved(name="spare", path="store", key=f"s{n}"),
            resolved=[read(f"k{n}", 0.0)],
        )
        for n in range(3)
    ]  # fmt: skip
    gone = [TraceEvicted(3.0, f"k{n}", BIG, 1.0, resolved=True) for n in range(3)]
    gone += [TraceEvicted(3.0, f"s{n}", BIG, 1.0, resolved=False) for n in range(3)]
    result = tune(Trace(header(), tasks, evicted=gone), {STORE: model()})
    [unread] = result.unread
    assert (unread.function, unread.what, unread.objects) == ("work", "argument spare", 3)
    assert unread.bytes == 3_000_000


def test_it_says_what_who_reads_it_has_to_know():
    def notes(trace):
        return " ".join(tune(trace, {STORE: model()}).notes)

    assert "has no end" in notes(trace_of(task("a", 0.0, 1.0, moved())))
    full = replace(inline_run(), full=1.0)
    assert "only its beginning" in notes(full)
    assert not tune(full, {STORE: model()}).run.is_whole
    assert "sending inline costs nothing" in notes(inline_run(crosses=False))
    assert "times as long as its replay" in notes(trace_of(task("a", 0.0, 900.0, run_s=0.1)))
    failed = trace_of(task("a", 0.0, 1.0, state="failed", run_s=None))
    assert "1 tasks failed" in notes(failed)


def test_timelines_are_those_of_the_best_and_the_present():
    result = tune(inline_run(), {STORE: model(store=0.01)})
    with_timelines = [one for one in result.candidates if one.timeline is not None]
    assert with_timelines[0] is result.best
    assert result.present in with_timelines
    assert len(with_timelines) >= 2
    runs = [one for one in result.best.timeline.spans if one.kind == "run"]
    assert len(runs) == 6
    assert {one.lane for one in runs} == {"worker 1", "worker 2"}
    measured = result.run.timeline
    assert [one.kind for one in measured.spans].count("run") == 6


def test_results_are_data():
    result = tune(inline_run(), {STORE: model()})
    measured = TuneMeasured(result.best.policy, STORE, False, 1.0, (1.0, 2.0))  # noqa: FBT003
    result = result.verified((measured,))
    text = json.dumps(result.to_json())
    assert TuneResult.from_json(json.loads(text)) == result
    short = TuneResult.from_json(json.loads(json.dumps(result.to_json(timelines=False))))
    assert short.best.timeline is None
    assert short.best.policy == result.best.policy


@pytest.mark.parametrize(
    "document", [None, [], {}, {"proxyexec_tune": 1}, {"proxyexec_tune": 99, "run": {}}]
)
def test_other_data_are_no_results(document):
    with pytest.raises(ValueError, match="no result of tuning|version 99"):
        TuneResult.from_json(document)


def test_who_was_measured_to_be_fastest_is_best():
    result = tune(inline_run(), {STORE: model(store=0.01)})
    first, second = [one for one in result.candidates if not one.is_present][:2]

    def measured(candidate, *seconds):
        return TuneMeasured(
            candidate.policy, candidate.store, candidate.is_present, candidate.seconds, seconds
        )

    found = result.verified(
        (measured(first, 3.0, 3.1), measured(second, 1.0, 9.0, 1.1), measured(result.present, 5.0))
    )
    assert found.fastest == second
    # The simplest, if it takes next to no longer.
    found = result.verified((measured(first, 1.01), measured(second, 1.0)))
    assert found.fastest == first
    # The present one, if it takes next to no longer.
    found = result.verified((measured(first, 1.0), measured(result.present, 1.01)))
    assert found.fastest.is_present
    assert result.fastest is result.best


def test_there_has_to_be_something_to_go_by():
    with pytest.raises(ValueError, match="no store is given"):
        tune(inline_run(), {})
    with pytest.raises(ValueError, match="no task"):
        tune(trace_of(), {STORE: model()})
    with pytest.raises(ValueError, match="too little was measured"):
        tune(inline_run(), {STORE: CostModel({})})


def test_everything_can_be_said_in_text():
    trace = inline_run()
    result = tune(trace, {STORE: model(store=0.01), "redis://there": model(store=0.02)})
    text = "\n".join(text_of(result, top=3))
    assert "times as fast as now:\n  StoreExecutor(executor, should_proxy=" in text
    assert "redis://there" in text
    assert "... and " in text

    def measured(candidate, *seconds):
        return TuneMeasured(
            candidate.policy, candidate.store, candidate.is_present, candidate.seconds, seconds
        )

    best = next(one for one in result.candidates if not one.is_present)
    result = result.verified((measured(best, 1.0, 2.0, 9.0), measured(result.present, 8.0)))
    text = "\n".join(text_of(result, top=3))
    assert "1 s, 9 s" in text
    assert "4 times as fast as now" in text
    result = result.verified((measured(best, 8.0), measured(result.present, 8.0)))
    assert "leave it as it is" in "\n".join(text_of(result, top=3))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0123, "12.3 ms"),
        (0.9993, "999 ms"),
        (0.9998, "1 s"),
        (61.26, "61.3 s"),
        (999.7, "1,000 s"),
        (12_345.6, "12,346 s"),
    ],
)
def test_times_are_written_without_exponents(seconds, said):
    assert seconds_text(seconds) == said


def test_how_many_times_as_fast_is_written_without_exponents():
    result = tune(inline_run(), {STORE: model(store=0.01)})
    best = next(one for one in result.candidates if not one.is_present)
    result = result.verified(
        tuple(
            TuneMeasured(one.policy, one.store, one.is_present, one.seconds, (seconds,))
            for one, seconds in ((best, 1.0), (result.present, 1234.0))
        )
    )
    assert ", 1,234 times as fast as now:" in "\n".join(text_of(result, top=3))


def test_more_policies_can_be_considered():
    more = {"mine": ProxySize("1 MB"), "none": ProxySize("1 GB")}
    result = tune(inline_run(), {STORE: model(store=0.01)}, policies=more)
    by_name = {one.policy.name: one for one in result.candidates}
    assert by_name["mine"].stored_bytes == 6 * BIG
    assert by_name["mine"].policy.python == "ProxySize(1000000)"
    assert by_name["none"].stored_bytes == 0
    assert by_name["none"].seconds == pytest.approx(result.present.seconds)


def test_progress_is_told():
    told = []
    tune(inline_run(), {STORE: model()}, progress=lambda *counts: told.append(counts))
    total = told[0][1]
    assert told == [(number, total) for number in range(total + 1)]


# --- real runs


def make_base(kind):
    if kind == "threads":
        return concurrent.futures.ThreadPoolExecutor(2)
    return concurrent.futures.ProcessPoolExecutor(2, FORK)


def traced(path, kind, store, policy, *, lazy=True):
    """Run a small pipeline: two stages, and something that all get."""
    shared = bytes(500_000)
    with StoreExecutor(make_base(kind), store, policy, lazy=lazy) as executor:
        with executor.trace(path):
            made = [
                executor.submit(functions.add, bytes([n]) * 300_000, b=shared) for n in range(4)
            ]
            # Threads that store nothing are given futures as they are.
            given = [one.result() for one in made] if kind == "threads" else made
            sizes = [executor.submit(len, one) for one in given]
            assert [one.result() for one in sizes] == [800_000] * 4
            del made, given
    return read_trace(path)


@pytest.fixture(params=["threads", "files", "redis"])
def setting(request, tmp_path):
    if request.param != "redis":
        kind = "threads" if request.param == "threads" else "fork"
        yield kind, (tmp_path / "objects").as_uri()
        return
    pytest.importorskip("redis")
    from tests.redis_server import redis_server

    with redis_server() as server:
        yield "fork", server.url


@pytest.mark.parametrize("policy", [ProxyNever(), ProxySize("100 kB")], ids=repr)
@pytest.mark.parametrize("lazy", [True, False])
def test_real_traces_are_replayed(tmp_path, setting, policy, lazy):
    kind, store = setting
    trace = traced(tmp_path / "run.jsonl", kind, store, policy, lazy=lazy)
    result = tune(trace, {trace.header.store: model()})
    assert result.run.tasks == 8
    assert result.run.workers == 2
    by_name = {one.policy.name: one for one in result.candidates}
    everything = min(result.candidates, key=lambda one: one.inline_bytes)
    assert everything.inline_bytes < 10_000
    if kind != "threads":  # who are given what is there, of which nobody knows the content
        # Four arguments, and what they share, and four results; these are passed on. What is shared
        # is found while it is held: if the client was slow, nobody holds it some of the time.
        apart, shared = 4 * 300_000 + 3_200_000, 500_000
        assert everything.stored_bytes >= 0.99 * (apart + shared)
        all_stored = everything.stored_bytes + everything.found_bytes
        assert all_stored == pytest.approx(apart + 4 * shared, 0.01)
        present = result.present
        if type(policy) is ProxySize:
            assert present.stored_bytes + present.found_bytes == sum(
                one.bytes
                for task in trace.tasks
                for one in task.moved
                if one.path in ("store", "found")
            )
            never = by_name["never"]
        else:
            never = present
            assert never.stored_bytes == 0
        # There, back, and there again.
        assert never.inline_bytes == pytest.approx(4 * 800_000 + 2 * 3_200_000, 0.01)
    json.dumps(result.to_json())


# --- the command


PROGRAM = """
    import sys
    from concurrent.futures import ProcessPoolExecutor
    from pathlib import Path

    from proxyexec import ProxySize, StoreExecutor


    def main():
        policy = ProxySize("1 GB")
        with StoreExecutor(ProcessPoolExecutor(2), sys.argv[1], policy, lazy=False) as executor:
            with executor.trace("run.jsonl"):
                data = [bytes([n]) * 300_000 for n in range(4)]
                assert list(executor.map(len, data)) == [300_000] * 4
            said = f"{executor._context.policy!r} {executor.store.connector.url}"
        with open("said.txt", "a") as file:
            file.write(said + "\\n")


    if __name__ == "__main__":
        main()
"""


@pytest.fixture(scope="session")
def costs_cache(tmp_path_factory):
    """Costs are measured once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def place(tmp_path, monkeypatch, costs_cache):
    """A directory with a program in it, and the trace that it has written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(costs_cache))
    path = [str(ROOT), str(ROOT / "connectors"), *sys.path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    Path("program.py").write_text(textwrap.dedent(PROGRAM), encoding="utf-8")
    store = (tmp_path / "objects").as_uri()
    subprocess.run([sys.executable, "program.py", store], check=True)
    Path("said.txt").unlink()
    return store


@pytest.fixture
def proxyexec(capsys):
    def run(*arguments):
        try:
            status = cli.main(["tune", *arguments])
        except SystemExit as error:
            status = error.code
        return (status, *capsys.readouterr())

    return run


def test_the_command_prints_a_ranking(place, proxyexec):
    status, said, complained = proxyexec("run.jsonl", "--top", "3")
    assert (status, complained) == (0, "")
    lines = said.splitlines()
    assert lines[0].startswith("4 tasks on 2 workers of ProcessPoolExecutor in ")
    assert lines[1].startswith("Replayed with costs as measured, that takes ")
    assert lines[2].startswith(f"Costs of {place}: measured ")
    ranked = [line for line in lines if line[:2] in ("1 ", "2 ", "3 ", "4 ", "5 ", "6 ", "7 ")]
    assert len(ranked) >= 3
    assert "present: ProxySize(1000000000)" in said
    assert "should_proxy=" in lines[-1] or "leave it as it is" in lines[-1]


def test_costs_are_kept(place, proxyexec, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    like_it = ProxyAdaptive(calibrate=False)
    with StoreExecutor(
        concurrent.futures.ProcessPoolExecutor(2), place, like_it, lazy=False
    ) as executor:
        setting = _calibrations.setting_of(executor)
    assert _calibrations.save(CostModel(model(inline=7.0).curves, setting))
    _, said, _ = proxyexec("run.jsonl", "--json")
    [known] = TuneResult.from_json(json.loads(said)).places
    assert known.source == "measured before, and kept"
    assert known.costs.curves == model(inline=7.0).curves
    _, said, _ = proxyexec("run.jsonl", "--json", "--calibrate")
    [known] = TuneResult.from_json(json.loads(said)).places
    assert known.source == "measured just now"
    assert known.costs.curves != model(inline=7.0).curves


def test_the_command_writes_json(place, proxyexec):
    status, said, _ = proxyexec("run.jsonl", "--json")
    assert status == 0
    result = TuneResult.from_json(json.loads(said))
    assert result.run.tasks == 4
    assert result.present.store == place


def test_the_command_prints_python(place, proxyexec):
    _, said, _ = proxyexec("run.jsonl", "--print-python")
    assert said.startswith("StoreExecutor(executor, should_proxy=")
    assert said.count("\n") == 1


def test_the_command_considers_other_stores(place, proxyexec):
    pytest.importorskip("redis")
    from tests.redis_server import redis_server

    with redis_server(requirepass="hunter2") as server:
        status, said, complained = proxyexec("run.jsonl", "--store", server.url, "--top", "50")
    assert (status, complained) == (0, "")
    assert "hunter2" not in said
    assert "redis://" in said
    assert place in said


def test_a_store_that_needs_a_password_is_to_be_given(place, proxyexec):
    pytest.importorskip("redis")
    from tests.redis_server import redis_server

    with redis_server(requirepass="hunter2") as server:
        Path("run.jsonl").unlink()
        subprocess.run([sys.executable, "program.py", server.url], check=True)
        status, _, complained = proxyexec("run.jsonl")
        assert status == 1
        assert "give it, with a password if it needs one, or another one with --store" in complained
        assert proxyexec("run.jsonl", "--store", server.url)[0] == 0


def test_the_command_writes_a_configuration(place, proxyexec, tmp_path, monkeypatch):
    pytest.importorskip("pydantic_settings")
    from proxyexec import config

    Path("stack.toml").write_text(
        f'lazy = false\nshould_proxy = "1 GB"\nstore = "{place}"\n\n[executor]\n'
        'type = "concurrent.futures:ProcessPoolExecutor"\nmax_workers = 2\n',
        encoding="utf-8",
    )
    known = {place: model(inline=50.0, store=0.001)}
    monkeypatch.setattr(
        "proxyexec._tune_costs.places_for",
        lambda *_, **__: ([Place(store, costs) for store, costs in known.items()], []),
    )
    status, said, complained = proxyexec(
        "run.jsonl", "--config", "stack.toml", "--write", "tuned.yaml"
    )
    assert (status, complained) == (0, "")
    assert "The best is size 100 kB" in said
    spec = config.load("tuned.yaml", environment=False)
    assert spec.should_proxy.build().minimum == 100_000
    assert spec.store.url == place
    assert spec.executor.kwargs == {"max_workers": 2}
    assert spec.lazy is False
    # What is as good as it gets is not written again.
    known[place] = model(inline=0.001, store=50.0)
    status, said, complained = proxyexec("run.jsonl", "--write", "same.toml")
    assert "leave it as it is" in said
    assert "nothing was written" in complained
    assert not Path("same.toml").exists()


def test_a_described_executor_is_measured(place, proxyexec, monkeypatch, tmp_path):
    pytest.importorskip("pydantic_settings")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    Path("stack.json").write_text(
        '{"executor": {"type": "concurrent.futures:ProcessPoolExecutor", "max_workers": 1}}',
        encoding="utf-8",
    )
    status, _, complained = proxyexec("run.jsonl", "--config", "stack.json")
    assert (status, complained) == (0, "")
    _, said, _ = proxyexec("run.jsonl", "--config", "stack.json", "--json")
    [measured] = TuneResult.from_json(json.loads(said)).places
    assert measured.costs.setting["workers"] == "1"


def test_the_command_says_what_is_wrong(place, proxyexec, tmp_path):
    status, said, complained = proxyexec("nowhere.jsonl")
    assert (status, said) == (1, "")
    assert "nowhere.jsonl" in complained
    assert "No such file" in complained
    Path("other.jsonl").write_text("{}\n", encoding="utf-8")
    status, _, complained = proxyexec("other.jsonl")
    assert status == 1
    assert "not the header of a trace" in complained
    status, _, complained = proxyexec("run.jsonl", "--store", "redis://127.0.0.1:1/0")
    assert status == 1
    assert "a store cannot be tried" in complained
    assert proxyexec("run.jsonl", "--verify")[0] == 2
    assert proxyexec("run.jsonl", "--top", "0")[0] == 2
    if importlib.util.find_spec("pydantic_settings") is not None:
        assert proxyexec("run.jsonl", "--config", "none.toml")[0] == 1
    Path("run.jsonl").write_text(
        Path("run.jsonl").read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8"
    )
    status, _, complained = proxyexec("run.jsonl")
    assert status == 2
    assert "no task" in complained


def test_the_command_explains_itself(proxyexec):
    status, said, _ = proxyexec("--help")
    assert status == 0
    assert "example:\n  proxyexec tune run.jsonl" in said
    assert "--verify" in said


def test_what_was_found_is_told_though_a_file_cannot_be_written(place, proxyexec):
    status, said, complained = proxyexec("run.jsonl", "--report", "nowhere/report.html")
    assert status == 1
    assert "nowhere/report.html" in complained
    assert "4 tasks on 2 workers" in said
    assert "present: ProxySize(1000000000)" in said


def test_a_file_that_is_no_configuration_is_refused_at_once(place, proxyexec, monkeypatch):
    monkeypatch.setattr("proxyexec._tune_costs.places_for", None)
    status, said, complained = proxyexec("run.jsonl", "--write", "stack.ini")
    assert (status, said) == (1, "")
    assert "ends in .json, .toml, .yaml or .yml" in complained


def test_numbers_that_are_none_are_told_of(proxyexec):
    for given in ("0", "-3", "many"):
        status, _, complained = proxyexec("run.jsonl", f"--top={given}")
        assert status == 2
        assert f"argument --top: {given!r} is no whole number above 0" in complained


def test_help_has_the_program_at_the_end(proxyexec):
    _, said, _ = proxyexec("--help")
    usage = " ".join(said.partition("\n\n")[0].split())
    assert usage == "usage: proxyexec tune [OPTION ...] TRACE [--verify PROGRAM [ARGUMENT ...]]"


@pytest.mark.parametrize("columns", [30, 200])
def test_what_goes_on_is_told_in_one_line(monkeypatch, columns):
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(follower, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with _status_line() as show:
            show("present: Mine\x1b[2J\a " + "x" * 300)
        monkeypatch.undo()
        stream.flush()
        written = ""
        while written.count("\r\x1b[K") < 2:  # a terminal gives it in pieces
            written += os.read(leader, 10_000).decode()
    os.close(leader)
    start, told, end = written.split("\r\x1b[K")
    assert (start, end) == ("", "")
    assert len(told) == columns - 1
    assert told.startswith("present: Mine\\x1b[2J\\x07 x"[: columns - 1])


# --- trying programs out


def test_a_program_is_tried_out(place, proxyexec):
    before = Path("run.jsonl").read_bytes()
    status, said, complained = proxyexec(
        "run.jsonl", "--rounds", "2", "--json", "--verify", "program.py", place
    )
    assert (status, complained) == (0, "")
    result = TuneResult.from_json(json.loads(said))
    assert Path("run.jsonl").read_bytes() == before
    assert [one.is_present for one in result.measured] == [False] * (len(result.measured) - 1) + [
        True
    ]
    assert len(result.measured) >= 2
    for one in result.measured:
        assert len(one.measured_seconds) == 2
        assert min(one.measured_seconds) > 0
    # In turns, and as the program is.
    policies = [line.split(" file")[0] for line in Path("said.txt").read_text().splitlines()]
    assert policies.count("ProxySize(1000000000)") == 2
    adaptive = any("Adaptive" in one.policy.python for one in result.measured)
    assert len(policies) == 2 * len(result.measured) + adaptive
    last = [one for one in policies if one == "ProxySize(1000000000)"]
    assert len(last) == 2
    shown = json.loads(said)
    assert shown["measured"]


def test_what_was_tried_out_is_shown(place, proxyexec):
    _, said, _ = proxyexec("run.jsonl", "--rounds", "1", "--verify", "program.py", place)
    lines = said.splitlines()
    start = lines.index("The program itself:")
    assert lines[start + 1].split() == [
        "policy",
        "expected",
        "measured",
        "from,",
        "to",
        "off",
        "by",
    ]
    assert any(line.startswith("present: ") for line in lines[start:])


ARGUMENTS = """
    import sys

    raise SystemExit(f"given: {sys.argv[1:]}")
"""


@pytest.mark.parametrize("before", [[], ["--"]])
def test_a_program_gets_all_arguments_that_follow_it(place, proxyexec, before):
    Path("telling.py").write_text(textwrap.dedent(ARGUMENTS), encoding="utf-8")
    own = ["--", "--top", "-h", "--verify", "x y", "--"]
    status, _, complained = proxyexec("run.jsonl", "--verify", *before, "telling.py", *own)
    assert status == 1
    assert f"given: {own}" in complained
    assert proxyexec("run.jsonl", "--verify", *before)[0] == 2


def test_a_program_that_fails_is_told_of(place, proxyexec):
    Path("broken.py").write_text("print('so far')\nraise SystemExit('no luck')\n")
    status, _, complained = proxyexec(
        "run.jsonl", "--verify", "broken.py", "redis://:hunter2@there:6379/0"
    )
    assert status == 1
    assert "hunter2" not in complained
    assert "no luck" in complained
    assert "it ended with 1" in complained
    Path("idle.py").write_text("pass\n")
    status, _, complained = proxyexec(
        "run.jsonl", "--verify", "idle.py", "redis://:hunter2@there:6379/0"
    )
    assert status == 1
    assert "hunter2" not in complained
    assert "it made no executor" in complained
    status, _, complained = proxyexec("run.jsonl", "--verify", "./nothing-there")
    assert status == 1
    assert "No such file" in complained


WITHOUT_TRACE = """
    import sys
    from concurrent.futures import ThreadPoolExecutor

    from proxyexec import StoreExecutor

    executor = StoreExecutor(ThreadPoolExecutor(1))
    print(executor._context.policy, executor.submit(abs, -1).result())
    if "leave" not in sys.argv:
        executor.shutdown()
"""


@pytest.mark.parametrize("arguments", [[], ["leave"]])
def test_without_a_trace_the_executor_is_timed(place, tmp_path, arguments):
    program = tmp_path / "plain.py"
    program.write_text(textwrap.dedent(WITHOUT_TRACE), encoding="utf-8")
    report = tmp_path / "report"
    environment = {**os.environ, REPORT: str(report), "PROXYEXEC_TUNE_POLICY": '"always"'}
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("ProxyAlways()")
    [line] = report.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["trace"] == ""
    assert json.loads(line)["seconds"] > 0


CHILD = """
    import multiprocessing
    from concurrent.futures import ThreadPoolExecutor

    from proxyexec import StoreExecutor


    def policy_here():
        with StoreExecutor(ThreadPoolExecutor(1)) as executor:
            return repr(executor._context.policy)


    if __name__ == "__main__":
        print(policy_here())
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                print(pool.apply(policy_here))
"""


def test_only_the_program_itself_obeys(place, tmp_path):
    program = tmp_path / "child.py"
    program.write_text(textwrap.dedent(CHILD), encoding="utf-8")
    report = tmp_path / "report"
    environment = {**os.environ, REPORT: str(report), "PROXYEXEC_TUNE_POLICY": '"always"'}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["ProxyAlways()", "ProxyNever()", "ProxyNever()"]
    assert len(report.read_text(encoding="utf-8").splitlines()) == 1


def test_without_the_tuner_variables_count_for_nothing(monkeypatch):
    monkeypatch.setenv("PROXYEXEC_TUNE_POLICY", '"always"')
    with StoreExecutor(concurrent.futures.ThreadPoolExecutor(1)) as executor:
        assert type(executor._context.policy) is ProxyNever


ENDLESS = """
    import os
    import subprocess
    import sys
    import threading
    import time

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(sys.argv[1], "w") as pipe:
        pipe.write(f"{os.getpid()} {child.pid}")
    threading.Event().wait()
"""


def test_who_interrupts_leaves_nothing_behind(place, tmp_path):
    program = tmp_path / "endless.py"
    program.write_text(textwrap.dedent(ENDLESS), encoding="utf-8")
    pipe = tmp_path / "started"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "proxyexec", "tune", "run.jsonl"]
    with subprocess.Popen(
        [*command, "--verify", str(program), str(pipe)], stderr=subprocess.PIPE, text=True
    ) as tuner:
        started = [int(one) for one in pipe.read_text(encoding="utf-8").split()]
        tuner.send_signal(signal.SIGINT)
        _, complained = tuner.communicate(timeout=60)
    assert tuner.returncode == 130
    assert "interrupted" in complained
    for process in started:
        assert not is_running(process)


def is_running(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return False
    return state[0] != "Z"


@pytest.mark.parametrize("kind", ["pool", "dask"])
def test_who_interrupts_a_measurement_need_not_wait(place, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    if kind == "dask":
        pytest.importorskip("distributed")
        trace = Path("run.jsonl")
        text = trace.read_text(encoding="utf-8")
        trace.write_text(
            text.replace(
                "concurrent.futures.process.ProcessPoolExecutor", "distributed.client.Client"
            ),
            encoding="utf-8",
        )
    # As on a terminal: all processes get the signal.
    with subprocess.Popen(
        [sys.executable, "-m", "proxyexec", "tune", "run.jsonl"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as tuner:
        workers = []
        while tuner.poll() is None and len(workers) < 2:
            workers = [one for one in children_of(tuner.pid) if overhears_interrupts(one)]
            time.sleep(0.005)
        os.killpg(tuner.pid, signal.SIGINT)
        said, complained = tuner.communicate(timeout=30)
    assert (tuner.returncode, said, complained) == (130, "", "proxyexec: interrupted\n")
    for worker in workers:
        assert not is_running(worker)


def children_of(process):
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text(encoding="ascii").split())
    return found


def overhears_interrupts(process):
    """Tell whether a worker, not the tracker of multiprocessing, ignores SIGINT, or blocks it."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
    masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
    mask = int(masks["SigIgn"], 16) | int(masks["SigBlk"], 16)
    return bool(mask >> (signal.SIGINT - 1) & 1) and b"resource_tracker" not in command
