"""Functions as programs write them, for strategies of code. Not rewritten by pytest."""

from __future__ import annotations

import functools
import math
import os
import threading
from pathlib import Path

FACTOR = 3


def plain(x, y=2, *, z=None):
    """Doubles.

    Documentation of several lines.
    """
    import math  # as whoever sends sources has to

    return math.floor(x) * y, z


def counting_down(n):
    return [n, *counting_down(n - 1)] if n else []


def annotated(path: Path) -> os.PathLike[str]:
    total: int = len(str(path))
    return [total * x for x in range(3)]


async def waiting(x):
    return x


def with_global(x):
    return x * FACTOR + math.floor(x)


def with_default(x, y=FACTOR):
    return x * y


def with_attribute(x):
    return x


with_attribute.note = "lost"


@functools.lru_cache
def decorated(x):
    return x


def registered(function):
    function_names.append(function.__name__)
    return function


function_names: list[str] = []


@registered
def returned_by_its_decorator(x):
    return x


def outer(n):
    def captures(x):
        """Of several lines,

        indented.
        """
        return x + n

    def captures_nothing(x):
        """Of several lines,

        indented.
        """
        text = """
            kept as it is"""
        return [text, x + 1]

    return captures, captures_nothing


adds_one = lambda x: x + 1  # noqa: E731


class Account:
    def __init__(self, balance=0):
        self.balance = balance

    def deposit(self, amount):
        return Account(self.balance + amount)

    def __eq__(self, other):
        return type(other) is Account and other.balance == self.balance

    __hash__ = None

    @classmethod
    def empty(cls):
        return cls()

    @staticmethod
    def of(balance):
        return Account(balance)

    def __secret(self):
        return self.balance

    def mangles(self):
        return self.__secret()


class Savings(Account):
    pass


class Touches:
    """Leaves a file behind whenever it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def name_of_kind(x):
    return type(x).__name__


def of_kind(name):
    """A result of a kind that some strategies can write, and others cannot."""
    kinds = {
        "list": lambda: [1, 2],
        "set": lambda: {1, 2},
        "lambda": lambda: lambda: 5,
        "lock": threading.Lock,
        "none": lambda: None,
    }
    return kinds[name]()


def in_a_dict(x):
    return {"x": x}


def seconds_argument(x, *, isolated=False, serializers=None):
    return x, isolated, serializers


def forge(path):
    """Have this process write results that leave a file behind when they are loaded."""
    from proxyexec import _payloads

    written = _payloads.encode(Touches(path), "pickle")
    _payloads._encoded = lambda obj, chosen, what: written
