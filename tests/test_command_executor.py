"""The executor of commands: what ends them, what they leave, and what it adds to StoreExecutor.

The conformance suite is run on it in tests/engines.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, wait
from pathlib import Path

import pytest

from proxyexec import ProxySize, StoreExecutor
from proxyexec.calls import Call, CommandExecutor, Requirements
from proxyexec.errors import (
    CallDiedError,
    CallTimeoutError,
    CommandError,
    NoStrategyError,
    RemoteError,
)
from proxyexec.serializers import Serializers
from tests import called
from tests.chaos.census import eventually, family

ROOT = Path(__file__).resolve().parent.parent
SOON = 60


@pytest.fixture
def place(tmp_path):
    """Where executors have their files; nothing is left there."""
    place = tmp_path / "place"
    place.mkdir()
    yield place
    gc.collect()
    assert not list(place.iterdir())


@pytest.fixture
def executor(place):
    with CommandExecutor(max_workers=2, directory=place) as executor:
        yield executor


def test_values(executor):
    assert executor.submit(called.add, 1, other=2).result(SOON) == 3
    number = 5
    assert list(executor.map(lambda one: one + number, range(4))) == [5, 6, 7, 8]
    items = [1]
    assert executor.submit(called.same, items, items).result(SOON) is True


def test_keywords_may_have_the_names_of_submits_own_parameters(executor):
    assert executor.submit(dict, self=1, fn=2, call=3).result(SOON) == {
        "self": 1,
        "fn": 2,
        "call": 3,
    }


def test_what_is_in_main_travels_by_value(place, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        f"""
from proxyexec.calls import CommandExecutor
import beside_it

class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return type(other) is Point and other.x == self.x

class OurError(Exception): pass

def moved(point):
    if point.x == 0: raise OurError(point)
    return Point(point.x + beside_it.STEP)

if __name__ == "__main__":
    with CommandExecutor(directory={str(place)!r}) as executor:
        assert executor.submit(moved, Point(1)).result() == Point(3)
        error = executor.submit(moved, Point(0)).exception()
        assert type(error) is OurError and error.args == (Point(0),), repr(error)
