"""Fixtures that several test modules share, and the one that fails a test for what it leaks."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures.process import _threads_wakeups
from pathlib import Path

import pytest

import proxyexec._store
import proxyexec_connectors._host_cache
import proxyexec_connectors.file
from proxyexec import Store, StoreExecutor
from proxyexec.errors import StoreClosedError
from proxyexec_connectors.file import FileConnector
from tests import functions
from tests.chaos.census import descriptors
from tests.engines.mpi import MPI

# Before anything imports it, so that its failures say what was compared.
pytest.register_assert_rewrite("proxyexec.testing", "proxyexec_connectors.testing")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a real server, one for the whole run."""
    pytest.importorskip("redis")
    from tests.redis_server import redis_server

    with redis_server() as server:
        yield server.url


@pytest.fixture(scope="session")
def mpiexec() -> MPI:
    """Runs programs in several processes."""
    return MPI()


@pytest.fixture(scope="session", autouse=True)
def shared_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A part of shared memory that only this run uses, as the default place for files.

    Other programs of this user have their sessions in the usual one.
    """
    connectors = proxyexec_connectors.file
    with (
        tempfile.TemporaryDirectory(dir=connectors._SHARED_MEMORY) as memory,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(connectors, "_SHARED_MEMORY", memory)
        patch.setattr(proxyexec_connectors._host_cache, "_SHARED_MEMORY", memory)
        disk = str(tmp_path_factory.mktemp("disk"))
        patch.setenv("TMPDIR", disk)  # also for the processes that tests start
        patch.setattr(tempfile, "tempdir", disk)
        # Processes that multiprocessing starts when they are first needed, and keeps.
        multiprocessing.resource_tracker.ensure_running()
        multiprocessing.forkserver.ensure_running()
        yield Path(memory)


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 MiB, as containers have for shared memory."""
    with mounted_tmpfs(tmp_path / "tmpfs", "64m") as directory:
        yield directory


@contextlib.contextmanager
def mounted_tmpfs(directory: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs; skip the test where that is not allowed."""
    directory.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(directory)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting takes a user who may")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.fixture(autouse=True)
def nothing_leaks(shared_memory: Path) -> Iterator[None]:
    """Fail a test that leaves objects, files, mappings, descriptors, threads or processes."""
    older = _open_stores()  # of a module's fixtures
    before = _holdings(shared_memory, older)
    yield
    leaked = _leaked(before, shared_memory, older)
    if leaked:
        gc.collect()
        leaked = _leaked(before, shared_memory, older)
    assert not leaked, f"the test leaked {dict(leaked)}"


def settle(executor: StoreExecutor) -> None:
    """Wait until what has ended by now has let go of what it held.

    Results can be read before the callbacks of their futures have run; but these run in the order
    of the results, so those of a task that is given to a pool now run last.
    """
    ended = threading.Event()
    executor.submit(functions.add, 0, 0).add_done_callback(lambda _: ended.set())
    assert ended.wait(30)


def wait_for_evictions(older: Collection[Store] = ()) -> None:
    """Wait until the stores that were closed, or dropped, have ended their threads."""
    for thread in _threads(older):
        thread.join(10)


def wait_for_pools() -> None:
    """Wait until pools that were shut down without waiting have closed their pipes.

    It is a thread of theirs that does so, after the last result; a moment after
    ``threading.enumerate()`` has forgotten it, some of the time.
    """
    for thread in list(_threads_wakeups):
        if thread.is_shutting_down():
            thread.join(10)


class PoolEnd:
    """The end of a pool that is to be shut down without waiting.

    A thread of the pool's settles futures, and keeps some until it is gone itself: a moment after
    ``threading.enumerate()`` has forgotten it, unless somebody holds it.
    """

    def __init__(self, executor: StoreExecutor) -> None:
        pool = getattr(executor, "_base", executor)  # a drop-in one is its own
        self._thread = pool._executor_manager_thread  # none before the first task

    def wait(self) -> None:
        """Wait until the pool holds nothing any more."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(60)
            assert not thread.is_alive()


def _open_stores() -> list[Store]:
    return [store for store in proxyexec._store._open.values() if store.is_owner]


def _threads(older: Collection[Store]) -> list[threading.Thread]:
    kept = [store._leases._thread for store in older if store._leases is not None]
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("proxyexec-evict-") and thread not in kept
    ]


def _leaked(before: Counter[str], shared_memory: Path, older: Collection[Store]) -> Counter[str]:
    wait_for_pools()
    wait_for_evictions(older)
    for store in older:
        if isinstance(store.connector, FileConnector) and not store.closed:
            with contextlib.suppress(StoreClosedError):  # by its last lease, just now
                store.usage()  # evicts what has been released
            store.connector.release_idle()  # which happens by itself after a while
    leaked = _holdings(shared_memory, older) - before
    if any(store.connector.url.startswith("redis") for store in older):
        # A connector to Redis opens connections as it needs them, a bounded number.
        del leaked["descriptor socket:"]
    return leaked


def _holdings(shared_memory: Path, older: Collection[Store]) -> Counter[str]:
    return Counter(
        [
            *(f"descriptor {target}" for target in descriptors().elements()),
            *_mappings(shared_memory),
            *_children(),
            *(
                f"file {folder}/{name}"
                for folder, folders, files in os.walk(shared_memory)
                for name in (*folders, *files)
            ),
            *(f"thread {one.name}" for one in _threads(older)),
        ]
    )


def _mappings(shared_memory: Path) -> Iterator[str]:
    with open("/proc/self/maps") as lines:
        for line in lines:
            if str(shared_memory) in line:
                yield "mapping " + line.split()[-1]


# Processes that multiprocessing keeps for the next pool.
_KEPT = (b"resource_tracker", b"forkserver")


def _children() -> Iterator[str]:
    for task in os.listdir("/proc/self/task"):
        try:
            children = Path(f"/proc/self/task/{task}/children").read_text().split()
        except FileNotFoundError:
            continue
        for child in children:
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes()
            except FileNotFoundError:
                continue
            if not any(kept in command for kept in _KEPT):
                yield "process " + command.replace(b"\0", b" ").decode()
