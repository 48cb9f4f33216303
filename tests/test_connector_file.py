"""The file connector against the suite, and what only it promises."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

import proxyexec_connectors.file
from proxyexec_connectors import _sessions
from proxyexec_connectors._sessions import sweep
from proxyexec_connectors.errors import (
    ConnectorFullError,
    ConnectorUnavailableError,
    CorruptObjectError,
    UnsafeDirectoryError,
)
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.testing import ConnectorSuite

LARGE = 3 * 1024 * 1024


class TestFileConnector(ConnectorSuite):
    @pytest.fixture
    def another(self, tmp_path):
        opened = []

        def another():
            opened.append(FileConnector(tmp_path / "objects"))
            return opened[-1]

        yield another
        for connector in opened:
            connector.close()

    @pytest.fixture
    def connector(self, another):
        return another()


class TestUnnamedFilesMissing(TestFileConnector):
    """Where the file system knows no unnamed files (NFS)."""

    @pytest.fixture(autouse=True)
    def without_unnamed_files(self, monkeypatch):
        # What open() gets there: the flags of O_TMPFILE mean "a directory, for writing".
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY, raising=True)


class TestSharedMemory(TestFileConnector):
    @pytest.fixture
    def another(self):
        opened = []

        def another():
            opened.append(FileConnector())
            return opened[-1]

        yield another
        for connector in opened:
            connector.close()


def objects(connector):
    names = [name for place in connector._places for name in os.listdir(place)]
    return [name for name in names if not name.startswith("~")]


def test_the_directory_is_made_private_and_removed(tmp_path):
    directory = tmp_path / "deep" / "objects"
    connector = FileConnector(directory)
    connector.put("key", [b"x"])
    for path in (directory, directory / connector._session):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in (directory / connector._session / "key", *directory.glob("*.lock")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    connector.close()
    assert not directory.exists()


def test_a_directory_of_the_users_stays(tmp_path):
    (tmp_path / "mine").write_text("precious")
    FileConnector(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_dropped_connector_removes_its_session(tmp_path):
    connector = FileConnector(tmp_path)
    connector.put("key", [b"x"])
    del connector
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["_secure", "sweep"])
def test_an_empty_root_may_be_taken_away_at_any_moment(tmp_path, monkeypatch, step):
    """By the last session in it, when it is removed while another one is being made."""
    genuine, left = getattr(_sessions, step), [1, 2, 3]

    def interrupted(root, **kwargs):
        if left:
            left.pop()
            if os.path.exists(root):
                os.rmdir(root)
            os.stat(root)
        return genuine(root, **kwargs)

    monkeypatch.setattr(_sessions, step, interrupted)
    connector = FileConnector(tmp_path / "objects")
    connector.put("key", [b"x"])
    connector.close()
    assert not left


def test_other_programs_locks_are_not_swept(tmp_path):
    (tmp_path / "uv.lock").write_text("precious")
    (tmp_path / "data.lock").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    FileConnector(tmp_path).close()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_in_the_usual_place_is_not_followed(tmp_path, shared_memory):
    usual = shared_memory / f"proxyexec-{os.geteuid()}"
    usual.symlink_to(tmp_path)
    try:
        connector = FileConnector()
        connector.put("key", [b"x"])
        assert FileConnector.attach(connector.address).get("key")[0] == b"x"
        assert connector._places[0].startswith(f"{usual}-")
        connector.close()
        assert list(tmp_path.iterdir()) == []
        # Who asks for it by its name gets that one, or none.
        with pytest.raises(UnsafeDirectoryError, match="not a directory"):
            FileConnector(usual)
    finally:
        usual.unlink()


def test_a_worker_that_goes_on_writing_keeps_no_session(tmp_path):
    connector = FileConnector(tmp_path)
    worker = FileConnector.attach(connector.address)
    done = multiprocessing.get_context("fork").SimpleQueue()

    def write():
        try:
            for number in range(10**6):
                worker.put(f"{number}", [b"x"])
        except ConnectorUnavailableError:
            done.put("gone")

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    while not connector.exists("100"):  # it is in the middle of it
        pass
    connector.close()
    assert done.get() == "gone"
    process.join()
    process.close()
    done.close()
    FileConnector(tmp_path).close()  # sweeps what could not be removed while it was written to
    assert list(tmp_path.iterdir()) == []


def test_others_directories_are_refused(tmp_path):
    if os.geteuid():
        pytest.skip("only root can give a directory away")
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(UnsafeDirectoryError, match="belongs to user 12345"):
        FileConnector(tmp_path)


def test_directories_that_others_may_write_into_are_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(UnsafeDirectoryError, match="chmod go-w"):
        FileConnector(tmp_path)


def test_a_place_that_cannot_be_made_is_a_connector_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConnectorUnavailableError, match="file"):
        FileConnector(tmp_path / "file" / "below")


@pytest.mark.parametrize("size", [10, LARGE])
def test_reading_copies_nothing_that_stays_open(tmp_path, size):
    connector = FileConnector(tmp_path)
    connector.put("key", [b"x" * size])
    before = len(os.listdir("/proc/self/fd"))
    held = [connector.get("key") for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(len(frames[0]) == size for frames in held)
    connector.close()
    assert all(bytes(frames[0]) == b"x" * size for frames in held)  # as long as they are held


def test_frames_are_aligned(tmp_path):
    numpy = pytest.importorskip("numpy")
    connector = FileConnector(tmp_path)
    for size in (100, LARGE):
        connector.put(f"{size}", [b"odd", bytes(size)])
        _, frame = connector.get(f"{size}")
        address = numpy.frombuffer(frame, numpy.uint8).ctypes.data
        assert address % (64 if size == LARGE else 16) == 0
    connector.close()


def test_a_full_directory_spills_and_then_says_so(tmp_path, monkeypatch):
    """The first directory has room for nothing large; the second for what is asked of it."""
    connector = FileConnector(tmp_path / "small", spill=tmp_path / "big")
    monkeypatch.setattr(
        proxyexec_connectors.file,
        "_free_bytes",
        lambda place: 1000 if "small" in str(place) else 10**12,
    )
    connector.put("large", [b"x" * LARGE])
    connector.put("little", [b"x"])
    small, big = connector._places
    assert (os.listdir(small), os.listdir(big)) == (["little"], ["large"])
    assert len(connector.get("large")[0]) == LARGE
    assert connector.usage().objects == 2
    connector.put("large", [b"another"])
    assert len(connector.get("large")[0]) == LARGE
    other = FileConnector.attach(connector.address)
    assert len(other.get("large")[0]) == LARGE
    connector.evict(["large", "little"])
    assert connector.usage() == (0, 0)
    connector.close()
    assert not (tmp_path / "small").exists()
    assert not (tmp_path / "big").exists()


def test_a_small_tmpfs_spills_and_loses_nothing(small_tmpfs, tmp_path):
    connector = FileConnector(small_tmpfs, spill=tmp_path / "disk")
    blocks = {f"{n}": bytes([n]) * (10 << 20) for n in range(10)}
    for key, block in blocks.items():
        connector.put(key, [block])
    assert all(os.listdir(place) for place in connector._places)  # both are in use
    for key, block in blocks.items():
        assert connector.get(key)[0] == block
    connector.close()


def test_a_full_tmpfs_is_an_error_and_keeps_working(small_tmpfs):
    connector = FileConnector(small_tmpfs)
    connector.put("a", [bytes(40 << 20)])
    with pytest.raises(ConnectorFullError) as caught:
        connector.put("b", [bytes(40 << 20)])
    assert caught.value.needed > 40 << 20
    assert caught.value.free < 40 << 20
    assert objects(connector) == ["a"]
    connector.evict(["a"])
    connector.put("b", [bytes(40 << 20)])
    assert objects(connector) == ["b"]
    connector.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 5),
        lambda path: os.truncate(path, 100),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(b"something else that is quite long"),
        lambda path: path.write_bytes(b"pxframe1" + b"\xff" * 100),
    ],
)
def test_damaged_files_are_reported(tmp_path, damage):
    connector = FileConnector(tmp_path)
    connector.put("key", [b"x" * 1000])
    damage(tmp_path / connector._session / "key")
    with pytest.raises(CorruptObjectError, match="'key'"):
        connector.get("key")
    connector.close()


def run(script, *arguments):
    """Start another process that opens a session and says so."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().split()


