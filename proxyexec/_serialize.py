"""Objects to frames and back: pickle protocol 5 with out-of-band buffers.

Buffers of arrays and data frames, and whole ``bytes``, become frames of their own that nothing
has copied; when they come back writable, the object is built on them without a copy. What
pickle cannot do (lambdas, closures, functions of an interactive session) cloudpickle does.

While an object is pickled, *parts* of it can be taken out, to travel by themselves: see
:class:`Parts`. This module knows no stores and keeps nothing. Frames are::

    envelope, stream, …, buffer, …

The envelope holds a kind, the number of stream frames (several when the pickle contains large
``bytes``, which are not copied together), and for each buffer whether its owner could write.
"""

from __future__ import annotations

import copyreg
import ctypes
import io
import pickle
import struct
import sys
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import cloudpickle
from wrapt import BaseObjectProxy

from proxyexec.errors import (
    DeserializationError,
    ProxyExecError,
    SerializationError,
    name_of,
)

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames
    from typing_extensions import Buffer

__all__ = ["Candidate", "Parts", "PickleSerializer", "Serializer", "frames_size"]

# Smaller buffers are copied into the pickle: a frame costs more than it saves.
_SMALL_BUFFER = 2048

# How much of a stream frame is searched for mentions of __main__; larger ones are payload.
_SEARCHED = 1 << 20

# The first protocol of pickle with buffers out of band.
_OUT_OF_BAND = 5

_ENVELOPE = struct.Struct("<cI")
_PICKLE, _WITH_IDS, _BYTES, _BYTEARRAY = b"p", b"i", b"b", b"a"
_RAW: dict[type, bytes] = {bytes: _BYTES, bytearray: _BYTEARRAY}


_Reducers: TypeAlias = dict[type, Callable[[Any], Any]]


class Serializer(Protocol):
    """What a store needs to turn objects into frames. Must itself be picklable."""

    def dumps(self, obj: Any) -> Frames:
        """Return frames that represent ``obj``; they may refer to its memory."""
        ...

    def loads(self, frames: Frames) -> Any:
        """Return the object that ``frames`` represent; it may use writable ones as its own."""
        ...


class Parts(Protocol):
    """What is taken out of an object while it is pickled.

    Pickle asks about most objects that an object contains for free. About those of its own
    types (``list``, ``dict``, ``str``, …) it asks at a price, five times that of pickling a number,
    so that is done only if :attr:`builtins` or :attr:`large_builtins` say so.
    """

    def __bool__(self) -> bool:
        """Whether anything was taken out."""
        ...

    failure: Exception | None
    """What went wrong while something was taken out."""
    overlooked: set[type]
    """Exact types of which nothing is taken out, nor looked at; may grow."""
    builtins: bool
    """Whether objects of pickle's own types may have to be taken out."""
    large_builtins: int | None
    """Whether, of these, only text and bytes of at least so many bytes may have to be."""

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


class PickleSerializer:
    """Pickle protocol 5, then cloudpickle.

    Args:
        main: how functions and classes of ``__main__`` travel. By ``"reference"`` they are
            looked up in the worker's ``__main__``, as the standard library's pools do; by
            ``"value"`` their code travels, which works where workers have another ``__main__``.
        like_pools: whether objects arrive as from a pool of :mod:`multiprocessing`, whose reducers
            are used then (for connections, sockets, …), and where read-only arrays arrive
            writable (before Python 3.14).
    """

    def __init__(
        self, main: Literal["reference", "value"] = "reference", *, like_pools: bool = False
    ) -> None:
        self.main = main
        self.like_pools = like_pools

    def __repr__(self) -> str:
        return f"PickleSerializer(main={self.main!r}, like_pools={self.like_pools})"

    def dumps(self, obj: Any, parts: Parts | None = None) -> Frames:
        """Return frames for ``obj``; see :class:`Serializer`.

        Args:
            obj: the object.
            parts: takes out what is to travel by itself.

        Raises:
            SerializationError: neither pickle nor cloudpickle can.
            Exception: what ``parts`` raised.
        """
        kind = _RAW.get(type(obj))
        if kind is not None:
            return [_ENVELOPE.pack(kind, 1), obj]
        frames: list[Buffer] | None = None
        reducers = _reducers_of_pools() if self.like_pools else None
        try:
            frames = _pickled(_PLAIN, obj, parts, reducers)
        except Exception:  # objects raise what they like from __reduce__
            if parts is not None and parts.failure is not None:
                raise
        if frames is None or (self.main == "value" and _mentions_main(frames)):
            try:
                frames = _pickled(_CLOUD, obj, parts, reducers)
            except Exception as error:
                if parts is not None and parts.failure is not None:
                    raise
                reason = f"{type(error).__name__}: {error}"
                raise SerializationError("an object", name_of(type(obj)), reason) from error
        return frames

    def loads(self, frames: Frames) -> Any:
        """Return the object; see :class:`Serializer`.

        Raises:
            DeserializationError: the frames are not what :meth:`dumps` makes, or unpickling
                raised.
        """
        try:
            return _load(frames)
        except (ProxyExecError, KeyboardInterrupt):  # a part is missing, say
            raise
        except BaseException as error:  # an object that exits must not end who fetches it
            reason = f"{type(error).__name__}: {error}"
            raise DeserializationError("a stored object", reason) from error


