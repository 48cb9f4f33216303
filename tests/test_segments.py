"""Segments for real: files that are written again, in several processes at once."""

from __future__ import annotations

import contextlib
import errno
import gc
import multiprocessing
import os
import signal
import threading

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxyexec import Store, _ownership
from proxyexec_connectors import _mapping, _segment, _segments, file
from proxyexec_connectors.errors import (
    ConnectorFullError,
    ConnectorUnavailableError,
    CorruptObjectError,
)
from proxyexec_connectors.file import FileConnector

SIZE = 300_000


@pytest.fixture
def connector():
    connector = FileConnector()
    yield connector
    connector.close()


def pattern(number, size=SIZE):
    return bytes([number % 251]) * size


def file_of(connector, key):
    return os.stat(f"{connector._places[0]}/{key}").st_ino


def free_names(connector):
    return os.listdir(f"{connector._places[0]}/~free")


def keeps_mappings():
    """Whether this kernel tells what has been written into a private mapping."""
    with open("/proc/self/exe", "rb") as file:
        mapping = _mapping.Mapping(file.fileno(), 4096, shared=False)
        try:
            return mapping.is_as_in_file()
        finally:
            mapping.close()


def test_an_evicted_objects_file_is_written_again(connector):
    connector.put("one", [pattern(1)])
    first = file_of(connector, "one")
    connector.evict(["one"])
    connector.put("two", [pattern(2, SIZE - 1000)])
    assert file_of(connector, "two") == first
    assert connector.get("two") == [pattern(2, SIZE - 1000)]
    assert connector.get("one") is None
    assert connector.usage().objects == 1
    assert connector.usage().bytes < SIZE


def test_a_much_larger_file_is_not(connector):
    connector.put("one", [pattern(1, 5 * SIZE)])
    first = file_of(connector, "one")
    connector.evict(["one"])
    connector.put("two", [pattern(2)])
    assert file_of(connector, "two") != first


def test_memory_that_is_referred_to_is_not_written_again(connector):
    connector.put("one", [pattern(1)])
    first = file_of(connector, "one")
    [held] = connector.get("one")
    connector.evict(["one"])
    connector.put("two", [pattern(2)])
    assert file_of(connector, "two") != first
    assert held == pattern(1)
    del held
    connector.put("three", [pattern(3)])
    assert file_of(connector, "three") == first


def test_what_a_reader_wrote_is_not_seen_by_the_next(connector):
    connector.put("one", [pattern(1)])
    [held] = connector.get("one")
    held[:] = pattern(9)
    del held
    assert connector.get("one") == [pattern(1)]
    connector.evict(["one"])
    connector.put("two", [pattern(2)])
    assert connector.get("two") == [pattern(2)]


def test_a_reader_keeps_its_mapping_for_the_next_object(connector):
    if not keeps_mappings():
        pytest.skip("before Linux 6.7, the kernel does not tell what has been written")
    for number in range(3):
        connector.put(f"{number}", [pattern(number)])
        assert connector.get(f"{number}") == [pattern(number)]
        connector.evict([f"{number}"])
    [segment] = connector._segments[0]._for_reading.values()
    assert segment.number in {_segments._hints(name)[0] for name in free_names(connector)}


def test_where_the_kernel_does_not_tell_mappings_are_made_anew(connector, monkeypatch):
    monkeypatch.setattr(_mapping.Mapping, "is_as_in_file", lambda self: False)
    for number in range(3):
        connector.put(f"{number}", [pattern(number)])
        assert connector.get(f"{number}") == [pattern(number)]
        connector.evict([f"{number}"])
    assert not connector._segments[0]._for_reading


def before_locking(monkeypatch, action):
    """Have something happen after a segment was found, and before it is locked for the first time."""
    lock = _segment.Segment.lock

    def act_and_lock(segment, kind):
        monkeypatch.setattr(_segment.Segment, "lock", lock)
        action()
        return segment.lock(kind)

    monkeypatch.setattr(_segment.Segment, "lock", act_and_lock)


