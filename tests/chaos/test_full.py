"""Places become full: what does not fit spills, then its call fails, and nothing else does."""

from __future__ import annotations

import concurrent.futures
import errno
import multiprocessing
import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import proxyexec_connectors._segments
import proxyexec_connectors.file
from proxyexec import ProxySize, Store, StoreExecutor
from proxyexec.errors import ConnectorFullError, StoreFullError
from proxyexec_connectors.file import FileConnector
from tests.chaos.census import eventually
from tests.chaos.places import DirectoryPlace, RedisPlace
from tests.conftest import mounted_tmpfs, settle

MiB = 1 << 20
FORK = multiprocessing.get_context("fork")
EACH = 100_000

# Below and above what is kept in segments, and in large pages.
SIZES = [150_000, 700_000, 5 * MiB]


def length(data):
    return len(data)


def measure(number, data):
    return number, len(data), bytes(data[:1])


def double(data):
    return bytes(data) * 2


def make(size):
    return bytes([size % 251]) * size


def make_parts(size, count):
    return {n: bytes([n]) * size for n in range(count)}


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 64 MiB: a file system in a file or, where there are none, a tmpfs."""
    image, directory = tmp_path / "image", tmp_path / "disk"
    with image.open("xb") as file:
        file.truncate(64 * MiB)
    make = ["mkfs.ext4", "-q", "-F", "-m", "0", str(image)]
    mount = ["mount", "-o", "loop", str(image), str(directory)]
    if shutil.which(make[0]) and subprocess.run(make, capture_output=True).returncode == 0:
        directory.mkdir()
        if subprocess.run(mount, capture_output=True).returncode == 0:
            objects = directory / "objects"
            objects.mkdir(mode=0o700)
            yield objects
            subprocess.run(["umount", "-l", str(directory)], check=True)
            return
        directory.rmdir()
    with mounted_tmpfs(directory, "64m") as directory:
        yield directory


@contextmanager
def executor_on(url, **options) -> Iterator[StoreExecutor]:
    base = concurrent.futures.ProcessPoolExecutor(2, FORK)
    with Store.from_url(url) as store:
        with StoreExecutor(base, store, ProxySize(EACH), close_store=False, **options) as executor:
            yield executor


def used(directory: Path) -> int:
    status = os.statvfs(directory)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def fill(store: Store, size: int, *, leave: int = 0) -> list:
    """Store objects until there is room for no more than ``leave`` others."""
    filling = []
    with pytest.raises(StoreFullError):
        while True:
            filling.append(store.proxy(os.urandom(size)))
    assert len(filling) > leave
    del filling[len(filling) - leave :]
    store.usage()  # evicts what was let go of
    return filling


def check(error: BaseException | None, what: str, size: int) -> None:
    """See that an error says all that there is to say."""
    assert isinstance(error, StoreFullError), error
    assert isinstance(error, (ConnectorFullError, OSError))
    assert error.errno == errno.ENOSPC
    assert error.what == what
    assert size <= error.needed <= size + 1000
    assert error.free is not None
    assert error.quota is None
    for fact in (what, f"{error.needed:,}", f"{error.free:,}"):
        assert fact in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("size", SIZES)
def test_shared_memory_then_the_disk_then_an_error(small_tmpfs, small_disk, size):
    memory, disk = DirectoryPlace(small_tmpfs), DirectoryPlace(small_disk)
    unused = used(small_tmpfs), used(small_disk)
    with executor_on(f"{memory.url}?spill={small_disk}", lazy=False) as executor:
        # Held by nobody but the store, as results that somebody keeps are.
        filling = fill(executor.store, size)
        assert len(filling) >= 100 * MiB // size
        assert memory.objects()
        assert disk.objects()
        before = set(memory.objects()), set(disk.objects())

        data = os.urandom(size)
        check(executor.submit(length, data).exception(), "argument 0 of length", size)
        check(executor.submit(make, size).exception(), "the result of make", size)
        settle(executor)
        assert executor.store.usage().objects == len(filling)
        assert (set(memory.objects()), set(disk.objects())) == before

        # The pool lives on: what needs no room is done, and all is once there is some.
        assert executor.submit(length, data[:1000]).result() == 1000
        del filling[-2:]
        executor.store.usage()
        assert executor.submit(length, data).result() == size
        assert executor.submit(make, size).result() == make(size)
        filling.clear()
        settle(executor)
        assert executor.store.usage() == (0, 0)
        executor.store.connector.release_idle()
        assert memory.objects() == disk.objects() == []
    assert memory.residue() == disk.residue() == []
    assert (used(small_tmpfs), used(small_disk)) == unused


def test_redis_without_memory(tmp_path):
    pytest.importorskip("redis")
    from tests.redis_server import redis_server

    size = 3 * MiB
    with redis_server(maxmemory="64mb", maxmemory_policy="noeviction") as server:
        place = RedisPlace(server)
        with executor_on(f"{server.url}?host_cache=0", lazy=False) as executor:
            filling = fill(executor.store, size)
            before = place.objects()
            assert len(before) == len(filling) > 10
            data = os.urandom(size)
            check(executor.submit(length, data).exception(), "argument 0 of length", size)
            check(executor.submit(make, size).exception(), "the result of make", size)
            settle(executor)
            assert place.objects() == before
            assert not [name for name in place.residue() if ":t:" in name]

            assert executor.submit(length, data[:1000]).result() == 1000
            del filling[len(filling) // 2 :]
            executor.store.usage()
            with server.client() as client:  # which frees what is evicted in a thread of its own
                eventually(lambda: client.info("memory")["used_memory"] < 45e6, "memory is free")
            assert executor.submit(length, data).result() == size
            assert executor.submit(make, size).result() == make(size)
            filling.clear()
            settle(executor)
            assert executor.store.usage() == (0, 0)
            assert place.objects() == []
        assert place.residue() == []


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_a_map_fails_where_there_is_no_room_and_the_pool_lives_on(small_tmpfs, chunksize):
    place = DirectoryPlace(small_tmpfs)
    size = 4 * MiB
    with executor_on(place.url) as executor:
        filling = fill(executor.store, size, leave=2)
        # Results are kept: the first ones fit.
        results = executor.map(make, [1000, size, 1000, size, size, size], chunksize=chunksize)
        kept = []
        with pytest.raises(StoreFullError) as caught:
            kept.extend(results)
        check(caught.value, caught.value.what, size)
        assert "result" in caught.value.what
        del kept, results
        # The other worker may be at one of the calls.
        eventually(lambda: executor.store.usage().objects == len(filling), "all calls have ended")

        filling += fill(executor.store, size)
        with pytest.raises(StoreFullError) as caught:
            list(executor.map(length, [os.urandom(size) for _ in range(9)], chunksize=chunksize))
        check(caught.value, "argument 0 of length", size)
        # The other worker may be at one of the calls.
        eventually(lambda: executor.store.usage().objects == len(filling), "all calls have ended")
        filling.clear()
        executor.store.usage()
        data = [os.urandom(size) for _ in range(9)]
        assert list(executor.map(length, data, chunksize=chunksize)) == [size] * 9
        settle(executor)
        assert executor.store.usage() == (0, 0)
    assert place.residue() == []


def test_parts_go_with_the_whole_that_has_no_room(small_tmpfs):
    place = DirectoryPlace(small_tmpfs)
    size = 4 * MiB
    with executor_on(place.url, nested=True) as executor:
        filling = fill(executor.store, size, leave=2)
        parts = {n: os.urandom(size) for n in range(6)}
        check(executor.submit(length, parts).exception(), "a part of argument 0 of length", size)
        error = executor.submit(make_parts, size, 6).exception()
        check(error, "a part of the result of make_parts", size)
        settle(executor)
        assert executor.store.usage().objects == len(filling)
        filling.clear()
        executor.store.usage()
        assert executor.submit(length, parts).result() == 6
        assert executor.submit(make_parts, size, 6).result()[5][:1] == b"\5"
        settle(executor)
    assert place.residue() == []


def test_what_a_function_carries_is_named(small_tmpfs):
    with executor_on(DirectoryPlace(small_tmpfs).url) as executor:
        filling = fill(executor.store, MiB)
        data = os.urandom(MiB)
        error = executor.submit(lambda: len(data)).exception()
        name = "test_what_a_function_carries_is_named.<locals>.<lambda>"
        check(error, f"a part of the function {name}", MiB)
        del filling


@pytest.mark.parametrize("size", [700_000, 5 * MiB])
@pytest.mark.parametrize("spills", [True, False])
def test_a_place_that_becomes_full_while_an_object_is_written(
    small_tmpfs, small_disk, monkeypatch, size, spills
):
    connector = FileConnector(small_tmpfs, spill=small_disk if spills else None)
    store = Store("full", connector)
    hog = small_tmpfs / "hog"
    write = proxyexec_connectors.file._write
    made = proxyexec_connectors.file.Segments.write_new

    def fill_up() -> None:
        with open(hog, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while file.write(bytes(4096)):
                pass

    # Somebody else takes the last byte after room was looked for, and before it is used.
    def write_late(place, name, parts):
        if Path(place).is_relative_to(small_tmpfs) and not hog.exists():
            fill_up()
        write(place, name, parts)

    def make_late(segments, name, parts, size):
        if segments.place.startswith(str(small_tmpfs)) and not hog.exists():
            fill_up()
        return made(segments, name, parts, size)

    monkeypatch.setattr(proxyexec_connectors.file, "_write", write_late)
    monkeypatch.setattr(proxyexec_connectors.file.Segments, "write_new", make_late)
    data = os.urandom(size)
    if spills:
        proxy = store.proxy(data)
        assert hog.exists()
        assert DirectoryPlace(small_disk).objects()
        assert proxy == data
        del proxy
    else:
        with pytest.raises(StoreFullError) as caught:
            store.proxy(data)
        check(caught.value, "an object of type bytes", size)
        assert hog.exists()
    assert store.usage() == (0, 0)
    monkeypatch.undo()
    hog.unlink()
    proxy = store.proxy(data)
    assert proxy == data
    del proxy
    assert store.usage() == (0, 0)
    store.close()
    assert DirectoryPlace(small_tmpfs).residue() == DirectoryPlace(small_disk).residue() == []


def test_full_between_reserving_and_writing_is_no_signal(small_tmpfs, monkeypatch):
    """A segment has all of its pages before anything is written through its mapping."""
    connector = FileConnector(small_tmpfs)
    segments = proxyexec_connectors._segments
    fill_segment = segments._fill
    reserved = []

    def fill_late(segment, name, parts, length):
        reserved.append(length)
        with open(small_tmpfs / "hog", "wb", buffering=0) as file, pytest.raises(OSError):
            while file.write(bytes(4096)):
                pass
        fill_segment(segment, name, parts, length)

    monkeypatch.setattr(segments, "_fill", fill_late)
    data = os.urandom(9 * MiB + 12_345)
    connector.put("new", [data])
    if reserved:  # or this kernel makes no large pages in files
        assert connector.get("new") == [data]
    (small_tmpfs / "hog").unlink(missing_ok=True)
    connector.evict(["new"])
    connector.put("again", [data])
    assert reserved
    assert connector.get("again") == [data]
    connector.close()
    os.unlink(small_tmpfs / "hog")


def test_threads_and_workers_on_a_place_that_is_full_and_not_in_turns(small_tmpfs):
    """Whatever comes in between, each call comes to its result or to this error."""
    place = DirectoryPlace(small_tmpfs)
    size = 5 * MiB
    with executor_on(place.url, lazy=False) as executor:

        def use(first: int) -> list[bool]:
            worked = []
            for number in range(first, first + 15):
                data = bytes([number]) * (size + number)
                future = executor.submit(double, data)
                error = future.exception()
                if error is None:
                    assert future.result() == data * 2
                else:
                    assert isinstance(error, StoreFullError), error
                worked.append(error is None)
            return worked

        with concurrent.futures.ThreadPoolExecutor(6) as clients:
            worked = [one for some in clients.map(use, range(0, 90, 15)) for one in some]
        assert any(worked)
        settle(executor)
        assert executor.store.usage() == (0, 0)
        assert executor.submit(double, b"ab" * size).result() == b"ab" * size * 2
    assert place.residue() == []
