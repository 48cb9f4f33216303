"""Programs under ``mpiexec``, in three processes: two workers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


class MPI:
    """Runs programs; skips the test where there is no MPI."""

    def __init__(self) -> None:
        command = shutil.which("mpiexec")
        if command is None:
            pytest.skip("there is no mpiexec")
        if importlib.util.find_spec("mpi4py") is None:
            pytest.skip("mpi4py is not installed")
        probe = [sys.executable, "-c", "import mpi4py.MPI"]
        found = subprocess.run(probe, capture_output=True, text=True)
        if found.returncode:
            pytest.skip(f"mpi4py finds no library of MPI: {found.stderr.splitlines()[-1]}")
        version = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
        self._environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        self._flags = [command]
        if "Open MPI" in version or "Open-MPI" in version or "open-mpi" in version:
            # There may be fewer processors; and as root, as in containers, it has to be told twice.
            self._flags.append("--oversubscribe")
            self._environment["OMPI_ALLOW_RUN_AS_ROOT"] = "1"
            self._environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"

    @property
    def launcher(self) -> list[str]:
        """What starts as many processes as a call requires."""
        return [*self._flags, "-n", "{ranks}"]

    @property
    def variables(self) -> dict[str, str]:
        """What its environment has to have."""
        return {
            name: value
            for name, value in self._environment.items()
            if os.environ.get(name) != value
        }

    def run(
        self, *program: str | Path, cwd: Path, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program, in Python, with a pool."""
        return subprocess.run(
            [*self._flags, "-n", "3", sys.executable, "-m", "mpi4py.futures", *map(str, program)],
            cwd=cwd,
            env={**self._environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