@pytest.mark.parametrize("size", [1000, SIZE], ids=["small", "large"])
def test_a_late_reader_gets_nothing_or_what_is_there_now(connector, monkeypatch, size):
    connector.put("one", [pattern(1)])

    def evict_and_put():
        connector.evict(["one"])
        connector.put("two", [pattern(2)])
        connector.put("one", [pattern(3, size)])

    before_locking(monkeypatch, evict_and_put)
    assert connector.get("one") == [pattern(3, size)]


def test_a_reader_whose_object_is_gone_gets_nothing(connector, monkeypatch):
    connector.put("one", [pattern(1)])

    def evict_and_put():
        connector.evict(["one"])
        connector.put("two", [pattern(2)])

    before_locking(monkeypatch, evict_and_put)
    assert connector.get("one") is None
    assert connector.get("two") == [pattern(2)]


def test_a_reader_waits_for_a_writer_who_has_just_named_the_object(connector, monkeypatch):
    connector.put("one", [pattern(1)])
    connector.evict(["one"])
    named, waits = threading.Event(), threading.Event()
    unlock, wait = _segment.Segment.unlock, _segment.Segment.wait_for_shared_lock

    def unlock_late(segment):
        named.set()
        assert waits.wait(30)
        unlock(segment)

    def say_and_wait(segment):
        monkeypatch.setattr(_segment.Segment, "unlock", unlock)
        waits.set()
        wait(segment)

    monkeypatch.setattr(_segment.Segment, "unlock", unlock_late)
    monkeypatch.setattr(_segment.Segment, "wait_for_shared_lock", say_and_wait)
    writer = threading.Thread(target=connector.put, args=("two", [pattern(2)]))
    writer.start()
    assert named.wait(30)
    assert connector.get("two") == [pattern(2)]
    writer.join()


def test_a_segment_that_was_taken_between_looking_and_locking_is_left(connector, monkeypatch):
    connector.put("one", [pattern(1)])
    connector.evict(["one"])
    before_locking(monkeypatch, lambda: connector.put("two", [pattern(2)]))
    connector.put("three", [pattern(3)])
    assert connector.get("two") == [pattern(2)]
    assert connector.get("three") == [pattern(3)]


def test_a_segment_that_is_discarded_while_it_is_written_is_replaced(connector, monkeypatch):
    connector.put("one", [pattern(1)])
    connector.evict(["one"])
    write = _mapping.Mapping.write

    def write_late(mapping, start, data):
        monkeypatch.setattr(_mapping.Mapping, "write", write)
        connector.release_idle()
        write(mapping, start, data)

    monkeypatch.setattr(_mapping.Mapping, "write", write_late)
    connector.put("two", [pattern(2)])
    assert connector.get("two") == [pattern(2)]
    assert not connector._segments[0]._for_writing


def test_the_first_put_wins(connector):
    connector.put("one", [pattern(1)])
    connector.put("two", [pattern(2)])
    connector.evict(["one"])
    connector.put("two", [pattern(3)])
    assert connector.get("two") == [pattern(2)]
    assert len(free_names(connector)) == 1


def test_many_results_need_few_descriptors(connector):
    before = len(os.listdir("/proc/self/fd"))
    held = []
    for number in range(200):
        connector.put(f"{number}", [pattern(number)])
        held += connector.get(f"{number}")
        connector.evict([f"{number}"])
    assert len(os.listdir("/proc/self/fd")) - before < 150
    assert len(free_names(connector)) <= 64
    assert all(one == pattern(number) for number, one in enumerate(held))


def test_free_segments_are_bounded_by_what_is_free_otherwise(connector, monkeypatch):
    monkeypatch.setattr("proxyexec_connectors.file._free_bytes", lambda place: 9 * SIZE)
    for number in range(8):
        connector.put(f"{number}", [pattern(number)])
    connector.evict([f"{number}" for number in range(8)])
    assert len(free_names(connector)) == 2


LARGE = 5 << 20  # two large pages and a half


