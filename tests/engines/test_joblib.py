"""The pool of loky's that joblib brings along and runs its jobs in."""

from __future__ import annotations

import pytest

from proxyexec.testing import ExecutorConformance
from tests.engines.short import lazy_in_short

pytest.importorskip("joblib")
from joblib.externals import loky  # noqa: E402


class TestJoblib(ExecutorConformance):
    is_single = True
    lazy = lazy_in_short(False)

    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls):
        yield lambda: loky.get_reusable_executor(2)
        loky.get_reusable_executor(2).shutdown()