OWNER = """
    import sys, time
    from proxyexec_connectors.file import FileConnector
    connector = FileConnector(sys.argv[1])
    connector.put("key", [b"x" * 1000])
    print(connector.address, flush=True)
    sys.stdin.read()
"""

OWNER_WITH_ORPHAN = """
    import os, sys, time
    from proxyexec_connectors.file import FileConnector
    connector = FileConnector(sys.argv[1])
    connector.put("key", [b"x" * 1000])
    reader, writer = os.pipe()
    orphan = os.fork()
    if not orphan:
        os.write(writer, b"x")
        time.sleep(300)
    os.read(reader, 1)
    print(connector.address, orphan, flush=True)
    sys.stdin.read()
"""


def kill(process):
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_the_session_of_a_killed_owner_is_swept(tmp_path):
    process, (address,) = run(OWNER, tmp_path)
    mine = FileConnector(tmp_path)
    mine.put("key", [b"mine"])
    assert FileConnector.attach(address).exists("key")  # it lives: nothing was swept
    kill(process)
    assert FileConnector.attach(address).exists("key")
    other = FileConnector(tmp_path)
    assert not FileConnector.attach(address).exists("key")
    assert mine.exists("key")
    mine.close()
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_orphans_do_not_keep_a_dead_owners_session(tmp_path):
    process, (address, orphan) = run(OWNER_WITH_ORPHAN, tmp_path)
    kill(process)
    try:
        FileConnector(tmp_path).close()
        assert not FileConnector.attach(address).exists("key")
    finally:
        os.kill(int(orphan), signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_owner_is_not_swept(tmp_path):
    process, (address,) = run(OWNER, tmp_path)
    os.kill(process.pid, signal.SIGSTOP)
    FileConnector(tmp_path).close()
    assert FileConnector.attach(address).exists("key")
    kill(process)
    FileConnector(tmp_path).close()


def test_own_sessions_are_not_swept(tmp_path):
    first = FileConnector(tmp_path)
    first.put("key", [b"x"])
    sweep(str(tmp_path))
    assert first.exists("key")
    first.close()


def _put(connector, outcome):
    try:
        connector.put("late", [b"x"])
    except Exception as error:
        outcome.send(error)
    else:
        outcome.send(None)


def test_writing_into_a_session_that_has_ended_is_an_error(tmp_path):
    connector = FileConnector(tmp_path)
    address = connector.address
    connector.close()
    with pytest.raises(ConnectorUnavailableError, match="the owner closed it, or died"):
        FileConnector.attach(address).put("key", [b"x"])


def test_a_forked_child_removes_nothing(tmp_path):
    connector = FileConnector(tmp_path)
    connector.put("key", [b"x"])
    process = multiprocessing.get_context("fork").Process(target=connector.close)
    process.start()
    process.join()
    process.close()
    assert connector.exists("key")
    # The child's copy of the lock is gone, ours is not.
    sweep(str(tmp_path))
    assert connector.exists("key")
    connector.close()
