"""What tests have workers do: die at a given step, in a given way."""

from __future__ import annotations

import concurrent.futures.process
import os
import signal

import numpy as np

from proxyexec_connectors.file import FileConnector

try:
    from proxyexec_connectors.redis import RedisConnector
except ImportError:  # an extra
    CONNECTORS = [FileConnector]
else:
    CONNECTORS = [FileConnector, RedisConnector]


def die() -> None:
    """End this process as the kernel would for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def _die(*_: object, **__: object) -> None:
    die()


def grow(array):
    """An ordinary task: a new array, as large as what it was given."""
    return array + 1


class DiesOnArrival:
    """Kills whoever unpickles it in another process than the one that pickled it."""

    def __init__(self, array) -> None:
        self.array = array
        self.home = os.getpid()

    def __reduce__(self):
        return _made, (self.array, self.home)


class DiesOnItsWay(DiesOnArrival):
    """Kills the worker that pickles it."""

    def __init__(self, array) -> None:
        self.array = array
        self.home = os.getppid()

    def __reduce__(self):
        die()


def _made(array, home):
    if os.getpid() != home:
        die()
    made = DiesOnArrival.__new__(DiesOnArrival)
    made.array, made.home = array, home
    return made


def before(*arguments):
    """Never called: see :class:`DiesOnArrival`."""
    raise AssertionError("called")


def during(array):
    """Die in the middle of the call."""
    assert int(array[0]) >= 0  # which fetches it
    die()


def while_storing(array):
    """Die when a part of the result is written, and a part is not."""
    _interrupt_storing()
    return np.concatenate([array, array])


def after_storing(array):
    """Die when the result is stored, and nobody knows."""
    for kind in CONNECTORS:
        kind.put = _then(kind.put, die)
    return array + 1


def before_delivery(array):
    """Die when the result's reference is about to be sent."""
    concurrent.futures.process._sendback_result = _die
    return array + 1


def in_its_pickling(array):
    """Die while the result is pickled, some of it being stored perhaps."""
    return [array + 1, DiesOnItsWay(array)]


# Stages at which a worker dies, by what it is given to call.
STAGES = [before, during, while_storing, after_storing, before_delivery, in_its_pickling]


def arguments_for(stage, array):
    """What a stage's function is to be called with."""
    return (array, DiesOnArrival(array[:10])) if stage is before else (array,)


def _then(first, second):
    def both(*args, **kwargs):
        first(*args, **kwargs)
        second()

    return both


def _interrupt_storing() -> None:
    """Have the next write of an object stop half-way, for good."""
    from proxyexec_connectors import _segment, _segments, file

    # Small files and large ones get their names when they are whole; segments are copied into.
    file.give_name = _segment.give_name = _segments._rename = _die
    if len(CONNECTORS) > 1:
        from proxyexec_connectors import _redis_wire

        def send_some(connection, requests, window):
            requests = iter(requests)
            first = next(requests)
            converse(connection, [first], window) if _is_put_in_steps(first) else None
            die()

        from proxyexec_connectors import _redis_link

        converse = _redis_wire.converse
        _redis_link.converse = send_some


def _is_put_in_steps(request) -> bool:
    """Whether it stores one part of several, the others following."""
    return any(not isinstance(one, bytes) and one[0] == "HSET" for one in request.commands)
