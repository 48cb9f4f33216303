"""Tasks that misbehave: what the bare pool raises and survives, ours raises and survives."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import multiprocessing
import os
import pickle
import sys
import threading
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

import proxyexec
from proxyexec import ProxyAlways, StoreExecutor, extract
from proxyexec.errors import ArrivalError, DeserializationError, PolicyError, SerializationError
from tests import functions
from tests.conftest import settle

FORK = multiprocessing.get_context("fork")


def processes():
    return concurrent.futures.ProcessPoolExecutor(1, FORK)


def threads():
    return concurrent.futures.ThreadPoolExecutor(1)


def around(make, **options):
    return StoreExecutor(make(), should_proxy=ProxyAlways(), close_store=False, **options)


SETTINGS = {
    "drop-in": lambda: proxyexec.ProcessPoolExecutor(1, FORK),
    "lazy": lambda: around(processes),
    "eager": lambda: around(processes, lazy=False),
    "nested": lambda: around(processes, nested=True),
    "threads-lazy": lambda: around(threads),
    "threads-eager": lambda: around(threads, lazy=False),
}


# What goes wrong.


class MineError(ValueError):
    pass


class Raises:
    """Raises something when it is pickled."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        raise self.kind("not for sending")


class RaisesOnArrival:
    """Raises something when it is unpickled."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return raise_one, (self.kind,)


class Odd(Exception):
    """Cannot be unpickled."""

    def __init__(self, one, other):
        super().__init__(one)


class Locked(Exception):
    """Cannot be pickled."""

    def __init__(self):
        super().__init__("locked")
        self.lock = threading.Lock()


def raise_one(kind, *arguments):
    raise kind(*arguments)


def give(make, *arguments):
    return make(*arguments)


def locked_list():
    return [threading.Lock()]


def deep_list(depth=100_000):
    found = []
    for _ in range(depth):
        found = [found]
    return found


def without_end(n):
    return without_end(n + 1)


def use(x):
    """Look at an argument."""
    return type(extract(x)).__name__


BUILT_IN = [RuntimeError, KeyError, OSError, AttributeError, MemoryError, StopIteration, MineError]

# By name: what is called, and what makes its arguments.
TASKS = {
    **{f"raises {kind.__name__}": (raise_one, lambda kind=kind: [kind]) for kind in BUILT_IN},
    "raises SystemExit": (raise_one, lambda: [SystemExit, 3]),
    "exits": (sys.exit, lambda: [4]),
    "raises KeyboardInterrupt": (raise_one, lambda: [KeyboardInterrupt]),
    "raises GeneratorExit": (raise_one, lambda: [GeneratorExit]),
    "raises what cannot be pickled": (raise_one, lambda: [Locked]),
    "recurses": (without_end, lambda: [0]),
    "returns a lock": (give, lambda: [locked_list]),
    **{
        f"returns what raises {kind.__name__}": (give, lambda kind=kind: [Raises, kind])
        for kind in [*BUILT_IN, KeyboardInterrupt, SystemExit]
    },
    "returns what is too deep": (give, lambda: [deep_list]),
    "gets a lock": (use, lambda: [locked_list()]),
    **{
        f"gets what raises {kind.__name__}": (use, lambda kind=kind: [Raises(kind)])
        for kind in BUILT_IN
    },
    "gets what is too deep": (use, lambda: [deep_list()]),
    "has a lock": (functools.partial(use, locked_list()), list),
}

# What breaks the bare pool.
BREAKING = {
    "raises what cannot be unpickled": (raise_one, lambda: [Odd, 1, 2]),
    "returns what cannot be unpickled": (give, lambda: [RaisesOnArrival, ValueError]),
    "gets what cannot be unpickled": (use, lambda: [RaisesOnArrival(ValueError)]),
    "dies": (functions.die, list),
    "leaves": (os._exit, lambda: [5]),
}


def outcome(pool, function, arguments):
    """What a call comes to: its value, or the error, which refers to nothing."""
    try:
        value = pool.submit(function, *arguments).result(60)
        return extract(value) if proxyexec.is_proxy(value) else value
    except BaseException as error:
        error.__traceback__ = error.__context__ = None
        if error.__cause__ is not None:
            error.__cause__.__traceback__ = error.__cause__.__context__ = None
        return error


def lives(pool):
    try:
        return pool.submit(functions.add, 1, 1).result(60) == 2
    except BrokenExecutor:
        return False


@functools.cache
def bare_outcome(make, name):
    """What the bare pool makes of it: the error's type, or a value, and whether it lives on."""
    function, arguments = {**TASKS, **BREAKING}[name]
    with make() as pool:
        came = outcome(pool, function, arguments())
        came = type(came) if isinstance(came, BaseException) else came
        return came, lives(pool)


def built_in(kind):
    """What an error of ours is of as well: it is not made by a constructor of somebody else's."""
    return next(one for one in kind.__mro__ if one.__module__ == "builtins")


@pytest.fixture(scope="module", params=SETTINGS)
def setting(request):
    with SETTINGS[request.param]() as pool:
        pool.submit(functions.add, [1], [1]).result()
        pool.store.usage()
        yield pool, request.param
        settle(pool)
        gc.collect()
        assert pool.store.usage() == (0, 0)
    pool.store.close()