class Candidate:
    """An object on its way, serialized at most once however many policies ask for its size.

    Args:
        obj: the object.
        serializer: turns it into frames.
        what: what it is to the caller, for messages: ``"argument 0 of f"``.
        parts: takes out what is to travel by itself; what is left is the candidate.
    """

    __slots__ = ("_frames", "obj", "parts", "serializer", "what")

    def __init__(
        self,
        obj: Any,
        serializer: Serializer,
        what: str = "an object",
        parts: Parts | None = None,
    ) -> None:
        self.obj = obj
        self.serializer = serializer
        self.what = what
        self.parts = parts
        self._frames: Frames | None = None

    @property
    def frames(self) -> Frames:
        """The object's frames.

        Raises:
            SerializationError: it cannot be serialized; the error says what it was.
        """
        if self._frames is not None:
            return self._frames
        # Only serializers that take parts out are given any.
        dumps: Any = self.serializer.dumps
        try:
            frames: Frames = dumps(self.obj, *(() if self.parts is None else (self.parts,)))
        except SerializationError as error:
            raise SerializationError(self.what, error.kind, error.reason) from error.__cause__
        self._frames = frames
        return frames

    @property
    def size(self) -> int:
        """The exact serialized size in bytes."""
        return frames_size(self.frames)

    @property
    def has_parts(self) -> bool:
        """Whether anything is taken out of the object, which is serialized to learn that.

        Raises:
            SerializationError: it cannot be.
        """
        return self.parts is not None and bool(self.frames) and bool(self.parts)

    def keep_whole(self) -> None:
        """Take no parts out, unless that has happened."""
        if self._frames is None:
            self.parts = None


def frames_size(frames: Frames) -> int:
    """Return the serialized size of an object in bytes."""
    return sum(_length(frame) for frame in frames)


class _Stream(list[bytes]):
    """What a pickler writes, piece by piece; large ``bytes`` arrive as themselves, uncopied."""

    write = list.append


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
_PLAIN: tuple[Any, Any, Any] = (pickle.Pickler, _TakingPickler, _ThoroughPickler)
_CLOUD: tuple[Any, Any, Any] = (_CloudPickler, _TakingCloudPickler, _ThoroughCloudPickler)


class _Unpickler(pickle.Unpickler):
    """Finds again what was taken out, one object for each."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._found: dict[int, Any] = {}

    def persistent_load(self, pid: bytes) -> Any:
        number, function, arguments = pickle.loads(pid)
        if number not in self._found:
            self._found[number] = function(*arguments)
        return self._found[number]


def _pickled(
    picklers: tuple[Any, Any, Any], obj: Any, parts: Parts | None, reducers: _Reducers | None
) -> list[Buffer]:
    plain, taking, thorough = picklers
    if parts is None:
        return _pickled_by(plain, obj, None, reducers)
    if parts.builtins:
        return _pickled_by(thorough, obj, parts, reducers)
    frames = _pickled_by(taking, obj, parts, reducers)
    large = parts.large_builtins
    # A large str or bytes is a piece of its own. Only if there is one, everything is looked at.
    if large is not None and any(_is_large(one, large) for one in frames):
        frames = _pickled_by(thorough, obj, parts, reducers)
    return frames


def _pickled_by(
    kind: Any, obj: Any, parts: Parts | None, reducers: _Reducers | None
) -> list[Buffer]:
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
    writable = bytes([not view.readonly for view in buffers])
    letter = _WITH_IDS if issubclass(kind, _TakingBuiltins) else _PICKLE
    return [_ENVELOPE.pack(letter, len(stream)) + writable, *stream, *buffers]


def _reducers_of_pools() -> _Reducers:
    """How the pools of multiprocessing pickle what pickle cannot, or pickles otherwise."""
    reducers = {**copyreg.dispatch_table, **ForkingPickler._extra_reducers}  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    numpy = sys.modules.get("numpy")
    if numpy is not None and pickle.DEFAULT_PROTOCOL < _OUT_OF_BAND:
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


def _load(frames: Frames) -> Any:
    envelope = bytes(frames[0])
    kind, streams = _ENVELOPE.unpack_from(envelope)
    if kind == _BYTES:
        return bytes(frames[1])
    if kind == _BYTEARRAY:
        return bytearray(frames[1])
    if kind not in (_PICKLE, _WITH_IDS):
        raise ValueError(f"unknown kind {kind!r}")
    writable = envelope[_ENVELOPE.size :]
    buffers = frames[1 + streams :]
    if len(writable) != len(buffers) or streams < 1:
        raise ValueError(f"{len(frames)} frames where the envelope says otherwise")
    stream = frames[1] if streams == 1 else b"".join(_views(frames[1 : 1 + streams]))
    ready = map(_ready, buffers, writable)
    if kind == _WITH_IDS:
        return _Unpickler(io.BytesIO(stream), buffers=ready).load()
    return pickle.loads(stream, buffers=ready)


def _ready(buffer: Buffer, writable: int) -> Buffer:
    """A buffer that may be written to exactly when the original could be."""
    return bytearray(buffer) if writable and memoryview(buffer).readonly else buffer


def _views(frames: Frames) -> Sequence[memoryview]:
    return [memoryview(frame) for frame in frames]


def _length(frame: Buffer) -> int:
    return len(frame) if isinstance(frame, bytes) else memoryview(frame).nbytes


def _is_large(frame: Buffer, size: int) -> bool:
    return isinstance(frame, (bytes, bytearray)) and len(frame) >= size


def _mentions_main(frames: Sequence[Buffer]) -> bool:
    return any(
        isinstance(frame, bytes) and len(frame) <= _SEARCHED and b"__main__" in frame
        for frame in frames[1:]
    )