"""
    )
    (tmp_path / "beside_it.py").write_text("STEP = 2\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "connectors"))),
    }
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_function_prints_is_printed_here(executor, capfd):
    assert executor.submit(called.loud, "said").result(SOON) == 4
    seen = capfd.readouterr()
    assert sorted(seen.out.splitlines()) == [
        f"said by {how}" for how in ("C", "a child", "print", "write")
    ]
    assert sorted(seen.err.splitlines()) == ["said by a child", "said by print"]


def test_records_are_private_and_gone_when_the_call_has_ended(executor, place, tmp_path):
    [directory] = place.iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    release = tmp_path / "release"
    future = executor.submit(called.say_and_wait, str(tmp_path / "started"), str(release))
    eventually((tmp_path / "started").exists, "the function runs")
    for folder, folders, files in os.walk(directory):
        assert all(Path(folder, one).stat().st_mode & 0o077 == 0 for one in (*folders, *files))
        assert folder == str(directory) or "call.json" in files
    release.touch()
    future.result(SOON)
    assert not list(directory.iterdir())


# --- failures --------------------------------------------------------------------------


def test_what_is_raised(executor):
    assert type(executor.submit(called.fail, 1, 2).exception(SOON)) is called.LocalError
    assert type(executor.submit(called.leave, 3).exception(SOON)) is SystemExit
    error = executor.submit(called.leave_at_once, 3).exception(SOON)
    assert isinstance(error, CallDiedError)
    assert error.status == 3
    error = executor.submit(called.kill_itself, signal.SIGKILL).exception(SOON)
    assert "SIGKILL" in str(error)
    assert executor.submit(called.add, 1).result(SOON) == 1


def test_what_cannot_travel(executor):
    assert isinstance(executor.submit(called.add, called.lock()).exception(SOON), NoStrategyError)
    assert isinstance(executor.submit(called.lock).exception(SOON), NoStrategyError)
    assert isinstance(executor.submit(5).exception(SOON), TypeError)


def test_exceptions_that_cannot_travel(executor):
    class Locked(ValueError):
        pass

    def fails():
        error = Locked("with a lock")
        error.lock = called.lock()
        raise error

    error = executor.submit(fails).exception(SOON)
    assert isinstance(error, RemoteError)
    assert isinstance(error, ValueError)
    assert "Locked" in str(error)


@pytest.mark.parametrize(
    ("launcher", "says"),
    [
        (["nonesuch-launcher"], "cannot be started"),
        (["sh", "-c", "echo no partition >&2; exit 3"], "ended with exit status 3"),
        (["sh", "-c", "echo no partition; kill -9 $$"], "was killed by signal 9 (SIGKILL)"),
        (["sh", "-c", "echo no partition; exit 0"], "ended with exit status 0"),
        ([sys.executable, "-c", "import sys; sys.exit('x' * 9000 + 'no partition')"], "status 1"),
    ],
)
def test_commands_that_give_no_result(place, launcher, says):
    with CommandExecutor(launcher, directory=place) as executor:
        error = executor.submit(called.add, 1).exception(SOON)
    assert isinstance(error, CommandError)
    assert says in str(error)
    assert "the command for add (call " in str(error)
    assert error.command[: len(launcher)] == tuple(launcher)
    if launcher[0] != "nonesuch-launcher":
        assert error.stderr.endswith("no partition")
        assert len(error.stderr) <= 2_000


def test_an_interpreter_that_cannot_run_calls(place):
    with CommandExecutor(directory=place, python="/bin/false") as executor:
        assert "status 1" in str(executor.submit(called.add, 1).exception(SOON))


def test_timeouts(place, tmp_path):
    with family() as ours:
        environment = {"PROXYEXEC_TEST_FAMILY": ours.name}
        with CommandExecutor(timeout=2, directory=place, environment=environment) as executor:
            future = executor.submit(called.start_and_wait, str(tmp_path / "started"))
            with pytest.raises(
                TimeoutError, match="start_and_wait .* took longer than 2 s"
            ) as caught:
                future.result(SOON)
            assert isinstance(caught.value, CallTimeoutError)
            assert not ours.members()


# --- cancelling ------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", [[], ["sh", "-c", '"$@"; exit $?', "sh"]], ids=["none", "sh"])
@pytest.mark.parametrize("function", [called.say_and_wait, called.start_and_wait, called.deaf])
def test_cancelling_what_runs_ends_it(place, tmp_path, launcher, function):
    with family() as ours:
        environment = {"PROXYEXEC_TEST_FAMILY": ours.name}
        with CommandExecutor(launcher, 1, directory=place, environment=environment) as executor:
            told = []
            future = executor.submit(function, str(tmp_path / "started"))
            future.add_done_callback(told.append)
            eventually((tmp_path / "started").exists, "the function runs")
            assert future.running()
            assert future.cancel() is True
            assert future.cancelled()
            assert future.done()
            assert told == [future]
            assert not ours.members()
            assert future.cancel() is True
            with pytest.raises(CancelledError):
                future.result(0)
            assert executor.submit(called.add, 1).result(SOON) == 1
            assert told == [future]


def test_cancelling_what_waits(place, tmp_path):
    release = tmp_path / "release"
    with CommandExecutor(max_workers=1, directory=place) as executor:
        running = executor.submit(called.say_and_wait, str(tmp_path / "started"), str(release))
        waiting = executor.submit(called.add, 1)
        last = executor.submit(called.add, 2)
        assert waiting.cancel()
        assert wait([waiting], SOON).done == {waiting}
        release.touch()
        assert last.result(SOON) == 2
        assert running.result(SOON) is None
        assert running.cancel() is False
        assert last.cancel() is False


def test_two_threads_cancel_the_same_call(place, tmp_path):
    with CommandExecutor(max_workers=1, directory=place) as executor:
        future = executor.submit(called.say_and_wait, str(tmp_path / "started"))
        eventually((tmp_path / "started").exists, "the function runs")
        barrier, said = threading.Barrier(2), []

        def cancel():
            barrier.wait()
            said.append((future.cancel(), future.cancelled()))

        threads = [threading.Thread(target=cancel) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        assert said == [(True, True)] * 2


def test_cancelling_while_it_starts(place, tmp_path):
    """Whenever it comes, a call is cancelled and gone, or it has ended."""
    with family() as ours:
        environment = {"PROXYEXEC_TEST_FAMILY": ours.name}
        with CommandExecutor(max_workers=2, directory=place, environment=environment) as executor:
            for number in range(10):
                future = executor.submit(called.say_and_wait, str(tmp_path / f"started-{number}"))
                for _ in range(number * 20_000):
                    pass
                assert future.cancel() is True
                assert future.cancelled()
                assert not ours.members()


def test_shutting_down(place, tmp_path):
    release = tmp_path / "release"
    executor = CommandExecutor(max_workers=1, directory=place)
    running = executor.submit(called.say_and_wait, str(tmp_path / "started"), str(release))
    waiting = [executor.submit(called.add, n) for n in range(3)]
    eventually((tmp_path / "started").exists, "the function runs")
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(one.cancelled() for one in waiting)
    assert wait(waiting, SOON).done == set(waiting)
    assert not running.done()
    for submit in (executor.submit, lambda call: executor.submit_call(call, tmp_path / "new")):
        with pytest.raises(RuntimeError, match="after shutdown"):
            submit(Call(called.add, (1,)))
    release.touch()
    assert running.result(SOON) is None
    executor.shutdown()


# --- how the program ends --------------------------------------------------------------


def program(tmp_path, place, body, ours, **options):
    path = tmp_path / "program.py"
    path.write_text(
        "import os, sys, time\n"
        "from proxyexec import ProxySize, StoreExecutor\n"
        "from proxyexec.calls import CommandExecutor\n"
        "from tests import called\n"
        f"PLACE, STARTED = {str(place)!r}, {str(tmp_path / 'started')!r}\n" + body
    )
    path_variable = os.pathsep.join(map(str, (ROOT, ROOT / "connectors")))
    return subprocess.Popen(
        [sys.executable, path],
        cwd=ROOT,
        env={**ours.environment, "PYTHONPATH": path_variable},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


IN_A_BLOCK = """
with {executor} as executor:
    future = executor.submit(called.say_and_wait, STARTED)
    waiting = [executor.submit(called.add, n) for n in range(3)]
    future.result()