def in_large_pages(connector):
    """How many bytes of the session's files this process has mapped in large pages."""
    total, here = 0, False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if "-" in line.split()[0]:
                here = connector._places[0] in line
            elif here and line.startswith(("ShmemPmdMapped:", "FilePmdMapped:")):
                total += int(line.split()[1]) * 1024
    return total


def test_a_new_file_is_in_large_pages_for_writers_and_readers(connector):
    connector.put("one", [pattern(1, LARGE)])
    if not connector._segments[0]._makes_new:
        pytest.skip("this kernel makes no large pages in files")
    written = in_large_pages(connector)
    [held] = connector.get("one")
    assert held == pattern(1, LARGE)
    assert written == 2 * (2 << 20)
    assert in_large_pages(connector) == 2 * written


def test_what_is_written_into_large_pages_stays_with_its_writer(connector):
    connector.put("one", [pattern(1, LARGE)])
    [mine] = connector.get("one")
    [others] = connector.get("one")
    mine[LARGE // 2] = 7
    assert (mine[LARGE // 2], others[LARGE // 2]) == (7, 1)
    assert connector.get("one") == [pattern(1, LARGE)]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOMEM], ids=["never", "not just now"])
def test_without_large_pages_files_are_written_in_small_ones(connector, monkeypatch, code):
    tried = []

    def collapse(mapping):
        tried.append(mapping)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_mapping.Mapping, "collapse", collapse)
    for number in range(2):
        connector.put(f"{number}", [pattern(number, LARGE)])
    assert [connector.get(f"{number}") for number in range(2)] == [
        [pattern(number, LARGE)] for number in range(2)
    ]
    assert len(tried) == (1 if code == errno.EINVAL else 2)
    connector.evict(["0", "1"])
    connector.put("2", [pattern(2, LARGE)])
    assert connector.get("2") == [pattern(2, LARGE)]


def test_of_two_who_make_a_file_of_one_name_the_first_wins(connector, monkeypatch):
    name = _segment.Segment.give_name

    def name_late(segment, path):
        monkeypatch.setattr(_segment.Segment, "give_name", name)
        connector.put("one", [pattern(2, LARGE)])
        name(segment, path)

    monkeypatch.setattr(_segment.Segment, "give_name", name_late)
    connector.put("one", [pattern(1, LARGE)])
    if name is not _segment.Segment.give_name:
        pytest.skip("this kernel makes no large pages in files")
    assert connector.get("one") == [pattern(2, LARGE)]
    assert connector.usage().objects == 1
    assert len(connector._segments[0]._for_writing) == 1


def test_large_pages_that_do_not_fit_are_an_error_and_no_signal(small_tmpfs):
    connector = FileConnector(small_tmpfs)
    connector.put("one", [pattern(1, 33 << 20)])
    connector.put("two", [pattern(2, 21 << 20)])
    with pytest.raises(ConnectorFullError):
        connector.put("three", [pattern(3, 13 << 20)])
    connector.put("four", [pattern(4, 7 << 20)])
    assert connector.get("one") == [pattern(1, 33 << 20)]
    assert connector.get("four") == [pattern(4, 7 << 20)]
    connector.close()


def test_damage_is_an_error(connector):
    connector.put("one", [pattern(1)])
    path = f"{connector._places[0]}/one"
    with open(path, "r+b") as file:
        file.write(b"?")
    with pytest.raises(CorruptObjectError):
        connector.get("one")
    connector.put("two", [pattern(2)])
    os.truncate(f"{connector._places[0]}/two", SIZE - 10)
    with pytest.raises(CorruptObjectError):
        connector.get("two")


def test_a_file_that_was_cut_short_is_an_error_and_no_signal(connector):
    connector.put("key", [pattern(1, 2 * SIZE)])
    assert connector.get("key")[0][-1] == 1  # from now on, all of it is mapped here
    gc.collect()
    os.truncate(f"{connector._places[0]}/key", SIZE)
    with pytest.raises(CorruptObjectError, match=f"in a segment of {SIZE}"):
        connector.get("key")


