"""loky's pool."""

from __future__ import annotations

import pytest

from proxyexec.testing import ExecutorConformance
from tests.engines.short import lazy_in_short

loky = pytest.importorskip("loky")


class TestLoky(ExecutorConformance):
    is_single = True
    lazy = lazy_in_short(True)

    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls):
        yield lambda: loky.get_reusable_executor(2)
        loky.get_reusable_executor(2).shutdown()
