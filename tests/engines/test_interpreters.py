"""The standard library's pool of interpreters."""

from __future__ import annotations

import concurrent.futures
import sys

import pytest

from proxyexec.testing import ExecutorConformance

if sys.version_info < (3, 14):
    pytest.skip("there are no pools of interpreters before Python 3.14", allow_module_level=True)


class TestInterpreters(ExecutorConformance):
    runs_main = False

    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls):
        return lambda: concurrent.futures.InterpreterPoolExecutor(2)