"""
WITH_CALLS_THAT_WAIT = """
with {executor} as executor:
    future = executor.submit(called.say_and_wait, STARTED)
    later = executor.submit(called.add, future if hasattr(executor, "store") else 1, 2)
    future.result()
"""
WITHOUT_A_BLOCK = """
executor = {executor}
future = executor.submit(called.start_and_wait, STARTED)
future.result()
"""
WHILE_SHUTTING_DOWN = """
executor = {executor}
future = executor.submit(called.say_and_wait, STARTED)
executor.shutdown()
"""


@pytest.mark.parametrize(
    "executor",
    [
        "CommandExecutor(max_workers=1, directory=PLACE)",
        "StoreExecutor(CommandExecutor(max_workers=1, directory=PLACE), should_proxy=ProxySize(10))",
    ],
    ids=["bare", "wrapped"],
)
@pytest.mark.parametrize(
    "body",
    [IN_A_BLOCK, WITH_CALLS_THAT_WAIT, WITHOUT_A_BLOCK, WHILE_SHUTTING_DOWN],
    ids=["block", "chain", "none", "shutdown"],
)
def test_ctrl_c_leaves_nothing(tmp_path, place, executor, body):
    with family() as ours:
        client = program(tmp_path, place, body.format(executor=executor), ours)
        eventually((tmp_path / "started").exists, "the function runs")
        os.killpg(client.pid, signal.SIGINT)
        _, error = client.communicate(timeout=SOON)
        assert client.returncode == -signal.SIGINT
        assert error.rstrip().endswith("KeyboardInterrupt")
        eventually(lambda: not ours.members(), "nothing runs")


def test_the_end_of_the_program_waits_for_calls(tmp_path, place):
    body = """
executor = CommandExecutor(max_workers=1, directory=PLACE)
for text in ("one", "two"):
    executor.submit(called.loud, text)
