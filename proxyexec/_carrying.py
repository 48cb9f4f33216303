"""What a callable carries, as traces tell it: types, about how many bytes, and what is alike.

A policy that goes by type takes such an object out of its callable and stores it by itself; a run
without one tells of the callable as a whole. All of this is done for each call while somebody
traces, so it takes little: what has to be pickled to know its size is pickled no further than that.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeAlias

from proxyexec._carried import FUNCTIONS, carried_by
from proxyexec._contents import likeness_of
from proxyexec._proxy import Proxy
from proxyexec._sizes import data_size
from proxyexec._types import NEVER_PROXIED
from proxyexec.errors import name_of

__all__ = ["Carried", "objects_in"]

Carried: TypeAlias = "tuple[str, int, str]"
"""The name of an object's type, about how many of the callable's bytes it is, and what is alike for
objects of one content; empty if that is not known."""

# So many objects are worth a note, and from so many bytes on.
_AT_MOST = 8
_FROM = 1024

# So many bytes of a pickle are made to know how large it is, beside buffers.
_LOOKED_AT = 1 << 16

# Neither code nor a name of something: by their types, as others may say that they are another one.
_NO_DATA = (*FUNCTIONS, *NEVER_PROXIED, int, float, complex, Proxy)


def objects_in(
    function: Any,
    size: int,
    *,
    travels_by_name: Callable[[Any], bool],
    is_elsewhere: Callable[[Any], bool],
) -> tuple[Carried, ...]:
    """Return the larger objects that a callable carries, the largest first.

    Args:
        function: the callable.
        size: of its pickle, in bytes.
        travels_by_name: tells of a function whether it does. What that captures stays here.
        is_elsewhere: tells of an object whether it is not in that pickle.
    """
    carried = carried_by(function, enters=lambda one: not travels_by_name(one))
    objects = [
        one for one in carried if not issubclass(type(one), _NO_DATA) and not is_elsewhere(one)
    ]
    looks = [_look_at(one) for one in objects]
    unknown = sum(about is None for about, _ in looks)
    left = max(0, size - sum(about or 0 for about, _ in looks))
    found = []
    for one, (known, content) in zip(objects, looks, strict=True):
        about = left // unknown if known is None else min(known, size)
        size -= about  # all together are no more than the whole, whatever is in several of them
        if about >= _FROM:
            found.append((name_of(type(one)), about, content))
    return tuple(sorted(found, key=lambda one: -one[1])[:_AT_MOST])


def _look_at(obj: Any) -> tuple[int | None, str]:
    """Return about how many bytes an object is, if it takes little to know, and its likeness."""
    if type(obj) in (bytes, bytearray):
        return len(obj), likeness_of([obj])
    sink = _Sink()
    buffers: list[memoryview] = []
    try:
        pickle.Pickler(sink, 5, buffer_callback=lambda one: buffers.append(one.raw())).dump(obj)
    except _EnoughError:
        return data_size(obj), ""
    except Exception:  # noqa: BLE001 - cloudpickle may do it
        return None, ""
    frames: list[Any] = [b"".join(sink.pieces), *buffers]
    return sum(memoryview(one).nbytes for one in frames), likeness_of(frames)


class _EnoughError(Exception):
    """A pickle is long."""


class _Sink:
    """A file that does not take much."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._left = _LOOKED_AT

    def write(self, piece: Any) -> int:
        """Take a piece.

        Raises:
            _EnoughError: there were enough.
        """
        self._left -= len(piece)
        if self._left < 0:
            raise _EnoughError
        self.pieces.append(bytes(piece))
        return len(piece)