@pytest.mark.parametrize("name", TASKS)
def test_what_the_bare_pool_survives(setting, name):
    pool, kind = setting
    make = threads if "threads" in kind else processes
    expected, lived = bare_outcome(make, name)
    assert lived
    function, arguments = TASKS[name]
    came = outcome(pool, function, arguments())
    assert lives(pool)
    if isinstance(expected, type) and issubclass(expected, BaseException):
        assert isinstance(came, built_in(expected)), repr(came)
    elif isinstance(came, BaseException):  # threads can pass on what cannot be stored
        assert make is threads
        assert isinstance(came, (SerializationError, KeyboardInterrupt, SystemExit))
    else:
        assert type(came) is type(expected)
    if isinstance(came, SerializationError):
        verb = name.partition(" ")[0]
        where = {"gets": "argument 0 of", "has": "the function", "returns": "the result of"}[verb]
        assert where in str(came)
        assert getattr(function, "__name__", "partial(use)") in str(came)
        again = pickle.loads(pickle.dumps(came))
        assert type(again) is type(came)
        assert str(again) == str(came)
        del again
    settle(pool)
    del came  # an error may have proxies among its arguments
    assert pool.store.usage() == (0, 0)


@pytest.mark.parametrize("name", BREAKING)
@pytest.mark.parametrize("kind", ["drop-in", "lazy", "eager"])
def test_what_breaks_the_bare_pool(kind, name):
    expected, lived = bare_outcome(processes, name)
    assert expected is BrokenProcessPool
    assert not lived
    function, arguments = BREAKING[name]
    with SETTINGS[kind]() as pool:
        store = pool.store
        came = outcome(pool, function, arguments())
        if "gets" in name or "returns" in name:  # ours lives on, and says what it was
            assert isinstance(came, DeserializationError if kind == "lazy" else ArrivalError)
            if kind != "lazy":
                assert isinstance(came, BrokenProcessPool)
                assert "argument 0 of use" in str(came) or "the result of give" in str(came)
            assert "ValueError" in str(came)
            assert lives(pool)
        else:
            assert type(came) is BrokenProcessPool
            assert not lives(pool)
        del came
    if kind != "drop-in":  # which closes its store
        assert store.usage() == (0, 0)
    store.close()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_argument_that_ends_the_program_does_so_where_it_is_sent(kind):
    """As it would in any other line of the caller; the bare pool hangs of it."""
    with SETTINGS["lazy"]() as pool:
        with pytest.raises(kind):
            pool.submit(functions.add, [1], Raises(kind))
        assert lives(pool)
        settle(pool)
        gc.collect()
        assert pool.store.usage() == (0, 0)
    pool.store.close()


def test_a_result_that_ends_the_program_does_not_end_who_hands_it_on():
    """A call that waits is sent by whoever delivers what it waited for: a pool's only thread."""
    release = threading.Event()

    def give_later():
        assert release.wait(60)
        return Raises(SystemExit)

    with threads() as base, SETTINGS["lazy"]() as pool:
        through = StoreExecutor(base)  # passes on what cannot be pickled
        waited_for = through.submit(give_later)
        waiting = pool.submit(functions.identity, waited_for)
        release.set()
        assert isinstance(waiting.exception(60), SystemExit)
        assert through.submit(functions.add, 1, 1).result(60) == 2
        assert lives(pool)
        settle(pool)
        del waiting, waited_for
        gc.collect()
        assert pool.store.usage() == (0, 0)
    through.shutdown()
    pool.store.close()


# Policies.


class Picky:
    """Raises about what is in one of two processes."""

    def __init__(self, kind, client):
        self.kind, self.client, self.here = kind, client, os.getpid()

    def __repr__(self):
        return "Picky()"

    def __call__(self, obj):
        if isinstance(obj, list) and (os.getpid() == self.here) == self.client:
            raise self.kind("picky")
        return True


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("kind", [RuntimeError, MineError, RecursionError])
def test_a_policy_that_raises(kind, client, lazy):
    policy = Picky(kind, client)
    with StoreExecutor(processes(), should_proxy=policy, lazy=lazy, close_store=False) as pool:
        error = pool.submit(functions.append, [1], 2).exception(60)
        assert isinstance(error, PolicyError)
        what = "argument 0 of append" if client else "the result of append"
        assert what in str(error)
        assert f"{kind.__name__}: picky" in str(error)
        assert "Picky()" in str(error)
        results = pool.map(functions.append, [[1]], [2], chunksize=2)
        with pytest.raises(PolicyError, match=what):
            next(results)
        with pytest.raises(PolicyError, match=what):
            next(pool.map(functions.append, [[1]], [2], chunksize="auto"))
        assert lives(pool)
        settle(pool)
        del error, results
        gc.collect()
        assert pool.store.usage() == (0, 0)
    pool.store.close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("client", [True, False])
def test_a_policy_that_is_interrupted(kind, client):
    policy = Picky(kind, client)
    with StoreExecutor(processes(), should_proxy=policy, close_store=False) as pool:
        with pytest.raises(kind):
            pool.submit(functions.append, [1], 2).result(60)
        assert lives(pool)
        settle(pool)
        gc.collect()
        assert pool.store.usage() == (0, 0)
    pool.store.close()


# What a future says before its result is read.


class Breaks:
    """Is large, and cannot be unpickled."""

    def __init__(self):
        self.data = bytes(1_000_000)

    def __reduce__(self):
        return raise_one, (ValueError, self.data)


def test_asyncio_is_told_of_a_result_that_cannot_be_made():
    """It asks for an error first, and takes none for an answer."""

    async def program():
        with proxyexec.ProcessPoolExecutor(1, FORK) as pool:
            running = asyncio.get_running_loop().run_in_executor(pool, Breaks)
            with pytest.raises(ArrivalError, match="the result of Breaks"):
                await asyncio.wait_for(running, 60)

    asyncio.run(program())
