"""Which projects, and which of their tests. Versions are pinned in ``pyproject.toml``."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PROJECTS", "Project"]


class Project(NamedTuple):
    """A project that makes pools, and those of its tests that do."""

    name: str
    tests: tuple[str, ...]
    """Files and folders in its source distribution."""
    options: tuple[str, ...] = ()
    """Further arguments of pytest."""


PROJECTS = (
    # Samples functions adaptively; asks a pool for its number of workers.
    Project("adaptive", ("adaptive/tests/test_runner.py",)),
    # Formats code: many files through a pool and asyncio. Some tests patch black, which its
    # compiled wheel does not see: hence the sources. A fixture of theirs uses what pytest warns of.
    Project(
        "black",
        (
            "tests/test_black.py",
            "tests/test_blackd.py",
            "tests/test_concurrency_manager_shutdown.py",
            "tests/test_schedule_formatting.py",
        ),
        ("-o", "pythonpath=src", "-o", "filterwarnings="),
    ),
    # Runs graphs of tasks; its pools start workers with "spawn". Of the tests of bags, those that
    # use pools in ways of their own: all together take minutes.
    Project(
        "dask",
        (
            "dask/tests/test_multiprocessing.py",
            "dask/tests/test_threaded.py",
            "dask/bag/tests/test_bag.py::test_map_method",
            "dask/bag/tests/test_bag.py::test_starmap",
            "dask/bag/tests/test_bag.py::test_groupby_tasks",
            "dask/bag/tests/test_bag.py::test_temporary_directory",
        ),
    ),
    # Runs pipelines over arrays, in chunks, with asyncio, and in pools of several kinds at once.
    Project(
        "pipefunc",
        ("tests/map", "tests/integration/map", "tests/test_utils.py"),
        (
            "-p",
            "pytest_asyncio.plugin",
            "--ignore=tests/map/test_adaptive_slurm_executor.py",
        ),
    ),
    # Maps with a progress bar; its bounded pools are subclasses of the pools they bound.
    Project("pqdm", ("tests",)),
    # Progress bars, over pools whose workers share a lock.
    Project("tqdm", ("tests/tests_concurrent.py", "tests/tests_synchronisation.py")),
)