"""
    with family() as ours:
        client = program(tmp_path, place, body, ours)
        out, error = client.communicate(timeout=SOON)
        assert client.returncode == 0, error
        assert {"one by print", "two by print"} < set(out.splitlines())
        assert not ours.members()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_that_is_killed_leaves_no_processes(tmp_path, number):
    place = tmp_path / "place"  # which is left: nobody is there to remove it
    place.mkdir()
    with family() as ours:
        body = IN_A_BLOCK.format(executor="CommandExecutor(max_workers=1, directory=PLACE)")
        client = program(tmp_path, place, body, ours)
        eventually((tmp_path / "started").exists, "the function runs")
        client.send_signal(number)
        client.communicate(timeout=SOON)
        eventually(lambda: not ours.members(), "nothing runs")


def test_a_forked_child_removes_nothing(place, tmp_path):
    with CommandExecutor(max_workers=1, directory=place) as executor:
        child = os.fork()
        if child == 0:
            try:
                del executor
                gc.collect()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert len(list(place.iterdir())) == 1


# --- calls of the user's ---------------------------------------------------------------


def test_calls_with_needs_of_their_own(executor, tmp_path):
    call = Call(called.write_files, kwargs={"a_dot_txt": "1"}, outputs=["a.txt"])
    result = executor.submit_call(call, tmp_path / "new").result(SOON)
    assert result.value() == ["a_dot_txt"]
    assert Path(result.directory, "a.txt").read_text() == "1"
    assert (tmp_path / "new" / "call.json").exists()
    failed = executor.submit_call(Call(called.fail, (1, 2)), tmp_path / "new").result(SOON)
    assert type(failed.exception) is called.LocalError
    with pytest.raises(NoStrategyError):
        executor.submit_call(Call(called.add, (called.lock(),)), tmp_path / "other")


def test_a_command_that_fails_does_not_find_what_another_left(tmp_path, place):
    with CommandExecutor(directory=place) as executor:
        assert (
            executor.submit_call(Call(called.add, (1,)), tmp_path / "one").result(SOON).value() == 1
        )
    with CommandExecutor(["false"], directory=place) as executor:
        future = executor.submit_call(Call(called.add, (2,)), tmp_path / "one")
        assert isinstance(future.exception(SOON), CommandError)


def test_environment_and_requirements_of_each_call(place):
    options = {
        "environment": {"A": "1", "MKL_NUM_THREADS": "9", "HOME": None},
        "requirements": Requirements(threads=3, timeout=SOON),
    }
    with CommandExecutor(directory=place, **options) as executor:
        names = ("A", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "HOME")
        assert executor.submit(called.environment, *names).result(SOON) == ["1", "3", "9", None]
    with CommandExecutor(directory=place, requirements=Requirements(timeout=1)) as executor:
        future = executor.submit(time.sleep, 300)
        assert isinstance(future.exception(SOON), CallTimeoutError)


@pytest.mark.parametrize("launcher", [["env", "X=1"], ["nice"], ["sh", "-c", 'X=1 "$@"', "sh"]])
def test_launchers(place, launcher):
    with CommandExecutor(launcher, 1, directory=place) as executor:
        assert executor.submit(called.add, 1, 2).result(SOON) == 3
        [value] = executor.submit(called.environment, "X").result(SOON)
        assert value == (None if launcher == ["nice"] else "1")


def test_strategies_of_the_users_choice(place):
    serializers = Serializers(code="reference", data="json", results="json")
    with CommandExecutor(directory=place, serializers=serializers) as executor:
        assert executor.submit(called.add, 1, other=2).result(SOON) == 3
        assert isinstance(executor.submit(called.add, {1}).exception(SOON), NoStrategyError)
        assert isinstance(executor.submit(lambda: 1).exception(SOON), NoStrategyError)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"launcher": "srun"}, TypeError),
        ({"launcher": [1]}, TypeError),
        ({"max_workers": 0}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"directory": "/nonesuch"}, OSError),
        ({"environment": {"A": 1}}, TypeError),
    ],
)
def test_mistakes_are_told_at_once(options, error):
    with pytest.raises(error):
        CommandExecutor(**options)


# --- with a store ----------------------------------------------------------------------


def record_of(place):
    """The record of the one call that is under way, and its size."""
    [path] = place.glob("*/*/call.json")
    return json.loads(path.read_text()), path.stat().st_size


def test_a_call_with_a_large_argument_has_a_small_record(place, tmp_path):
    large = os.urandom(1 << 20) * 100
    release = tmp_path / "release"

    def length(data, started):
        called.say_and_wait(started, str(release))
        return len(data)

    base = CommandExecutor(max_workers=1, directory=place)
    with StoreExecutor(base, should_proxy=ProxySize("1 MB")) as executor:
        future = executor.submit(length, large, str(tmp_path / "started"))
        eventually((tmp_path / "started").exists, "the function runs")
        record, size = record_of(place)
        assert size < 10_000
        assert record["name"].endswith("length")
        release.touch()
        assert future.result(SOON) == len(large) == 104_857_600
        back = executor.submit(bytes, large).result(SOON)
        assert back == large
        del back


def test_what_a_cancelled_call_has_stored_is_gone(place, tmp_path):
    base = CommandExecutor(max_workers=1, directory=place)
    with StoreExecutor(base, should_proxy=ProxySize(1_000)) as executor:
        future = executor.submit(called.say_and_wait, str(tmp_path / "started"))
        large = executor.submit(len, bytes(10_000))
        eventually((tmp_path / "started").exists, "the function runs")
        assert future.cancel()
        assert future.cancelled()
        assert large.result(SOON) == 10_000
        eventually(lambda: executor.store.usage() == (0, 0), "everything is evicted")


def test_errors_with_the_name_of_what_ran(place):
    with StoreExecutor(CommandExecutor(["false"], directory=place)) as executor:
        error = executor.submit(called.add, 1).exception(SOON)
        assert isinstance(error, CommandError)
        assert "add" in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
