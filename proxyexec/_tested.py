"""What :mod:`proxyexec.testing` calls in workers: importable there without pytest."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from proxyexec._proxy import is_proxy


class TwoPartError(Exception):
    """An error with two arguments and an attribute of its own."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__(first, second)
        self.first, self.second = first, second


class OneWayError(Exception):
    """Can be pickled, and not be made again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class LockError(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("has a lock")
        self.lock = threading.Lock()


class RefusesOnArrival:
    """Can be pickled, and not be made again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return refuse, ()


class Accumulator:
    """An object with a method, and one that can be called."""

    def __init__(self, items: list[int]) -> None:
        self.items = items

    def total(self, start: int = 0) -> int:
        return start + sum(self.items)

    __call__ = total


def identity(obj: Any) -> Any:
    return obj


def add(one: Any, other: Any) -> Any:
    return one + other


def ordered(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return (*args, sorted(kwargs.items()))


def kind(obj: Any) -> tuple[str, bool]:
    """What a function sees: the type, and whether it is a proxy."""
    return type(obj).__name__, is_proxy(obj)


def kinds_in(container: dict[str, Any]) -> dict[str, bool]:
    return {name: is_proxy(value) for name, value in container.items()}


def length(obj: Any) -> int:
    return len(obj)


def made(size: int) -> bytes:
    return bytes([size % 256]) * size


def made_pair(size: int) -> dict[str, Any]:
    return {"data": bytes(size), "size": size}


def popped(items: list[Any]) -> list[Any]:
    items.pop()
    return items


def appends(one: Any, other: Any) -> bool:
    one.append(None)
    return len(one) == len(other)


def fail(error: type[BaseException], *args: Any) -> None:
    raise error(*args)


def fail_while_handling(error: type[BaseException]) -> None:
    try:
        raise error
    except error:
        raise TwoPartError(1, 2)  # noqa: B904 - so that one is the other's context


def refuse() -> None:
    raise RuntimeError("not to be made here")


def refusing() -> RefusesOnArrival:
    return RefusesOnArrival()


def lock() -> Any:
    return threading.Lock()


def inverse(number: int) -> float:
    return 1 / number


def in_turn(number: int, directory: str) -> int:
    """End after the call with the next number has."""
    if number < LAST:
        when_there(os.path.join(directory, str(number + 1)))
    open(os.path.join(directory, str(number)), "x").close()
    return number


def when_there(release: str, started: str | None = None, result: Any = None) -> Any:
    """Say that the task runs, by a file, and go on when another file is there."""
    if started is not None:
        open(started, "a").close()
    deadline = time.monotonic() + 300  # who should have written it is gone
    while not os.path.exists(release) and time.monotonic() < deadline:
        time.sleep(0.005)
    return result


# The number that nobody waits behind.
LAST = 1
