"""What is logged: under one name, for who asks for it, and with no password in it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import logging
import os
import pkgutil
import subprocess
import sys
import threading

import pytest

import proxyexec
import proxyexec_connectors
from proxyexec import ProxyAlways, Store, StoreExecutor
from proxyexec_connectors import attach
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests import functions


@pytest.fixture
def logged(caplog):
    """Returns what was logged under a name since it was last asked, as level and text."""
    caplog.set_level(logging.DEBUG, "proxyexec")

    def lines(name):
        return [
            (record.levelname, record.getMessage())
            for record in caplog.records
            if record.name == name
        ]

    return lines


def run(program, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def killed(program, *arguments):
    """Run a program that prints a line and waits; kill it then, and return the line."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline().strip()
    process.kill()
    process.communicate()
    return line


def test_stores_say_what_becomes_of_them(logged):
    with Store("mine", MemoryConnector()) as store:
        proxy = store.proxy([1])
        del proxy
        store.usage()
    store.close()
    opened, *evicted, closed = logged("proxyexec.store")
    assert opened == ("DEBUG", "store 'mine': opened a session in memory://")
    assert evicted == [("DEBUG", "store 'mine': evicted 1 objects")]
    assert closed == ("DEBUG", "store 'mine': closed")


def test_sessions_of_others_are_named(logged, tmp_path):
    program = """
import sys
from proxyexec import Store
store = Store.from_url("file://" + sys.argv[1])
print(store.put([1, 2]).address, flush=True)
sys.stdin.read()
"""
    address = killed(program, tmp_path)
    proxyexec._store.store_at(address).close()
    url = f"file://{tmp_path}"
    [opened, closed] = logged("proxyexec.store")
    assert opened == ("DEBUG", f"store {url!r}: opened the session of another process in {url}")
    assert closed == ("DEBUG", f"store {url!r}: closed")


def test_executors_say_how_they_are_set_up_and_shut_down(logged):
    base = concurrent.futures.ThreadPoolExecutor(1)
    with StoreExecutor(base, Store("mine", MemoryConnector()), ProxyAlways()):
        pass
    assert logged("proxyexec.executor") == [
        (
            "DEBUG",
            "an executor around a ThreadPoolExecutor, with store 'mine' and policy ProxyAlways()",
        ),
        ("DEBUG", "shutting down: wait=True, cancel_futures=False"),
    ]


def test_calls_that_cannot_be_sent_are_named(logged):
    with proxyexec.ProcessPoolExecutor(1) as pool:
        future = pool.submit(functions.identity, functions.Unpicklable())
        assert future.exception() is not None
    [line] = [text for _, text in logged("proxyexec.executor") if "cannot be sent" in text]
    assert line.startswith("a call of identity cannot be sent: SerializationError(")


def test_a_lost_worker_is_said_once(logged):
    with proxyexec.ProcessPoolExecutor(1) as pool:
        futures = [pool.submit(functions.die, [n]) for n in range(5)]
        concurrent.futures.wait(futures)
    lines = [one for one in logged("proxyexec.executor") if "worker" in one[1]]
    [(level, text)] = lines
    assert level == "INFO"
    assert text.startswith("a worker was lost, and with it a call of die: ")


def test_who_waits_for_room_says_so(logged):
    store = Store("small", MemoryConnector(), max_bytes="1 kB", full_timeout=None)
    with store:
        first = store.proxy(bytes(800))
        wanted = threading.Event()

        class Handler(logging.Handler):
            def emit(self, record):
                if "waits for room" in record.getMessage():
                    wanted.set()

        handler = Handler()
        logging.getLogger("proxyexec.store").addHandler(handler)
        try:
            thread = threading.Thread(target=store.put, args=[bytes(800)])
            thread.start()
            assert wanted.wait(60)
            del first  # makes room
            thread.join(60)
            assert not thread.is_alive()
        finally:
            logging.getLogger("proxyexec.store").removeHandler(handler)
    [text] = [text for _, text in logged("proxyexec.store") if "waits" in text]
    assert text.startswith("memory://: an object of type bytes waits for room for 8")
    assert text.endswith("of 1000 are taken")


class OnceFailing(MemoryConnector):
    failures = 2

    def evict(self, keys):
        self.failures -= 1
        if self.failures >= 0:
            raise ConnectionError("not now")
        super().evict(keys)


