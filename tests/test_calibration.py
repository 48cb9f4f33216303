"""Calibrations: what real executors and stores cost, and what is kept of that on disk."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import stat
import threading

import pytest

from proxyexec import ProcessPoolExecutor, ProxyAdaptive, ProxySize, StoreExecutor
from proxyexec import _calibrations
from proxyexec._calibrate import CalibrationError, _are_steady, _curves, _Way, calibrate
from proxyexec._costs import CostModel
from proxyexec._limits import limits_of_arguments, limits_of_results
from proxyexec.metrics import read_trace
from tests import functions
from tests.conftest import settle
from tests.test_costs import model


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def pool(method="fork", workers=2):
    context = multiprocessing.get_context(method)
    return concurrent.futures.ProcessPoolExecutor(workers, context)


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "eager"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("place", ["files", "redis"])
def test_real_executors(redis_url, place, method, lazy):
    url = redis_url if place == "redis" else None
    with StoreExecutor(pool(method), url, ProxySize(1000), lazy=lazy) as executor:
        found = calibrate(executor, seconds=0.2).model
        for side in ("argument", "result"):
            for path in ("inline", "store"):
                assert found.seconds(side, "buffers", path, 1_000_000) > 0
        for path in ("found", "put", "get"):
            assert found.seconds("argument", "buffers", path, 1_000_000) > 0
        assert found.seconds("argument", "pickle", "dump", 1_000_000) > 0
        limits_of_arguments(found, 1.0)
        limits_of_results(found, 1.0)
        # Nothing of it is the program's, and nothing is left.
        assert executor.stats().tasks_done == 0
        assert executor.submit(functions.add, 1, 2).result() == 3
        settle(executor)
        assert executor.store.usage().objects == 0
        assert not executor._tasks._in_flight


def test_workers_that_do_not_answer(tmp_path):
    with StoreExecutor(pool(workers=1), None, ProxySize(1000)) as executor:
        started, release = tmp_path / "started", tmp_path / "release"
        busy = executor.submit(functions.touch_then_wait, str(started), str(release))
        with pytest.raises(CalibrationError, match="in time"):
            calibrate(executor, patience=0.05)
        release.touch()
        busy.result()
        settle(executor)
        assert executor.store.usage().objects == 0


def test_workers_that_die():
    with StoreExecutor(pool(workers=1), None, ProxySize(1000)) as executor:
        with pytest.raises(concurrent.futures.BrokenExecutor):
            executor.submit(functions.die).result()
        with pytest.raises(CalibrationError, match="did not arrive"):
            calibrate(executor)


def test_what_the_program_stores_is_counted_and_nothing_else(tmp_path):
    with StoreExecutor(pool(), None, ProxySize(1000)) as executor:
        with executor.trace(tmp_path / "run.jsonl"):
            before = executor.submit(functions.identity, bytes(5000)).result()
            assert len(before) == 5000
            counted = executor.stats()
            calibrate(executor)
            settle(executor)
            again = executor.stats()
            for name in ("objects_resolved", "objects_never_resolved", "bytes_resolved"):
                assert getattr(again, name) == getattr(counted, name)
            assert again.bytes_peak == counted.bytes_peak
            del before
            executor.store.usage()
        trace = read_trace(tmp_path / "run.jsonl")
        assert {one.bytes < 6000 for one in (*trace.resolved, *trace.evicted)} == {True}
        assert len(trace.resolved) == 1
        assert executor.store.live.bytes == 0
        assert not executor.store.live._left_out


def test_a_store_that_is_full(tmp_path):
    from proxyexec import Store
    from proxyexec_connectors.file import FileConnector

    store = Store("small", FileConnector(), max_bytes=100_000, full_timeout=0.1)
    with StoreExecutor(pool(), store, ProxySize(1000)) as executor:
        with pytest.raises(CalibrationError, match="did not arrive"):
            calibrate(executor)
        assert executor.submit(functions.add, 1, 2).result() == 3


def test_pools_that_are_their_own_base():
    with ProcessPoolExecutor(1) as executor:
        with pytest.raises(CalibrationError, match="itself"):
            calibrate(executor)
        assert executor.submit(functions.add, 1, 2).result() == 3


def test_kept_on_disk(cache):
    setting = {"machine": "one", "python": "3"}
    assert _calibrations.load(setting) is None
    one = CostModel(model().curves, setting)
    assert _calibrations.save(one)
    assert _calibrations.load(setting) == one
    assert _calibrations.load({**setting, "python": "4"}) is None
    [file] = (cache / "proxyexec" / "costs").iterdir()
    assert file == _calibrations.place_of(setting)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b'{"a": 1}'])
def test_broken_files(content):
    setting = {"machine": "one"}
    assert _calibrations.save(CostModel(model().curves, setting))
    _calibrations.place_of(setting).write_bytes(content)
    assert _calibrations.load(setting) is None
    assert _calibrations.save(CostModel(model().curves, setting))
    assert _calibrations.load(setting) is not None


def test_a_file_of_another_setting():
    setting, other = {"machine": "one"}, {"machine": "two"}
    _calibrations.save(CostModel(model().curves, setting))
    os.replace(_calibrations.place_of(setting), _calibrations.place_of(other))
    assert _calibrations.load(other) is None


@pytest.mark.parametrize("points", [None, [[1e999, 1.0]], [[0, 1e999]], [[0]], 5])
def test_files_that_tell_nothing(points):
    setting = {"machine": "one"}
    _calibrations.save(CostModel(model().curves, setting))
    place = _calibrations.place_of(setting)
    document = json.loads(place.read_text(encoding="utf-8"))
    if points is None:
        document["curves"] = document["curves"][:1]
    else:
        document["curves"][0]["points"] = points
    place.write_text(json.dumps(document), encoding="utf-8")
    assert _calibrations.load(setting) is None


def test_a_place_that_cannot_be_written(cache):
    (cache / "proxyexec").write_text("in the way")
    assert not _calibrations.save(model())
    assert _calibrations.load(model().setting) is None


def test_the_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in (None, "", "relative/place"):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        if given is not None:
            monkeypatch.setenv("XDG_CACHE_HOME", given)
        place = _calibrations.place_of({})
        assert place.parent == tmp_path / ".cache" / "proxyexec" / "costs"


def test_several_writers_at_once(cache):
    setting = {"machine": "one"}
    models = [CostModel(model(pickling=number * 1e-9).curves, setting) for number in range(4)]
    barrier, seen = threading.Barrier(4), []

    def write(one):
        barrier.wait()
        for _ in range(50):
            assert _calibrations.save(one)
            seen.append(_calibrations.load(setting))

    threads = [threading.Thread(target=write, args=(one,)) for one in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 200
    assert all(one in models for one in seen)
    assert len(list((cache / "proxyexec" / "costs").iterdir())) == 1


def test_settings_tell_executors_and_stores_apart(redis_url):
    settings = []
    for method, url, workers in (
        ("fork", None, 1),
        ("spawn", None, 1),
        ("fork", None, 2),
        ("fork", redis_url, 1),
    ):
        with StoreExecutor(pool(method, workers), url, ProxySize(1000)) as executor:
            settings.append(_calibrations.setting_of(executor))
    assert len({json.dumps(one) for one in settings}) == 4
    with StoreExecutor(pool(), None, ProxySize(1)) as executor:
        again = _calibrations.setting_of(executor)
    assert again == settings[2]


def test_settings_have_no_passwords():
    from proxyexec import Store
    from proxyexec_connectors.file import FileConnector

    class Elsewhere(FileConnector):
        @property
        def url(self):
            return "redis://user:secret@host:6380/3?password=secret"

    with StoreExecutor(pool(), Store("one", Elsewhere()), ProxySize(1000)) as executor:
        assert _calibrations.setting_of(executor)["store"] == "redis://host:6380"


def test_times_that_vary():
    assert _are_steady([[1.0, 1.1, 5.0], [2.0, 2.2, 2.1], [1.0, 3.0, 3.0]])
    assert not _are_steady([[1.0, 1.8, 5.0], [2.0, 4.2, 4.1], [1.0, 1.0, 3.0]])
    assert not _are_steady([[1.0], []])


def test_what_was_measured_once_counts_beyond_what_was_measured_often():
    small, large = (_Way("argument", "buffers", "inline", size) for size in (4_000, 9_000_000))
    middle = _Way("argument", "buffers", "inline", 1_000_000)
    often = {small: [1.0, 1.1], middle: [2.0, 2.1]}
    key = "argument", "buffers", "inline"
    assert _curves({**often, large: [9.0]})[key].points[-1] == (9_000_000, 9.0)
    between = _Way("argument", "buffers", "inline", 60_000)
    assert len(_curves({**often, between: [1.9]})[key].points) == 2


def test_one_of_many_tasks_is_measured_too():
    with StoreExecutor(pool(), None, ProxyAdaptive(calibrate=False)) as executor:
        curves = calibrate(executor, seconds=0.2).model.curves
    few = curves["argument", "buffers", "inline"].seconds(0)
    assert 0 < curves["argument", "buffers", "task"].seconds(0) < 10 * few
    again, get = (curves["argument", "buffers", one] for one in ("again", "get"))
    assert 0 < again.seconds(1_000_000) < 10 * get.seconds(1_000_000)