def test_a_session_that_has_ended_says_so(connector):
    there = FileConnector.attach(connector.address)
    there.put("one", [pattern(1)])
    there.evict(["one"])
    connector.close()
    with pytest.raises(ConnectorUnavailableError):
        there.put("two", [pattern(2)])
    there.close()


def used_by_files(path):
    status = os.statvfs(path)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.mark.parametrize("end", ["release_idle", "close"])
def test_memory_is_given_back_though_processes_have_it_mapped(small_tmpfs, end):
    owner = FileConnector(small_tmpfs)
    there = FileConnector.attach(owner.address)
    for number in range(2):
        there.put("key", [pattern(number, 4 << 20)])
        assert there.get("key") == [pattern(number, 4 << 20)]
        there.evict(["key"])
    assert there._segments[0]._for_writing
    assert used_by_files(small_tmpfs) >= 4 << 20
    getattr(owner, end)()
    assert used_by_files(small_tmpfs) < 1 << 20
    there.close()
    owner.close()


def test_what_is_kept_makes_room_for_what_is_stored(small_tmpfs):
    connector = FileConnector(small_tmpfs)
    connector.put("one", [pattern(1, 6 << 20)])
    connector.evict(["one"])
    assert len(free_names(connector)) == 1, "or this shows nothing"
    connector.put("two", [pattern(2, 55 << 20)])
    assert connector.get("two") == [pattern(2, 55 << 20)]
    connector.close()


def test_a_directory_on_disk_has_no_segments(tmp_path):
    connector = FileConnector(tmp_path)
    if connector._segments[0].works:
        pytest.skip("temporary files are in memory here")
    connector.put("one", [pattern(1)])
    assert connector.get("one") == [pattern(1)]
    connector.evict(["one"])
    assert not connector._segments[0].works
    assert not os.path.exists(f"{connector._places[0]}/~free")
    assert connector.usage().objects == 0
    connector.close()


def test_a_store_that_is_idle_gives_memory_back(monkeypatch):
    monkeypatch.setattr(_ownership, "_IDLE_SECONDS", 0.01)
    monkeypatch.setattr(file, "_KEPT_SECONDS", 0.03)
    released = threading.Event()
    asked = []

    class Telling(FileConnector):
        def release_idle(self, seconds):
            asked.append(seconds)
            kept = super().release_idle(seconds)
            if not kept and self.usage().objects == 0:
                released.set()
            return kept

    with Store("idle", Telling()) as store:
        proxy = store.proxy(pattern(1))
        assert proxy == pattern(1)
        del proxy
        assert released.wait(30)
        assert free_names(store.connector) == []
        assert asked == sorted(asked)
        assert asked[0] >= 0.01


def test_while_a_store_is_idle_what_it_keeps_makes_room_for_others(small_tmpfs):
    connector = FileConnector(small_tmpfs)
    for number in range(2):
        connector.put(str(number), [pattern(number, 5 << 20)])
    connector.evict(["0", "1"])
    assert len(free_names(connector)) == 2
    assert connector.release_idle(5.0)
    assert len(free_names(connector)) == 2
    (small_tmpfs / "others").write_bytes(bytes(26 << 20))
    assert connector.release_idle(10.0)
    assert len(free_names(connector)) == 1
    (small_tmpfs / "others too").write_bytes(bytes(16 << 20))
    assert not connector.release_idle(15.0)
    assert free_names(connector) == []
    connector.close()


def test_evicting_from_a_session_that_goes_meanwhile_is_no_failure(monkeypatch):
    """The program ends, and the thread that evicts has not."""
    connector = FileConnector()
    connector.put("one", [pattern(1)])
    evict = file._evict

    def evict_and_close(*arguments):
        recycled = evict(*arguments)
        connector.close()
        return recycled

    monkeypatch.setattr(file, "_evict", evict_and_close)
    monkeypatch.setattr(_segments, "_TRIMMED_EVERY", 0)
    connector.evict(["one"])


