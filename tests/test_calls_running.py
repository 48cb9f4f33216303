"""Calls that are run from the command line: what is written down, and when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import traceback
from pathlib import Path

import pytest

from proxyexec.calls import Call, CallResult, Requirements, command_line, run
from proxyexec.errors import (
    ArchiveError,
    CallDiedError,
    CallTimeoutError,
    ForeignPayloadError,
    NoStrategyError,
)
from proxyexec.serializers import Serializers
from tests import called
from tests.chaos.census import eventually, family

ROOT = Path(__file__).resolve().parent.parent
MODULE = ("-m", "proxyexec.call")
COMMAND = ("-m", "proxyexec", "call")


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120, **options},
    )


@pytest.fixture(params=[MODULE, COMMAND], ids=["module", "command"])
def program(request):
    return request.param


@pytest.fixture
def ran(tmp_path):
    """Run a call from the command line; return what the program did, and the result."""

    def ran(call, *options, **more):
        call.write(tmp_path / "call.json")
        done = python(*MODULE, *options, tmp_path / "call.json", tmp_path / "result.json", **more)
        assert done.returncode in (0, 1), done.stderr
        result = CallResult.read(tmp_path / "result.json")
        assert result.call == call.id
        assert result.succeeded is (done.returncode == 0), done.stderr
        return result

    yield ran
    for folder, _, names in os.walk(tmp_path):
        assert not [one for one in names if one.startswith(".result")], folder
    assert not (tmp_path / "result.work").exists()


def text(path):
    return Path(path).read_text()


# --- the command line ------------------------------------------------------------------


def test_a_record_written_by_hand(tmp_path, program):
    record = {
        "format": "proxyexec.call",
        "version": 1,
        "function": {"strategy": "reference", "body": "math:hypot"},
        "args": [{"strategy": "json", "body": 3}, {"strategy": "json", "body": 4}],
        "results": ["json"],
    }
    (tmp_path / "call.json").write_text(json.dumps(record))
    done = python(*program, tmp_path / "call.json", tmp_path / "result.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    written = json.loads(text(tmp_path / "result.json"))
    assert written["return_value"]["body"] == 5.0
    assert written["stdout"] == "result.stdout"
    assert CallResult.read(tmp_path / "result.json", allowed=["json"]).value() == 5.0


@pytest.mark.parametrize(
    "arguments", [(), ("call.json",), ("a", "b", "c"), ("--nonesuch", "a", "b")]
)
def test_arguments_that_are_missing_or_wrong(program, arguments, tmp_path):
    done = python(*program, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert done.stdout == ""


def test_help_has_an_example(program):
    done = python(*program, "--help")
    assert done.returncode == 0
    assert "example:" in done.stdout
    assert "exit status" in done.stdout


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (None, "No such file or directory"),
        ("{", "it is no JSON"),
        ("[]", "expected an object"),
        ('{"format": "proxyexec.call", "version": 3}', "version: 3 was written"),
        ('{"format": "proxyexec.call", "version": 1}', "function: "),
    ],
)
def test_records_that_are_none(tmp_path, program, contents, says):
    if contents is not None:
        (tmp_path / "call.json").write_text(contents)
    done = python(*program, tmp_path / "call.json", tmp_path / "result.json")
    assert done.returncode == 2
    assert done.stderr.startswith(f"proxyexec call: CallRecordError: {tmp_path}/call.json: ")
    assert says in done.stderr
    assert not (tmp_path / "result.json").exists()


def test_results_that_cannot_be_written(tmp_path, program):
    Call(called.add, (1,)).write(tmp_path / "call.json")
    (tmp_path / "folder").mkdir()
    for result in ("nonesuch/result.json", "folder"):
        done = python(*program, tmp_path / "call.json", tmp_path / result)
        assert done.returncode == 2
        assert "CallRecordError" in done.stderr


def test_the_command_as_a_whole():
    done = python("-m", "proxyexec", "--version")
    assert done.stdout.startswith("proxyexec ")
    assert "example:" in python("-m", "proxyexec", "--help").stdout
    for arguments in ((), ("nonesuch",)):
        done = python("-m", "proxyexec", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: proxyexec")


def test_help_imports_nothing_that_runs_calls():
    script = (
        "import sys; from proxyexec.cli import main\n"
        "try: main(['call', '--help'])\n"
        "except SystemExit: print(*sys.modules)"
    )
    assert "proxyexec._call_running" not in python("-c", script).stdout.split()


# --- what comes of a call --------------------------------------------------------------


def test_values_and_what_is_known_of_a_call(ran, tmp_path):
    result = ran(Call(called.add, ([1],), {"other": [2]}))
    assert result.value() == [1, 2]
    assert result.name == "add"
    assert result.seconds > 0
    assert result.started > 1e9
    assert (result.directory, result.outputs, result.missing, result.ranks) == (None, (), (), ())
    assert sorted(os.listdir(tmp_path)) == [
        "call.json",
        "result.json",
        "result.stderr",
        "result.stdout",
    ]
    for name in os.listdir(tmp_path):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0, name


def test_functions_by_value(ran):
    number = 3
    assert ran(Call(lambda one: one * number, (2,))).value() == 6


def test_streams_are_captured_whoever_writes(ran):
    result = ran(Call(called.loud, ("said",)))
    out, err = text(result.stdout), text(result.stderr)
    assert sorted(out.splitlines()) == [
        f"said by {how}" for how in ("C", "a child", "print", "write")
    ]
    assert sorted(err.splitlines()) == ["said by a child", "said by print"]


def test_what_is_raised(ran):
    result = ran(Call(called.fail, (1, "two")))
    error = result.exception
    assert type(error) is called.LocalError
    assert (error.one, error.other) == (1, "two")
    shown = "".join(traceback.format_exception(error))
    assert "in fail" in shown
    assert "_call_running.py" not in shown


@pytest.mark.parametrize(
    ("function", "args", "kind"),
    [
        (called.leave, (0,), SystemExit),
        (called.leave, ("text",), SystemExit),
        (called.fail_with, (KeyboardInterrupt(),), KeyboardInterrupt),
        (called.lock, (), NoStrategyError),
    ],
)
def test_a_function_that_ends_the_program(ran, function, args, kind):
    error = ran(Call(function, args)).exception
    assert type(error) is kind
    if kind is SystemExit:
        assert error.code == args[0]


@pytest.mark.parametrize("status", [0, 1, 3])
def test_a_process_that_is_left_at_once(ran, status):
    result = ran(Call(called.leave_at_once, (status,)))
    assert isinstance(result.exception, CallDiedError)
    assert result.exception.status == status
    assert "leave_at_once" in str(result.exception)
    assert text(result.stdout) == "before it left\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_process_that_is_killed(ran, number):
    result = ran(Call(called.kill_itself, (number,)))
    assert isinstance(result.exception, CallDiedError)
    assert result.exception.status == -number
    assert number.name in str(result.exception)


def test_a_process_that_forks_and_returns_twice(ran):
    assert ran(Call(called.fork_and_return)).value() is False


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_function_with_a_pool_of_its_own(ran, method):
    assert ran(Call(called.in_a_pool, (method,))).value() == [0, 2, 4]


def test_records_of_another_python(ran):
    record = Call(called.add, (1,)).to_json()
    record["arguments"]["python"] = "3.9"
    error = ran(Call.from_json(record)).exception
    assert isinstance(error, ForeignPayloadError)
    assert "Python 3.9 wrote" in str(error)


def test_a_function_that_closes_what_it_has_not_opened(ran):
    assert ran(Call(called.close_everything)).value() == "closed"


def test_a_function_called_where_there_is_no_directory_any_more(tmp_path):
    (tmp_path / "gone").mkdir()
    Call(called.add, (1,), path=[str(ROOT)]).write(tmp_path / "call.json")
    script = 'cd "$1"; rmdir "$1"; shift; exec "$@"'
    command = [sys.executable, *MODULE, tmp_path / "call.json", tmp_path / "result.json"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "connectors"))),
    }
    done = subprocess.run(
        ["sh", "-c", script, "sh", tmp_path / "gone", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert CallResult.read(tmp_path / "result.json").value() == 1


def test_functions_that_are_not_there(ran, tmp_path):
    record = Call(called.add).to_json()
    for body in ("nonesuch_module:x", "tests.called:nonesuch"):
        record["function"]["body"] = body
        error = ran(Call.from_json(record)).exception
        assert body.partition(":")[2] in str(error) or "nonesuch_module" in str(error)


def test_strategies_that_are_not_allowed(ran):
    call = Call(called.add, (1,))
    allow = ("--allow", "reference", "--allow", "json")
    assert isinstance(ran(call, *allow).exception, ForeignPayloadError)
    assert ran(Call(called.add, (1,), serializers=Serializers(data="json")), *allow).value() == 1


def test_results_by_the_strategies_that_the_call_names(ran, tmp_path):
    call = Call(called.add, ({1},), {"other": 0}, serializers=Serializers(results="json"))
    result = ran(Call(called.environment, serializers=Serializers(results=["json", "pickle"])))
    assert json.loads(text(tmp_path / "result.json"))["return_value"]["strategy"] == "json"
    assert result.value() == []
    error = ran(Call(called.unprintable_result, serializers=Serializers(results="json"))).exception
    assert "json" in str(error)
    assert call.serializers.results == ("json",)


def test_another_runs_files_are_gone(ran, tmp_path):
    (tmp_path / "result.outputs").mkdir()
    (tmp_path / "result.outputs" / "old").touch()
    (tmp_path / "result.work").mkdir()
    (tmp_path / "result.json").write_text("old")
    (tmp_path / ".result.json.0123").write_text("of one that was killed while it wrote")
    result = ran(Call(called.leave_at_once, (0,)))
    assert isinstance(result.exception, CallDiedError)
    assert not (tmp_path / "result.outputs").exists()


# --- where it runs ---------------------------------------------------------------------


def test_environment(ran):
    call = Call(
        called.environment,
        ("A", "B", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
        environment={"A": "1", "B": None, "MKL_NUM_THREADS": "7"},
        requirements=Requirements(threads=2),
    )
    outside = {**os.environ, "A": "0", "B": "0"}
    assert ran(call, env=outside).value() == ["1", None, "2", "7"]


def test_variables_that_mean_something_to_an_interpreter_that_starts(ran, tmp_path):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "only_there.py").write_text("def f():\n    return 'there'\n")
    record = Call(called.add).to_json()
    record["function"]["body"] = "only_there:f"
    record["environment"] = {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{tmp_path}/modules"}
    assert ran(Call.from_json(record)).value() == "there"
    hashes = {
        ran(Call(called.hash_of, ("text",), environment={"PYTHONHASHSEED": "5"})).value()
        for _ in range(2)
    }
    assert len(hashes) == 1
    # Python changes this one when it starts.
    coerced = Call(called.add, (1,), environment={"LC_ALL": "C", "LC_CTYPE": "C", "LANG": None})
    assert ran(coerced).value() == 1


def test_modules_are_found_in_the_path_of_the_call(ran, tmp_path):
    (tmp_path / "called_there.py").write_text("def f():\n    return __file__\n")
    record = {**Call(called.add).to_json(), "path": [str(tmp_path)]}
    record["function"]["body"] = "called_there:f"
    assert ran(Call.from_json(record)).value() == str(tmp_path / "called_there.py")


def test_where_it_was_started(ran, tmp_path):
    assert ran(Call(called.here, path=[str(ROOT)]), cwd=tmp_path).value()[0] == str(tmp_path)


def test_a_directory_that_is_kept(ran, tmp_path):
    call = Call(
        called.write_files,
        kwargs={"a_dot_csv": "1", "b_dot_txt": "2"},
        directory=tmp_path / "new" / "one",
    )
    result = ran(call)
    assert (result.directory, result.outputs) == (None, ())
    assert sorted(os.listdir(tmp_path / "new" / "one")) == ["a.csv", "b.txt"]


def test_only_what_is_asked_for_is_returned(ran, tmp_path):
    files = {"a_dot_csv": "1", "b_dot_txt": "2", "deep__c_dot_csv": "3"}
    patterns = ["*.csv", "**/c.csv", "nonesuch"]
    result = ran(Call(called.write_files, kwargs=files, outputs=patterns))
    assert result.outputs == ("a.csv", "deep/c.csv")
    assert result.missing == ("nonesuch",)
    assert text(Path(result.directory) / "deep/c.csv") == "3"
    assert sorted(os.listdir(result.directory)) == ["a.csv", "deep"]
    kept = tmp_path / "kept"
    result = ran(Call(called.write_files, kwargs=files, outputs=patterns, directory=kept))
    assert result.outputs == ("a.csv", "deep/c.csv")
    assert sorted(os.listdir(kept)) == ["a.csv", "b.txt", "deep"]


@pytest.mark.parametrize("how", [called.fail, called.leave_at_once])
def test_what_is_asked_for_is_returned_after_a_failure(ran, how):
    def fails(how):
        with open("out.txt", "w") as file:
            file.write("there")
        how(1)

    result = ran(Call(fails, (how,), outputs=["out.txt"]))
    assert not result.succeeded
    assert text(Path(result.directory) / "out.txt") == "there"


def test_an_archive(ran, tmp_path):
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(__file__, "in/here.py")
    result = ran(Call(called.here, archive=tmp_path / "data.tar"))
    directory, found = result.value()
    assert found == ["in/here.py"]
    assert directory == str(tmp_path / "result.work")
    result = ran(Call(called.here, archive=tmp_path / "data.tar", directory=tmp_path / "kept"))
    assert result.value() == (str(tmp_path / "kept"), ["in/here.py"])


def test_an_archive_that_is_not_to_be_unpacked(ran, tmp_path):
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(__file__, "../evil.py")
    result = ran(Call(called.here, archive=tmp_path / "data.tar"))
    assert isinstance(result.exception, ArchiveError)
    assert result.exception.member == "../evil.py"
    assert not (tmp_path / "evil.py").exists()
    missing = ran(Call(called.here, archive=tmp_path / "nonesuch.tar")).exception
    assert isinstance(missing, FileNotFoundError)


def test_the_interpreters_options_are_handed_on(tmp_path):
    script = f"""
