"""Parsl's pool, over a high-throughput executor on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import sys

import pytest

from proxyexec import ProxySize, StoreExecutor
from proxyexec import _tested as tested
from proxyexec.testing import ExecutorConformance
from tests.chaos.census import eventually

parsl = pytest.importorskip("parsl")
from parsl.concurrent import ParslPoolExecutor  # noqa: E402
from parsl.executors import HighThroughputExecutor  # noqa: E402
from parsl.providers import LocalProvider  # noqa: E402


def config(directory):
    return parsl.Config(
        executors=[
            HighThroughputExecutor(
                label="here",
                address="127.0.0.1",
                loopback_address="127.0.0.1",
                max_workers_per_node=2,
                encrypted=False,
                provider=LocalProvider(init_blocks=1, max_blocks=1),
            )
        ],
        run_dir=str(directory),
        strategy="none",
        initialize_logging=False,
    )


@contextlib.contextmanager
def surroundings():
    """What Parsl needs: its own programs, which are beside the interpreter, in the path."""
    logger = logging.getLogger("parsl")
    before = logger.level
    # It logs errors, and pytest would keep these, and what they hold.
    logger.setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
        yield
    logger.setLevel(before)


class TestParsl(ExecutorConformance):
    can_cancel = False

    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls, tmp_path_factory):
        with surroundings(), parsl.load(config(tmp_path_factory.mktemp("parsl"))) as kernel:
            yield lambda: ParslPoolExecutor(dfk=kernel)
        parsl.clear()


def test_a_pool_that_starts_parsl_itself(tmp_path):
    """Told to stop without waiting, Parsl would leave what is under way for ever."""
    release = tmp_path / "release"
    with surroundings():
        base = ParslPoolExecutor(config(tmp_path))
        executor = StoreExecutor(base, should_proxy=ProxySize(1_000), lazy=False)
        futures = [
            executor.submit(tested.when_there, str(release), None, bytes(2_000)) for _ in range(4)
        ]
        executor.shutdown(wait=False, cancel_futures=True)
        release.touch()
        assert [future.result(180) for future in futures] == [bytes(2_000)] * 4
        eventually(lambda: base._dfk is None, "Parsl is ended")
        parsl.clear()


def test_parsl_keeps_one_function_for_all_calls_of_it(tmp_path):
    with surroundings(), parsl.load(config(tmp_path)) as kernel:
        base = ParslPoolExecutor(dfk=kernel)
        with StoreExecutor(base, should_proxy=ProxySize(1_000)) as executor:
            lengths = list(executor.map(tested.length, [bytes(2_000)] * 20))
            assert lengths == [2_000] * 20
            assert executor.submit(tested.add, 1, 2).result() == 3
            [names] = [[app.__name__ for app in base._app_cache.values()]]
        assert names == ["length", "add"]
    parsl.clear()
