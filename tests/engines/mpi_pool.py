"""The conformance suite for mpi4py's pool; run by ``test_mpi.py``, under ``mpiexec``."""

from __future__ import annotations

import pytest
from mpi4py.futures import MPIPoolExecutor

from proxyexec.testing import ExecutorConformance


class TestMPI(ExecutorConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls):
        return MPIPoolExecutor
