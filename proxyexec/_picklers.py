"""Picklers: pickle and cloudpickle with buffers out of band, and with parts taken out.

Nothing here knows frames or stores.
"""

from __future__ import annotations

import copyreg
import ctypes
import pickle
import sys
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import cloudpickle
from wrapt import BaseObjectProxy

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "CLOUD",
    "PLAIN",
    "POOLS_MAKE_WRITABLE",
    "Parts",
    "Pickled",
    "Reader",
    "Unpickler",
    "pickled_by",
    "reducers_of_pools",
]

# Smaller buffers are copied into the pickle: a frame costs more than it saves.
_SMALL_BUFFER = 2048

# A reader copies so many bytes, then others may run.
_READ_AT_ONCE = 1 << 20

# A line is looked for in so many bytes at a time.
_LINE_BYTES = 256

# The first protocol of pickle with buffers out of band.
_OUT_OF_BAND = 5

POOLS_MAKE_WRITABLE = pickle.DEFAULT_PROTOCOL < _OUT_OF_BAND
"""Whether read-only arrays arrive writable from the pools of multiprocessing."""

Reducers: TypeAlias = dict[type, Callable[[Any], Any]]


class Parts(Protocol):
    """What is taken out of an object while it is pickled.

    Pickle asks about most objects that an object contains for free. About those of its own
    types (``list``, ``dict``, ``str``, …) it asks at a price, five times that of pickling a number,
    so that is done only if :attr:`builtins` or :attr:`large_builtins` say so.
    """

    def __bool__(self) -> bool:
        """Whether anything was taken out."""
        ...

    overlooked: set[type]
    """Exact types of which nothing is taken out, nor looked at; may grow."""
    builtins: bool
    """Whether objects of pickle's own types may have to be taken out."""
    large_builtins: int | None
    """Whether, of these, only text and bytes of at least so many bytes may have to be."""

    def has_failed(self) -> bool:
        """Whether something went wrong while something was taken out."""
        ...

    def take_out(self, obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        """Return a function and arguments that give the object on arrival, if it is taken out."""
        ...

    def reduce(self, obj: Any, reduced: Any, *, thoroughly: bool) -> Any:
        """Return what pickle is to make of an object that stays, usually ``reduced``.

        Args:
            obj: the object.
            reduced: what cloudpickle makes of it; ``NotImplemented`` if it has no opinion.
            thoroughly: whether pickle asks about objects of its own types.
        """
        ...


class _Stream(list[bytes]):
    """What a pickler writes, piece by piece; large ``bytes`` arrive as themselves, uncopied."""

    # In Python: whenever this is called, other threads get their turn. Pickle gives them none.
    def write(self, piece: bytes) -> None:
        self.append(piece)


class Reader:
    """A pickle in pieces, for an unpickler, which lets other threads run when it reads."""

    def __init__(self, pieces: Sequence[Buffer]) -> None:
        self._pieces = [memoryview(piece) for piece in reversed(pieces)]
        self._left = sum(piece.nbytes for piece in self._pieces)

    def readinto(self, buffer: Buffer) -> int:
        """Fill a buffer, as far as there is anything left; return how far."""
        target, filled = memoryview(buffer), 0
        while self._pieces and filled < target.nbytes:
            piece = self._pieces.pop()
            count = min(piece.nbytes, target.nbytes - filled, _READ_AT_ONCE)
            target[filled : filled + count] = piece[:count]
            filled += count
            if count < piece.nbytes:
                self._pieces.append(piece[count:])
        self._left -= filled
        return filled

    def read(self, size: int) -> bytes:
        """Return so many bytes, or what is left."""
        # No more than there is: a pickle that was tampered with may ask for anything.
        buffer = bytearray(min(size, self._left))
        self.readinto(buffer)
        return bytes(buffer)

    def readline(self) -> bytes:
        """Return a line; of what is written here, only old ways to pickle have any."""
        line = b""
        while self._pieces and not line.endswith(b"\n"):
            ahead = bytes(self._pieces[-1][:_LINE_BYTES])
            line += self.read(ahead.find(b"\n") + 1 or len(ahead))
        return line


class _CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Cloudpickle takes a proxy of a function for a function; a proxy knows better."""

    def reducer_override(self, obj: Any) -> Any:
        if issubclass(type(obj), BaseObjectProxy):
            return NotImplemented
        return super().reducer_override(obj)


class _Taking:
    """Lets a pickler take parts out."""

    parts: Parts
    thoroughly = False

    def reducer_override(self, obj: Any) -> Any:
        parts = self.parts
        if not self.thoroughly:  # or it has been asked about
            if type(obj) in parts.overlooked:
                return self.reduce_overlooked(obj)
            taken = parts.take_out(obj)
            if taken is not None:
                return taken
        return parts.reduce(obj, self.reduce_otherwise(obj), thoroughly=self.thoroughly)

    def reduce_overlooked(self, obj: Any) -> Any:
        return NotImplemented

    def reduce_otherwise(self, obj: Any) -> Any:
        raise NotImplementedError


class _TakingBuiltins:
    """Asks about every object, those of pickle's own types included."""

    parts: Parts
    thoroughly = True

    def persistent_id(self, obj: Any) -> bytes | None:
        taken = self.parts.take_out(obj)
        # As bytes, so that pickle does not ask about what is inside of that.
        return None if taken is None else pickle.dumps((id(obj), *taken), 5)


class _TakingPickler(_Taking, pickle.Pickler):
    def reduce_otherwise(self, obj: Any) -> Any:
        reduce = getattr(self, "dispatch_table", copyreg.dispatch_table).get(type(obj))
        return NotImplemented if reduce is None else reduce(obj)


class _ThoroughPickler(_TakingBuiltins, _TakingPickler):
    pass


class _TakingCloudPickler(_Taking, _CloudPickler):
    def reduce_overlooked(self, obj: Any) -> Any:
        return _CloudPickler.reducer_override(self, obj)

    def reduce_otherwise(self, obj: Any) -> Any:
        reduced = _CloudPickler.reducer_override(self, obj)
        if reduced is NotImplemented and type(obj) in self.dispatch_table:
            reduced = self.dispatch_table[type(obj)](obj)
        return reduced


class _ThoroughCloudPickler(_TakingBuiltins, _TakingCloudPickler):
    pass


# Picklers that take nothing out, that take parts out, and that look at everything for that.
PLAIN: tuple[Any, Any, Any] = (pickle.Pickler, _TakingPickler, _ThoroughPickler)
CLOUD: tuple[Any, Any, Any] = (_CloudPickler, _TakingCloudPickler, _ThoroughCloudPickler)


class Unpickler(pickle.Unpickler):
    """Finds again what was taken out, one object for each."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._found: dict[int, Any] = {}

    def persistent_load(self, pid: bytes) -> Any:
        number, function, arguments = pickle.loads(pid)
        if number not in self._found:
            self._found[number] = function(*arguments)
        return self._found[number]


class Pickled(NamedTuple):
    """A pickle, and the buffers that are not in it."""

    stream: list[bytes]
    """Its pieces."""
    buffers: list[memoryview]
    with_ids: bool
    """Whether it takes an :class:`Unpickler` to load it."""


def pickled_by(
    picklers: tuple[Any, Any, Any], obj: Any, parts: Parts | None, reducers: Reducers | None
) -> Pickled:
    """Pickle an object.

    Args:
        picklers: ``PLAIN`` or ``CLOUD``.
        obj: the object.
        parts: takes out what is to travel by itself.
        reducers: used instead of those of :mod:`copyreg`.
    """
    plain, taking, thorough = picklers
    if parts is None:
        return _pickled(plain, obj, None, reducers)
    if parts.builtins:
        return _pickled(thorough, obj, parts, reducers)
    pickled = _pickled(taking, obj, parts, reducers)
    large = parts.large_builtins
    # A large str or bytes is a piece of its own. Only if there is one, everything is looked at.
    if large is not None and any(len(piece) >= large for piece in pickled.stream):
        pickled = _pickled(thorough, obj, parts, reducers)
    return pickled


def _pickled(kind: Any, obj: Any, parts: Parts | None, reducers: Reducers | None) -> Pickled:
    stream = _Stream()
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _SMALL_BUFFER:
            return True
        buffers.append(view)
        return False

    pickler = kind(stream, 5, buffer_callback=keep_in_band)
    if reducers is not None:
        others = kind.dispatch_table if issubclass(kind, _CloudPickler) else {}
        pickler.dispatch_table = {**others, **reducers}
    if parts is not None:
        pickler.parts = parts
    pickler.dump(obj)
    return Pickled(stream, buffers, issubclass(kind, _TakingBuiltins))


def reducers_of_pools() -> Reducers:
    """How the pools of multiprocessing pickle what pickle cannot, or pickles otherwise."""
    reducers = {**copyreg.dispatch_table, **ForkingPickler._extra_reducers}  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    numpy = sys.modules.get("numpy")
    if numpy is not None and POOLS_MAKE_WRITABLE:
        reducers[numpy.ndarray] = _reduce_array
    return reducers


def _reduce_array(array: Any) -> Any:
    """Reduce an array so that it arrives writable, as by earlier protocols than 5."""
    if array.nbytes < _SMALL_BUFFER:
        return array.__reduce__()  # theirs, which is faster where there is little to copy
    reduced = array.__reduce_ex__(5)
    if array.flags.writeable or array.nbytes == 0 or type(reduced[1][0]) is not pickle.PickleBuffer:
        return reduced
    memory = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    memory.owner = array  # which is alive for as long as its memory is looked at
    function, (_, *rest) = reduced[:2]
    return function, (pickle.PickleBuffer(memory), *rest)