def test_evictions_that_fail_are_warned_of_once(logged):
    with Store("flaky", OnceFailing()) as store:
        for _ in range(3):
            store.proxy([1])
            store.usage()
    lines = [(level, text) for level, text in logged("proxyexec.store") if "evict" in text]
    levels = [level for level, _ in lines]
    assert levels == ["WARNING", "DEBUG", "DEBUG"]
    assert "evicting failed and is tried again later" in lines[0][1]
    assert lines[1][1] == "store 'flaky': evicting failed again: not now"
    assert lines[2][1] == "store 'flaky': evicted 3 objects"


def test_sessions_of_dead_processes_are_said_to_be_removed_from_files(logged, tmp_path):
    program = """
import sys
from proxyexec_connectors.file import FileConnector
connector = FileConnector(sys.argv[1])
print(connector.address, flush=True)
sys.stdin.read()
"""
    killed(program, tmp_path)
    [session] = [one.name for one in tmp_path.iterdir() if one.is_dir()]
    FileConnector(tmp_path).close()
    assert logged("proxyexec.connectors.file") == [
        ("INFO", f"removed what a dead process left: {tmp_path / session}")
    ]


def test_sessions_of_dead_processes_are_said_to_be_removed_from_redis(logged, redis_url):
    from proxyexec_connectors.redis import RedisConnector

    program = """
import sys
from proxyexec_connectors.redis import RedisConnector
connector = RedisConnector(sys.argv[1], grace=1000)
connector.put("key", [b"x"])
print(connector.address, flush=True)
sys.stdin.read()
"""
    address = killed(program, redis_url)
    with contextlib.closing(attach(address)) as orphan:
        orphan._link.run([("DEL", orphan._names.alive)])  # stands for the time of grace
        RedisConnector(redis_url).close()
        name = orphan._names.session
    assert ("INFO", f"removed what a dead process left: session {name!r}") in logged(
        "proxyexec.connectors.redis"
    )


def test_reloading_a_group_says_what_is_in_it(logged, tmp_path):
    base = concurrent.futures.ProcessPoolExecutor(1)
    with StoreExecutor(base, f"file://{tmp_path}/groups", task_group="mine") as executor:
        assert executor.submit(functions.add, 1, 2).result() == 3
        assert len(executor.reload_tasks()) == 1
    [(level, text)] = logged("proxyexec.groups")
    assert level == "DEBUG"
    assert text == "group 'mine': of 1 calls, 1 have an outcome and 0 are being run"


def test_all_loggers_are_below_one_name():
    for package in (proxyexec, proxyexec_connectors):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name != "proxyexec.__main__":
                with contextlib.suppress(ImportError):  # of what is not installed
                    importlib.import_module(module.name)
    names = [name for name in logging.root.manager.loggerDict if name.startswith("proxyexec")]
    assert {name.partition(".")[0] for name in names} == {"proxyexec"}
    page = os.path.join(os.path.dirname(__file__), os.pardir, "docs", "progress.md")
    with open(page, encoding="utf-8") as file:
        text = file.read()
    for name in names:
        logger = logging.root.manager.loggerDict[name]
        if isinstance(logger, logging.Logger) and name != "proxyexec":
            assert f"`{name}`" in text, name


PROGRAM = """
import logging, sys
from proxyexec import Store
from proxyexec_connectors.memory import MemoryConnector

class Failing(MemoryConnector):
    def evict(self, keys):
        raise ConnectionError("no")

if sys.argv[1:]:
    logging.basicConfig(level=sys.argv[1])
with Store("failing", Failing()) as store:
    store.proxy([1])
    store.usage()
"""


def test_warnings_are_written_unless_logging_is_set_up_otherwise():
    done = run(PROGRAM)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("store 'failing': evicting failed")
    assert len(done.stderr.splitlines()) == 1
    done = run(PROGRAM, "WARNING")
    assert done.stderr.startswith("WARNING:proxyexec.store:store 'failing': evicting failed")
    assert len(done.stderr.splitlines()) == 1
    done = run(PROGRAM, "DEBUG")
    assert "DEBUG:proxyexec.store:store 'failing': opened a session in memory://" in done.stderr
    assert done.returncode == 0
