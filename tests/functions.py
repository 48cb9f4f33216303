"""What tests call in workers: importable by name, whatever the start method."""

from __future__ import annotations

import os
import signal
import sys
import time

from proxyexec import extract, is_proxy, is_resolved


def identity(x):
    return x


def add(a, b):
    return a + b


def pair(x):
    return {"x": x}


def kind(x):
    """What a function sees: the type, and whether it is a proxy, and a resolved one."""
    return type(x).__name__, is_proxy(x), is_proxy(x) and is_resolved(x)


def append(items, item):
    items.append(item)
    return items


def total(x):
    return sum(extract(x))


def boom(*args, **kwargs):
    raise ValueError("boom", *map(type, args))


def raise_with(x):
    raise RuntimeError(x)


def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)


def are_one(one, others):
    return one is others[0]


def lengths(items):
    return [len(extract(one)) for one in items]


def make_list(n):
    return list(range(n))


def make_bytes(n):
    return bytes(n)


def touch_then_wait(started, release):
    """Say that the task runs, by a file, and go on when another file is there."""
    open(started, "x").close()
    while not os.path.exists(release):
        time.sleep(0.001)
    return "done"


def wait_then_make_bytes(release, n):
    while not os.path.exists(release):
        time.sleep(0.001)
    return bytes(n)


def concat(base, *, num):
    return f"{base}-{num}"


def worker_pid():
    return os.getpid()


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("not for sending")


class BreaksOnArrival:
    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise RuntimeError("not to be made here")


class ExitsOnArrival:
    def __reduce__(self):
        return sys.exit, (1,)


def return_exiting():
    return ExitsOnArrival()


def return_unpicklable():
    return Unpicklable()


def return_breaking():
    return BreaksOnArrival()


def append_and_compare(a, b):
    a.append(5)
    return list(b), extract(a) is extract(b)


def close(store):
    with store:
        pass


class UnpicklableCallable(Unpicklable):
    def __call__(self):
        pass


class CountingCallable:
    pickled = 0

    def __reduce__(self):
        type(self).pickled += 1
        return CountingCallable, ()

    def __call__(self, x):
        return x


def seen(x):
    """Which values in a container, or attributes of an object, are proxies."""
    values = x if isinstance(x, dict) else vars(x)
    return {name: is_proxy(value) for name, value in values.items()}


def same_objects(items):
    """Whether all items of a list are one object."""
    return len({id(extract(item)) for item in items}) == 1


def add_up(first, second, third=0):
    return extract(first) + extract(second) + extract(third)


class Carrier:
    """An object with data, and everything that makes comparing it by mistake a failure."""

    def __init__(self, data):
        self.data = data

    def __eq__(self, other):
        raise AssertionError("compared")

    def __hash__(self):
        raise AssertionError("hashed")

    def method(self, x):
        return is_proxy(self), is_proxy(self.data), len(self.data) + x

    def __call__(self, x):
        return self.method(x)


def carried(data, x):
    return is_proxy(data), len(data) + x


def with_data(function, size):
    return [function(), *map(str, range(size // 5))]


class CountsPickling:
    """A callable that knows how often it was pickled."""

    times = 0

    def __reduce__(self):
        CountsPickling.times += 1
        return CountsPickling, ()

    def __call__(self, item):
        return item


def odd_only(n):
    if n % 2 == 0:
        raise ValueError(f"{n} is even")
    return n