from proxyexec.calls import Call, run
from tests import called
print(run(Call(called.flags), {str(tmp_path)!r}).value())
"""
    options = ("-X", "dev", "-X", "int_max_str_digits=5000", "-W", "ignore::UserWarning", "-O")
    done = python(*options, "-c", script)
    dev, xoptions, warnings, optimize = eval(done.stdout)
    assert (dev, optimize) == (True, 1)
    assert {name: xoptions[name] for name in ("dev", "int_max_str_digits")} == {
        "dev": True,
        "int_max_str_digits": "5000",
    }
    assert "ignore::UserWarning" in warnings


# --- what ends it ----------------------------------------------------------------------


def started(tmp_path, call, *options, **more):
    call.write(tmp_path / "call.json")
    command = [sys.executable, *MODULE, *options, tmp_path / "call.json", tmp_path / "result.json"]
    return subprocess.Popen(command, cwd=ROOT, **more)


def test_a_call_that_takes_too_long(ran, tmp_path):
    call = Call(
        called.say_and_wait, (str(tmp_path / "started"),), requirements=Requirements(timeout=1)
    )
    result = ran(call)
    assert isinstance(result.exception, CallTimeoutError)
    assert isinstance(result.exception, TimeoutError)
    assert result.exception.seconds == 1
    assert "say_and_wait" in str(result.exception)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_runner_that_is_asked_to_end(tmp_path, number):
    runner = started(tmp_path, Call(called.say_and_wait, (str(tmp_path / "started"),)))
    eventually((tmp_path / "started").exists, "the function runs")
    runner.send_signal(number)
    assert runner.wait(60) == 1
    error = CallResult.read(tmp_path / "result.json").exception
    if number == signal.SIGINT:
        assert type(error) is KeyboardInterrupt
    else:
        assert isinstance(error, CallDiedError)
        assert error.status == -number


def test_what_a_call_has_started_ends_with_it(tmp_path):
    with family() as ours:
        done = tmp_path / "left"
        runner = started(tmp_path, Call(called.leave_a_process, (str(done),)), env=ours.environment)
        assert runner.wait(60) == 0
        eventually(lambda: not ours.members(), "nothing runs")
        runner = started(
            tmp_path,
            Call(called.start_and_wait, (str(tmp_path / "started"),)),
            env=ours.environment,
        )
        eventually((tmp_path / "started").exists, "the function has started a process")
        runner.terminate()
        assert runner.wait(60) == 1
        eventually(lambda: not ours.members(), "nothing runs")


def test_a_function_that_does_not_want_to_end(tmp_path):
    with family() as ours:
        call = Call(called.deaf, (str(tmp_path / "started"),))
        runner = started(tmp_path, call, env=ours.environment)
        eventually((tmp_path / "started").exists, "the function runs")
        runner.terminate()
        assert runner.wait(60) == 1
        assert CallResult.read(tmp_path / "result.json").exception.status == -signal.SIGKILL
        assert not ours.members()


def test_a_runner_that_is_killed_takes_the_function_along(tmp_path):
    with family() as ours:
        call = Call(called.say_and_wait, (str(tmp_path / "started"),))
        runner = started(tmp_path, call, env=ours.environment)
        eventually((tmp_path / "started").exists, "the function runs")
        runner.kill()
        runner.wait(60)
        eventually(lambda: not ours.members(), "nothing runs")
        assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("kind", ["value", "error"])
def test_a_result_is_whole_or_not_there(tmp_path, kind):
    """Whoever is killed while the result is written."""

    def large():
        if kind == "error":
            raise ValueError("x" * 20_000_000)
        return "x" * 20_000_000

    for _ in range(5):
        with family() as ours:
            runner = started(tmp_path, Call(large), env=ours.environment)
            eventually(lambda: list(tmp_path.glob(".result.json.*")), "the result is being written")
        runner.wait(60)
        if (tmp_path / "result.json").exists():
            json.loads(text(tmp_path / "result.json"))
        for left in [*tmp_path.glob(".result.json.*"), *tmp_path.glob("result.json")]:
            left.unlink()


def test_a_lifeline(tmp_path):
    """The function ends with those who hold the other end of its standard input."""
    with family() as ours:
        call = Call(called.say_and_wait, (str(tmp_path / "started"),))
        pipe = {"stdin": subprocess.PIPE, "env": ours.environment}
        runner = started(tmp_path, call, "--lifeline", **pipe)
        runner.stdin.write(b".")
        runner.stdin.flush()
        eventually((tmp_path / "started").exists, "the function runs")
        runner.stdin.close()
        assert runner.wait(60) == 1
        assert isinstance(CallResult.read(tmp_path / "result.json").exception, CallDiedError)
        assert not ours.members()


def test_a_lifeline_that_some_launcher_has_cut(tmp_path):
    release = tmp_path / "release"
    call = Call(called.say_and_wait, (str(tmp_path / "started"), str(release)))
    runner = started(tmp_path, call, "--lifeline", stdin=subprocess.DEVNULL)
    eventually((tmp_path / "started").exists, "the function runs")
    release.touch()
    assert runner.wait(60) == 0


# --- by way of what a batch system is told ---------------------------------------------


def test_a_command_line_can_be_run(tmp_path):
    call = Call(
        called.write_files,
        kwargs={"a_dot_csv": "1"},
        outputs=["a.csv"],
        environment={"A": "1"},
        path=[str(ROOT)],
    )
    call.write(tmp_path / "job.json")
    line = command_line(call, tmp_path / "job.json", launcher=["env", "C=2"])
    done = subprocess.run(line.argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert all(map(os.path.exists, line.input_files))
    assert all(map(os.path.exists, line.output_files))
    assert {str(one) for one in tmp_path.iterdir()} == {*line.input_files, *line.output_files}
    assert CallResult.read(line.output_files[0]).value() == ["a_dot_csv"]


def test_run(tmp_path):
    directory = tmp_path / "new"
    result = run(Call(called.loud), directory)
    assert result.value() == 4
    assert Path(result.stdout).parent == directory
    assert directory.stat().st_mode & 0o777 == 0o700
    assert isinstance(run(Call(called.fail, (1, 2)), directory).exception, called.LocalError)
    with pytest.raises(CallTimeoutError, match="say_and_wait .* took longer than 1 s"):
        run(Call(called.say_and_wait, (str(tmp_path / "started"),)), directory, timeout=1)