def test_a_connector_that_cannot_give_memory_back_does_not_stop_evicting(monkeypatch):
    monkeypatch.setattr(_ownership, "_IDLE_SECONDS", 0.01)
    failed = threading.Event()

    class Failing(FileConnector):
        def release_idle(self, seconds):
            failed.set()
            raise OSError("no")

    with Store("failing", Failing()) as store:
        for _ in range(2):
            failed.clear()
            del_me = store.proxy(b"x" * 1000)
            del del_me
            assert failed.wait(30)
        assert store.usage().objects == 0


def test_a_session_that_cannot_be_made_is_a_connector_error(monkeypatch, shared_memory):
    def full(segments):
        raise OSError(28, "no space left")

    monkeypatch.setattr(_segments.Segments, "make", full)
    with pytest.raises(ConnectorUnavailableError):
        FileConnector()
    assert not os.listdir(shared_memory)


def in_child(function):
    """Run a function in a forked process that goes by a signal it sends itself, or ends."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return status


def test_a_writer_that_is_killed_leaves_nothing_to_see(connector, monkeypatch):
    connector.put("one", [pattern(1)])
    connector.evict(["one"])
    write = _mapping.Mapping.write

    def write_and_die(mapping, start, data):
        write(mapping, start, data[: len(data) // 2])
        if start > 1000:
            os.kill(os.getpid(), signal.SIGKILL)

    def put():
        monkeypatch.setattr(_mapping.Mapping, "write", write_and_die)
        connector.put("two", [pattern(2, 1000), pattern(2)])

    connector.put("one", [pattern(1, SIZE + 2000)])
    connector.evict(["one"])
    assert os.WIFSIGNALED(in_child(put))
    assert connector.get("two") is None
    assert connector.get("one") is None
    free = len(free_names(connector))
    connector.put("three", [pattern(3, SIZE + 1000)])
    assert len(free_names(connector)) == free - 1  # the lock went with the process
    assert connector.get("three") == [pattern(3, SIZE + 1000)]


def test_a_forked_child_keeps_what_the_parent_lets_go_of(connector):
    connector.put("one", [pattern(1)])
    first = file_of(connector, "one")
    [held] = connector.get("one")
    go, done = multiprocessing.Pipe()
    child = os.fork()
    if child == 0:
        try:
            done.recv()
            os._exit(0 if held == pattern(1) else 1)
        except BaseException:
            os._exit(2)
    del held
    connector.evict(["one"])
    connector.put("two", [pattern(2)])
    connector.put("three", [pattern(3)])
    assert first not in (file_of(connector, "two"), file_of(connector, "three"))
    go.send(None)
    assert os.waitpid(child, 0)[1] == 0
    connector.put("four", [pattern(4)])
    assert file_of(connector, "four") == first  # the child has let go


def test_a_child_that_lets_go_does_not_unlock_the_parents(connector):
    connector.put("one", [pattern(1)])
    [held] = connector.get("one")

    def let_go():
        nonlocal held
        del held
        gc.collect()

    assert in_child(let_go) == 0
    connector.evict(["one"])
    connector.put("two", [pattern(2)])
    assert held == pattern(1)


def sized(number):
    """A pattern of one of two sizes, the larger one in large pages."""
    return pattern(number, SIZE if number % 2 else LARGE)


def is_uniform(memory):
    return memory == pattern(memory[0], len(memory))


def serve(address, pipe):
    """Do what is asked for in another process; hold what was fetched."""
    connector = FileConnector.attach(address)
    held = {}
    while True:
        command, *arguments = pipe.recv()
        if command == "put":
            key, number = arguments
            pipe.send(connector.put(key, [sized(number)]))
        elif command == "die writing":
            key, number, after = arguments
            write, count = _mapping.Mapping.write, iter(range(100))

            def write_or_die(mapping, start, data):
                if next(count) == after:
                    write(mapping, start, data[: len(data) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                write(mapping, start, data)

            _mapping.Mapping.write = write_or_die
            connector.put(key, [sized(number)])
            os.kill(os.getpid(), signal.SIGKILL)
        elif command == "get":
            key, slot = arguments
            held.pop(slot, None)
            frames = connector.get(key)
            if frames is not None:
                held[slot] = frames[0]
                del frames
                pipe.send((held[slot][0], held[slot] == sized(held[slot][0])))
            else:
                pipe.send(None)
        elif command == "scribble":
            if arguments[0] in held:
                held[arguments[0]][:] = pattern(250, len(held[arguments[0]]))
            pipe.send(None)
        elif command == "drop":
            held.pop(arguments[0], None)
            pipe.send(None)
        elif command == "check":
            pipe.send({slot: is_uniform(one) and one[0] for slot, one in held.items()})
        elif command == "evict":
            pipe.send(connector.evict(arguments))


WORKERS = st.integers(0, 2)
SLOTS = st.integers(0, 3)
KEYS = st.sampled_from("abcdef")


class SeveralProcesses(RuleBasedStateMachine):
    """Whatever three processes do to a session, they see what was stored, and only that."""

    @initialize()
    def start(self):
        self.connector = FileConnector()
        self.number = 0
        self.stored = {}
        self.held = [{}, {}, {}]
        self.workers = [self.new_worker() for _ in self.held]

    def new_worker(self):
        here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        process = context.Process(target=serve, args=(self.connector.address, there), daemon=True)
        process.start()
        there.close()
        return process, here

    def ask(self, worker, *command):
        pipe = self.workers[worker][1]
        pipe.send(command)
        return pipe.recv()

    @rule(worker=WORKERS, key=KEYS)
    def put(self, worker, key):
        self.number = (self.number + 1) % 247
        self.ask(worker, "put", key, self.number)
        self.stored.setdefault(key, self.number)

    @rule(worker=WORKERS, key=KEYS, after=st.integers(0, 5))
    def die_writing(self, worker, key, after):
        process, pipe = self.workers[worker]
        number = 248 + after % 2
        pipe.send(("die writing", key, number, after))
        process.join()
        pipe.close()
        self.held[worker].clear()
        self.workers[worker] = self.new_worker()
        # It may have been finished, where the file was a new one.
        found = self.connector.get(key)
        if key in self.stored:
            assert found == [sized(self.stored[key])]
        elif found is not None:
            assert found == [sized(number)]
            self.stored[key] = number

    @rule(worker=WORKERS, key=KEYS, slot=SLOTS)
    def get(self, worker, key, slot):
        answer = self.ask(worker, "get", key, slot)
        self.held[worker].pop(slot, None)
        if key in self.stored:
            assert answer == (self.stored[key], True)
            self.held[worker][slot] = self.stored[key]
        else:
            assert answer is None

    @rule(worker=WORKERS, slot=SLOTS)
    def scribble(self, worker, slot):
        self.ask(worker, "scribble", slot)
        if slot in self.held[worker]:
            self.held[worker][slot] = 250

    @rule(worker=WORKERS, slot=SLOTS)
    def drop(self, worker, slot):
        self.ask(worker, "drop", slot)
        self.held[worker].pop(slot, None)

    @rule(worker=WORKERS, key=KEYS)
    def evict(self, worker, key):
        self.ask(worker, "evict", key)
        self.stored.pop(key, None)

    @rule()
    def release_idle(self):
        self.connector.release_idle()

    @precondition(lambda self: hasattr(self, "workers"))
    @invariant()
    def everybody_has_what_was_there(self):
        for worker, held in enumerate(self.held):
            assert self.ask(worker, "check") == held

    def teardown(self):
        for process, pipe in getattr(self, "workers", ()):
            process.kill()
            process.join()
            pipe.close()
            process.close()
        with contextlib.suppress(AttributeError):
            self.connector.close()


TestSeveralProcesses = SeveralProcesses.TestCase
TestSeveralProcesses.settings = settings(
    max_examples=200 if os.environ.get("PROXYEXEC_LONG") else 12,
    stateful_step_count=100 if os.environ.get("PROXYEXEC_LONG") else 40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
