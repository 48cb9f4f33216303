"""What configurations of tests name."""

from __future__ import annotations

import enum
import functools
import os
from collections.abc import Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pydantic

from proxyexec import ProxySize
from proxyexec.config import ExecutorSpec


def plain(a, b=2):
    return a, b


def typed(
    count: int, name: str = "x", *, ratio: float | None = None, path: os.PathLike | None = None
):
    return count, name, ratio


def placed(a, b=2, /, c=3):
    return a, b, c


def rest(a, /, *more, key=0, **others):
    return a, more, key, others


class Outer:
    """A class with others in it."""

    class Inner:
        def __init__(self, size: int = 1) -> None:
            self.size = size

        def method(self):
            return self.size

        @classmethod
        def made(cls, size: int):
            return cls(size)


class Derived(Outer.Inner):
    pass


class Text(str):
    """Has methods that are written in C."""


class Colour(str, enum.Enum):
    RED = "red"


@dataclass
class Facts:
    """Runs code when it is made."""

    count: int
    made: ClassVar[list[int]] = []

    def __post_init__(self) -> None:
        Facts.made.append(self.count)


def take_facts(facts: Facts):
    return facts


def _refuse(value):
    raise ValueError(f"not {value}")


def be_picky(text: Annotated[str, pydantic.AfterValidator(_refuse)]):
    return text


def take_named(module: pydantic.ImportString):
    return module


def take_all(numbers: Iterable[int]):
    return list(numbers), list(numbers)


def log_in(user: str, password: str = "hunter2", *tokens: str):
    return user, password, tokens


prepared = functools.partial(plain, b=7)
numbers = list[int]
text = "no callable"


def make_local():
    def local():
        pass

    return local


nameless = lambda: None


def is_long(obj):
    return len(obj) > 10 if hasattr(obj, "__len__") else False


big = ProxySize("1 MB")


class Longer:
    """A policy with an argument."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, obj) -> bool:
        return isinstance(obj, (bytes, str, list)) and len(obj) > self.limit


def longer(limit: int = 5):
    return Longer(limit)


class Other:
    """Runs tasks; its methods have names of their own."""

    made: list[Other] = []

    def __init__(self, workers: int = 1) -> None:
        self._pool = ThreadPoolExecutor(workers)
        self.ended = False
        Other.made.append(self)

    def run(self, fn, /, *args, **kwargs) -> Future:
        return self._pool.submit(fn, *args, **kwargs)

    def stop(self) -> None:
        self._pool.shutdown()
        self.ended = True


class Wrong:
    def submit(self, fn, args=()):
        pass

    def map(self, fn, *iterables):
        pass

    def shutdown(self):
        pass


class Picky(ThreadPoolExecutor):
    """A pool with an argument that it refuses when it is made."""

    def __init__(self, max_workers: int) -> None:
        if max_workers > 4:
            raise ValueError("too many")
        super().__init__(max_workers)


class Secretive(ThreadPoolExecutor):
    def __init__(self, password: str, max_workers: int = 1) -> None:
        super().__init__(max_workers)
        self.password = password


def secret_pool(password: str = "", url: str = "", workers: int = 1) -> Executor:
    pool: Any = ThreadPoolExecutor(workers)
    pool.facts = password, url
    return pool


def rest_pool(**others) -> Executor:
    return ThreadPoolExecutor(1)


def wrong_pool() -> Other:
    return Other()


class Plain(ThreadPoolExecutor):
    """A pool that knows nothing of cancelling."""

    def shutdown(self, wait=True):
        super().shutdown(wait)


class NotedPool(ExecutorSpec[ThreadPoolExecutor]):
    note: str = ""


def start(number):
    os.environ["PROXYEXEC_TEST_STARTED"] = str(number)


def started(_=None):
    return os.environ.get("PROXYEXEC_TEST_STARTED")


def process(_=None):
    return os.getpid()
