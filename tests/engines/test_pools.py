"""The standard library's pools."""

from __future__ import annotations

import concurrent.futures
import multiprocessing

import pytest

from proxyexec.testing import ExecutorConformance
from tests.engines.short import lazy_in_short


class TestThreads(ExecutorConformance):
    runs_main = True
    pickles = False

    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls):
        return lambda: concurrent.futures.ThreadPoolExecutor(2)


class OfProcesses(ExecutorConformance):
    runs_main = False
    breaks = True
    method: str

    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls):
        context = multiprocessing.get_context(cls.method)
        return lambda: concurrent.futures.ProcessPoolExecutor(2, context)


class TestForked(OfProcesses):
    method = "fork"


class TestForkserver(OfProcesses):
    lazy = lazy_in_short(True)
    method = "forkserver"


class TestSpawned(OfProcesses):
    lazy = lazy_in_short(False)
    method = "spawn"
