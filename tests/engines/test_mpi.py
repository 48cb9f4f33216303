"""mpi4py's pool, whose workers ``mpiexec`` starts: hence a run of pytest inside of this one."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_conformance(mpiexec, tmp_path):
    options = ["-q", "-p", "no:cacheprovider", "--color=no", f"--basetemp={tmp_path}"]
    done = mpiexec.run(
        "-m",
        "pytest",
        *options,
        HERE / "mpi_pool.py",
        cwd=HERE.parent.parent,
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d\d passed", done.stdout), done.stdout
