"""What storing, fetching and passing on cost over Redis, beside SET and GET of one value.

Starts a redis-server of its own. What goes through it cannot be much faster than a value that
redis-py sets and gets again. Not called redis.py, or programs here would import that for redis-py.

    python benchmarks/over_redis.py
    python benchmarks/over_redis.py --sizes 100MB --repeat 15 --json redis.json
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import gc
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import redis
from command import (
    at_least,
    check_directories,
    end_tidily_when_terminated,
    sizes,
    write_results,
)
from machine import available_memory, describe_machine, in_a_line
from measure import LARGE, quartiles, touch_free_memory
from numpy.typing import NDArray
from proxyexec_connectors.redis import RedisConnector
from screen import Progress, duration, show_table, size_name
from workloads import pause, touch

from proxyexec import ProxyType, Store, StoreExecutor

DISTRIBUTIONS = ("proxyexec", "redis", "hiredis", "cryptography", "proxystore", "numpy")

_MB = 1_000_000

_WORKERS = 2

# The size of an argument, and how many tasks share it.
_ARGUMENT = 100 * _MB
_SHARERS = 8

# How long an argument may take beside SET and GET, and how many times as fast as ProxyStore.
_BESIDE_SET_AND_GET = 1.3
_BESIDE_PROXYSTORE = 1.5

# How often the server may send an array that several tasks share; small replies come to little.
_COPIES_SENT = 1.1

# What is said of a store without integrity, in the names of what is measured.
_UNVERIFIED = "not verified"

# Rounds that come before those that are kept.
_FIRST_ROUNDS = 2

# A sample of data up to so many bytes is the mean of so many calls.
_SMALL_CALLS = ((100_000, 100), (LARGE - 1, 10))

# The array, what is stored, received and touched, for each who takes part.
_MEMORY_FOLD = 12

# How long the server may take to start.
_PATIENCE = 30.0

Array = NDArray[np.float64]
Samples = dict[str, list[float]]


class WrongDataError(Exception):
    """What came back is not what was stored."""


class Server:
    """A redis-server process on a free port, which saves nothing.

    Args:
        executable: its path.
        directory: where it may put files.
    """

    def __init__(self, executable: str, directory: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        command = [executable, "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", directory]
        # In a session of its own: Ctrl-C is for this program, which has to clean up first.
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        self.client = redis.Redis(port=self.port)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self.client.ping()
            except redis.ConnectionError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    @property
    def url(self) -> str:
        """For connectors."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def version(self) -> str:
        """Of the server."""
        return str(self.info("server")["redis_version"])

    @property
    def sent(self) -> int:
        """Bytes that it has sent to clients so far."""
        return int(self.info("stats")["total_net_output_bytes"])

    def info(self, section: str) -> dict[str, Any]:
        """Return what it says of itself."""
        found: Any = self.client.info(section)
        return dict(found)

    def close(self) -> None:
        """End it."""
        self.client.close()
        self._process.terminate()
        self._process.wait()


