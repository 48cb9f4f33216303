"""The executor of commands: the conformance suite, and calls of several ranks of a real MPI."""

from __future__ import annotations

import os
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from proxyexec import ProxySize, StoreExecutor
from proxyexec.calls import Call, CommandExecutor, Requirements
from proxyexec.errors import CallDiedError, CallTimeoutError
from proxyexec.testing import ExecutorConformance
from tests import called
from tests.chaos.census import eventually, family
from tests.engines.short import lazy_in_short
from tests.test_command_executor import place  # noqa: F401 - a fixture

SOON = 120
TWO = Requirements(ranks=2)


class TestCommands(ExecutorConformance):
    cancels_running = True
    lazy = lazy_in_short(False)

    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls):
        return lambda: CommandExecutor(max_workers=2)


@pytest.fixture
def processes():
    """The processes of the calls; none is left."""
    with family() as ours:
        yield ours
        eventually(lambda: not ours.members(), "nothing runs")


@pytest.fixture
def executor(mpiexec, place, processes, monkeypatch):
    for name, value in {**mpiexec.variables, **processes.environment}.items():
        monkeypatch.setenv(name, value)
    with CommandExecutor(mpiexec.launcher, 1, requirements=TWO, directory=place) as executor:
        yield executor


def test_two_ranks(executor, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert executor.submit(called.rank_and_size).result(SOON) == (0, 2, 3)
    assert sorted(capfd.readouterr().out.splitlines()) == ["this is rank 0", "this is rank 1"]
    assert {"of-0.txt", "of-1.txt"} < set(os.listdir())


def test_the_files_of_two_ranks(executor, tmp_path):
    call = Call(called.rank_and_size, outputs=["of-*.txt"], requirements=TWO, path=[os.getcwd()])
    result = executor.submit_call(call, tmp_path / "files").result(SOON)
    assert result.value() == (0, 2, 3)
    assert [Path(one.stdout).read_text() for one in result.ranks] == [
        "this is rank 0\n",
        "this is rank 1\n",
    ]
    assert all(Path(one.stderr).read_text() == "" for one in result.ranks)
    assert (result.stdout, result.stderr) == (result.ranks[0].stdout, result.ranks[0].stderr)
    assert result.outputs == ("of-0.txt", "of-1.txt")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("how", "kind"), [("raise", called.LocalError), ("exit", SystemExit), ("die", CallDiedError)]
)
def test_a_rank_that_fails_ends_all(executor, rank, how, kind):
    error = executor.submit(called.fails_on, rank, how).exception(SOON)
    assert type(error) is kind
    if kind is called.LocalError:
        assert error.other == rank
    if kind is CallDiedError:
        assert error.status == 7


def test_another_number_of_ranks_than_was_asked_for(mpiexec, executor, tmp_path):
    launcher = [*mpiexec.launcher[:-1], "2"]
    with CommandExecutor(launcher, 1) as other:
        call = Call(called.rank_and_size, requirements=Requirements(ranks=3), path=[os.getcwd()])
        error = other.submit_call(call, tmp_path / "files").result(SOON).exception
    assert "asks for 3 ranks, and the launcher has started 2" in str(error)


def test_cancelling_ends_all_ranks(executor, processes, tmp_path):
    future = executor.submit(called.say_and_wait, str(tmp_path / "started"))
    eventually((tmp_path / "started").exists, "the function runs")
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(0)
    eventually(lambda: not processes.members(), "nothing runs")


def test_ranks_that_take_too_long(mpiexec, executor, place, tmp_path):
    with CommandExecutor(mpiexec.launcher, 1, 3, requirements=TWO, directory=place) as other:
        error = other.submit(called.say_and_wait, str(tmp_path / "started")).exception(SOON)
    assert isinstance(error, CallTimeoutError)


def test_rank_0_has_the_result_in_a_store(executor, tmp_path):
    with StoreExecutor(executor, should_proxy=ProxySize(1_000)) as wrapped:
        result = wrapped.submit(called.of_rank, 100_000).result(SOON)
        assert result == bytes(100_000)
        assert wrapped.submit(len, result).result(SOON) == 100_000
        numbers = wrapped.map(called.of_rank, [2_000, 3_000], chunksize=2)
        assert [len(one) for one in numbers] == [2_000, 3_000]
        del result, numbers
        eventually(lambda: wrapped.store.usage() == (0, 0), "everything is evicted")