class Plain:
    """Values by redis-py, objects by the connector and by stores: of one size, in one process.

    Args:
        server: where.
        size: in bytes.
    """

    names = ("SET", "GET", "put", "get", "evict")
    names_of_stores = (
        *("Store.put", f"Store.put, {_UNVERIFIED}"),
        *("Store.get", f"Store.get, {_UNVERIFIED}"),
    )

    def __init__(self, server: Server, size: int) -> None:
        self.samples: Samples = {name: [] for name in (*self.names, *self.names_of_stores)}
        self._client = server.client
        self._connector = RedisConnector(server.url)
        self._data = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        self._size = size
        self._calls = next((calls for most, calls in _SMALL_CALLS if size <= most), 1)
        self._verifying = Store("benchmark", RedisConnector(server.url))
        self._other = Store("benchmark", RedisConnector(server.url), integrity=False)
        self._steps = [
            *(self._by_redis_py, self._by_connector),
            *(self._by_verifying_store, self._by_other_store),
        ]
        self._order = random.Random(0)

    def round(self, *, keep: bool) -> None:
        """Do everything once, in an order of its own; nothing is stored afterwards."""
        self._data[0] += 1  # what came back from an earlier round would be wrong
        times: Samples = {name: [] for name in self.samples}
        self._order.shuffle(self._steps)
        for step in self._steps:
            touch_free_memory(self._size)
            gc.collect()
            step(times)
        if keep:
            for name, seconds in times.items():
                self.samples[name].append(sum(seconds))

    def _by_redis_py(self, times: Samples) -> None:
        value, client = self._data.tobytes(), self._client
        keys = [f"value {number}" for number in range(self._calls)]
        self._time(times["SET"], client.set, [(key, value) for key in keys])
        found: Any = self._time(times["GET"], client.get, [(key,) for key in keys])
        self._check(found)
        client.delete(*keys)

    def _by_connector(self, times: Samples) -> None:
        connector = self._connector
        keys = [f"object {number}" for number in range(self._calls)]
        self._time(times["put"], connector.put, [(key, [self._data]) for key in keys])
        [found] = self._time(times["get"], connector.get, [(key,) for key in keys])
        self._check(found)
        self._time(times["evict"], connector.evict, [(keys,)])

    def _by_verifying_store(self, times: Samples) -> None:
        self._by_store(self._verifying, times["Store.put"], times["Store.get"])

    def _by_other_store(self, times: Samples) -> None:
        put, get = (times[f"Store.{what}, {_UNVERIFIED}"] for what in ("put", "get"))
        self._by_store(self._other, put, get)

    def _by_store(self, store: Store, put: list[float], get: list[float]) -> None:
        references: list[Any] = []
        keep = references.append
        self._time(put, lambda: keep(store.put(self._data)), [()] * self._calls)
        self._check(self._time(get, store.get, [(one,) for one in references]))
        store.evict(*references)

    def _time(
        self, seconds: list[float], call: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> Any:
        start = time.perf_counter()
        for arguments in calls:
            found = call(*arguments)
        seconds.append((time.perf_counter() - start) / self._calls)
        return found

    def _check(self, found: Any) -> None:
        if not np.array_equal(np.frombuffer(found, np.uint8), self._data):
            raise WrongDataError(f"{size_name(self._size)} are not what was stored")

    def close(self) -> None:
        """Remove what there is."""
        for one in (self._connector, self._verifying, self._other):
            one.close()


class Pools:
    """An array for tasks in processes, through the server.

    Args:
        server: where.
    """

    def __init__(self, server: Server) -> None:
        self.samples: Samples = {}
        self.sent: Samples = {}
        self._server = server
        self._stack = contextlib.ExitStack()
        self._array: Array = np.arange(_ARGUMENT // 8, dtype=np.float64)
        with self._stack as stack:
            self._executors: dict[str, Any] = {}
            for name, integrity in (("proxyexec", True), (f"proxyexec {_UNVERIFIED}", False)):
                store = Store("benchmark", RedisConnector(server.url), integrity=integrity)
                pool = concurrent.futures.ProcessPoolExecutor(_WORKERS)
                mine = StoreExecutor(pool, store, ProxyType(np.ndarray))
                self._executors[name] = stack.enter_context(mine)
            if find_spec("proxystore") is not None:
                self._executors["proxystore"] = stack.enter_context(_proxystore(server))
            for executor in self._executors.values():
                list(executor.map(pause, [0.2] * 2 * _WORKERS))
            self._stack = stack.pop_all()
        self._turns: list[tuple[str, Callable[[], None]]] = [("SET + GET", self._set_and_get)]
        for name in self._executors:
            self._turns.append((f"argument, {name}", self._tasks_of(name, 1)))
            self._turns.append((f"broadcast, {name}", self._tasks_of(name, _SHARERS)))
        self._order = random.Random(0)

    @property
    def names(self) -> list[str]:
        """What is measured."""
        return sorted(name for name, _ in self._turns)

    def round(self, *, keep: bool) -> None:
        """Give everybody an array once, in an order of its own, with another content each."""
        self._order.shuffle(self._turns)
        for name, turn in self._turns:
            self._array += 1
            touch_free_memory(_ARGUMENT, several=True)
            gc.collect()
            sent = self._server.sent
            start = time.perf_counter()
            turn()
            seconds = time.perf_counter() - start
            sent = self._server.sent - sent
            self._let_go()
            if keep:
                self.samples.setdefault(name, []).append(seconds)
                self.sent.setdefault(name, []).append(sent)

    def _set_and_get(self) -> None:
        client = self._server.client
        client.set("value", memoryview(self._array).cast("B"))  # type: ignore[arg-type]
        found: Any = client.get("value")
        self._check(touch(np.frombuffer(found, np.float64)))

    def _tasks_of(self, name: str, count: int) -> Callable[[], None]:
        submit = self._executors[name].submit

        def run() -> None:
            futures = [submit(touch, self._array) for _ in range(count)]
            for future in futures:
                self._check(future.result())

        return run

    def _check(self, result: float) -> None:
        if result != touch(self._array):
            raise WrongDataError("a task had another array than it was given")

    def _let_go(self) -> None:
        """See to it that nothing is stored, nor evicted while others are timed."""
        self._server.client.delete("value")
        deadline = time.monotonic() + _PATIENCE
        while int(self._server.info("memory")["used_memory"]) > _ARGUMENT:
            if time.monotonic() > deadline:
                raise WrongDataError("something stays in the server")
            time.sleep(0.005)

    def close(self) -> None:
        """Stop the workers, and remove everything."""
        self._stack.close()


@contextlib.contextmanager
def _proxystore(server: Server) -> Iterator[Any]:
    connector = import_module("proxystore.connectors.redis").RedisConnector
    library = import_module("proxystore.store.executor")
    pool = concurrent.futures.ProcessPoolExecutor(_WORKERS)
    store = import_module("proxystore.store").Store(
        "benchmark", connector("127.0.0.1", server.port), cache_size=0
    )
    executor = library.StoreExecutor(pool, store, library.ProxyType(np.ndarray), ownership=True)
    try:
        yield executor
    finally:
        executor.shutdown(wait=True)
        store.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    options = _options(arguments)
    executable = shutil.which(options.server)
    if executable is None:
        print(f"nothing to do: there is no {options.server}", file=sys.stderr)
        return 1
    wanted = _that_fit(options.sizes)
    machine = describe_machine(DISTRIBUTIONS)
    plain: dict[int, Samples] = {}
    pools: list[Pools] = []
    interrupted = False
    end_tidily_when_terminated()
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.closing(Server(executable, directory)) as server,
    ):
        machine["versions"]["redis-server"] = server.version
        print(in_a_line(machine, f"{_WORKERS} workers"), file=sys.stderr)
        try:
            _run(server, wanted, options.repeat, plain, pools)
        except KeyboardInterrupt:
            print("interrupted; this is what there is", file=sys.stderr)
            interrupted = True
    connector = [_entry(size, samples) for size, samples in plain.items() if samples["evict"]]
    calls = [entry for one in pools for entry in _calls(one)]
    tables = [_connector_table(connector), _stores_table(connector), _calls_table(calls)]
    for table in tables:
        show_table(**table)
    if options.json is not None:
        write_results(options.json, machine, tables, connector=connector, calls=calls)
    return 130 if interrupted else 0


def _that_fit(wanted: Sequence[int]) -> list[int]:
    available = available_memory()
    fit = [one for one in wanted if available is None or _MEMORY_FOLD * one <= available]
    for size in wanted:
        if size not in fit:
            needed = size_name(_MEMORY_FOLD * size)
            print(f"{size_name(size)} is left out: it may take {needed} of memory", file=sys.stderr)
    return fit


def _run(
    server: Server,
    wanted: Sequence[int],
    repeat: int,
    plain: dict[int, Samples],
    pools: list[Pools],
) -> None:
    rounds = _FIRST_ROUNDS + repeat
    with Progress((len(wanted) + 1) * rounds) as progress:
        for size in wanted:
            with contextlib.closing(Plain(server, size)) as bench:
                plain[size] = bench.samples
                for number in range(rounds):
                    progress.step(size_name(size))
                    bench.round(keep=number >= _FIRST_ROUNDS)
        with contextlib.closing(Pools(server)) as tasks:
            pools.append(tasks)
            for number in range(rounds):
                progress.step("tasks")
                tasks.round(keep=number >= _FIRST_ROUNDS)


def _entry(size: int, samples: Samples) -> dict[str, Any]:
    medians = {name: statistics.median(seconds) for name, seconds in samples.items()}
    return {
        "size": size,
        "seconds": samples,
        "medians": medians,
        "times": (medians["put"] + medians["get"]) / (medians["SET"] + medians["GET"]),
    }


def _connector_table(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": "one process: medians and quartiles of a call",
        "columns": ["size", *Plain.names, "put + get beside SET + GET"],
        "rows": [
            [
                size_name(entry["size"]),
                *(_spread(entry["seconds"][name]) for name in Plain.names),
                f"{entry['times']:.2f}",
            ]
            for entry in entries
        ],
    }


def _stores_table(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rows = []
    for entry in entries:
        medians = entry["medians"]
        pairs = zip(Plain.names_of_stores[::2], Plain.names_of_stores[1::2], strict=True)
        rows.append(
            [
                size_name(entry["size"]),
                *(_spread(entry["seconds"][name]) for name in Plain.names_of_stores),
                *(f"{medians[one] / medians[other]:.2f}" for one, other in pairs),
            ]
        )
    return {
        "title": "one process, an array in a store, with integrity (the default) and without",
        "columns": [
            *("size", *Plain.names_of_stores),
            *(f"{what} beside {_UNVERIFIED}" for what in ("put", "get")),
        ],
        "rows": rows,
    }


def _calls(pools: Pools) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    medians = {name: statistics.median(seconds) for name, seconds in pools.samples.items()}
    for name in filter(medians.__contains__, pools.names):
        what, _, who = name.partition(", ")
        entry = {
            "call": name,
            "seconds": pools.samples[name],
            "median": medians[name],
            "sent_bytes": statistics.median(pools.sent[name]),
        }
        if who and "SET + GET" in medians:
            entry["times"] = medians[name] / medians["SET + GET"]
        if who == "proxyexec" and f"{what}, proxystore" in medians:
            entry["beside_proxystore"] = medians[f"{what}, proxystore"] / medians[name]
        if name == "argument, proxyexec":
            entry.update(goal=_BESIDE_SET_AND_GET, goal_beside_proxystore=_BESIDE_PROXYSTORE)
        if name == "broadcast, proxyexec":
            entry.update(goal_copies_sent=_COPIES_SENT)
        found.append(entry)
    return found


def _calls_table(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": (
            f"array of {size_name(_ARGUMENT)} for one task (argument) and for {_SHARERS} "
            f"(broadcast), {_WORKERS} workers"
        ),
        "columns": [
            *("call", "median, quartiles", "beside SET + GET", "beside ProxyStore"),
            *("sent by the server", "goals"),
        ],
        "rows": [
            [
                entry["call"],
                _spread(entry["seconds"]),
                f"{entry['times']:.2f}" if "times" in entry else "",
                f"{entry['beside_proxystore']:.1f} x as fast"
                if "beside_proxystore" in entry
                else "",
                size_name(entry["sent_bytes"]),
                _verdict(entry),
            ]
            for entry in entries
        ],
    }


def _verdict(entry: dict[str, Any]) -> str:
    said = []
    if "goal" in entry and "times" in entry:
        said.append(f"{entry['goal']:g} " + _passes(entry["times"] <= entry["goal"]))
    if "goal_beside_proxystore" in entry and "beside_proxystore" in entry:
        least = entry["goal_beside_proxystore"]
        said.append(f"{least:g} x " + _passes(entry["beside_proxystore"] >= least))
    if "goal_copies_sent" in entry:
        right = entry["sent_bytes"] <= entry["goal_copies_sent"] * _ARGUMENT
        said.append("sent once " + _passes(right))
    return ", ".join(said)


def _passes(right: bool) -> str:
    return "pass" if right else "SHORT"


def _spread(seconds: Sequence[float]) -> str:
    return f"{duration(statistics.median(seconds))}, {duration(*quartiles(seconds))}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: over_redis.py --sizes 10MB,100MB --repeat 31 --json redis.json",
    )
    parser.add_argument(
        "--sizes",
        type=sizes,
        default="10KB,1MB,10MB,100MB",
        metavar="LIST",
        help="of what one process stores and fetches (default: %(default)s)",
    )
    parser.add_argument(
        "--repeat",
        type=at_least(7),
        default=11,
        metavar="N",
        help=f"samples, after {_FIRST_ROUNDS} that are not kept (default: 11; at least 7)",
    )
    parser.add_argument(
        "--server", default="redis-server", metavar="PROGRAM", help="default: %(default)s"
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    options = parser.parse_args(arguments)
    check_directories(parser, (options.json,))
    return options


if __name__ == "__main__":
    sys.exit(main())
