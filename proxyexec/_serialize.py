"""Objects to frames and back: pickle protocol 5 with out-of-band buffers.

Buffers of arrays and data frames, and whole ``bytes``, become frames of their own that nothing
has copied; when they come back writable, the object is built on them without a copy. What
pickle cannot do (lambdas, closures, functions of an interactive session) cloudpickle does.

While an object is pickled, *parts* of it can be taken out, to travel by themselves. This module
knows no stores and keeps nothing. Frames are::

    envelope, stream, …, buffer, …

The envelope holds a kind, the number of stream frames (several when the pickle contains large
``bytes``, which are not copied together), and for each buffer whether its owner could write. Large
arrays of numbers, and ``bytes``, are an envelope that says what they are, and their memory.
"""

from __future__ import annotations

import io
import pickle
import struct
import time
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, Literal, Protocol

from proxyexec_connectors._copying import bytearray_of, bytes_of

from proxyexec._arrays import array_in, frames_of_array, is_array_type
from proxyexec._picklers import (
    CLOUD,
    PLAIN,
    POOLS_MAKE_WRITABLE,
    Parts,
    Pickled,
    Reader,
    Unpickler,
    pickled_by,
    reducers_of_pools,
)
from proxyexec.errors import (
    DeserializationError,
    ProxyExecError,
    SerializationError,
    name_of,
)

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames
    from typing_extensions import Buffer

__all__ = [
    "PAYLOAD_MARK",
    "Candidate",
    "PickleSerializer",
    "Serializer",
    "frames_of_pickle",
    "frames_size",
    "load_pickle",
]

# How much of a piece is searched for mentions of __main__; larger ones are payload.
_SEARCHED = 1 << 20

# From this size on, unpickling lets other threads run meanwhile.
_LONG_PICKLE = 1 << 20

_ENVELOPE = struct.Struct("<cI")
_PICKLE, _WITH_IDS, _BYTES, _BYTEARRAY, _ARRAY = b"p", b"i", b"b", b"a", b"n"

PAYLOAD_MARK = b"P"
"""What the first frame of a payload of another strategy starts with."""

_RAW: dict[type, bytes] = {bytes: _BYTES, bytearray: _BYTEARRAY}


class Serializer(Protocol):
    """What a store needs to turn objects into frames. Must itself be picklable."""

    def dumps(self, obj: Any) -> Frames:
        """Return frames that represent ``obj``; they may refer to its memory."""
        ...

    def loads(self, frames: Frames) -> Any:
        """Return the object that ``frames`` represent; it may use writable ones as its own."""
        ...


class PickleSerializer:
    """Pickle protocol 5, then cloudpickle.

    Args:
        main: how functions and classes of ``__main__`` travel. By ``"reference"`` they are
            looked up in the worker's ``__main__``, as the standard library's pools do; by
            ``"value"`` their code travels, which works where workers have another ``__main__``.
        like_pools: whether objects arrive as from a pool of ``multiprocessing``, whose reducers
            are used then (for connections, sockets, …), and where read-only arrays arrive
            writable (before Python 3.14).
    """

    def __init__(
        self, main: Literal["reference", "value"] = "reference", *, like_pools: bool = False
    ) -> None:
        self.main: Literal["reference", "value"] = main
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
        if is_array_type(type(obj)):
            as_array = self._frames_of_array(obj)
            if as_array is not None:
                return as_array
        pickled: Pickled | None = None
        first: type[Exception] | None = None
        reducers = reducers_of_pools() if self.like_pools else None
        try:
            pickled = pickled_by(PLAIN, obj, parts, reducers)
        except Exception as error:  # objects raise what they like from __reduce__
            if parts is not None and parts.has_failed():
                raise
            first = type(error)
        if pickled is None or (self.main == "value" and _mentions_main(pickled.stream)):
            try:
                pickled = pickled_by(CLOUD, obj, parts, reducers)
            except Exception as error:
                if parts is not None and parts.has_failed():
                    raise
                reason = f"{type(error).__name__}: {error}"
                # What pickle alone raises is what callers know from pools without a store.
                failure = SerializationError.like(first or type(error))
                raise failure("an object", name_of(type(obj)), reason) from error
        return frames_of_pickle(pickled)

    def _frames_of_array(self, array: Any) -> Frames | None:
        if self.like_pools and type(array) in ForkingPickler._extra_reducers:  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
            return None
        found = frames_of_array(array, writable=self.like_pools and POOLS_MAKE_WRITABLE)
        if found is None:
            return None
        header, memory = found
        return [_ENVELOPE.pack(_ARRAY, 1) + header, memory]

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

    __slots__ = ("_frames", "answers", "obj", "parts", "seconds", "serializer", "shared", "what")

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
        self.answers: list[bool] = []
        """What the terms of a policy have said of it."""
        self.seconds = 0.0
        """How long it took to serialize."""
        self.shared = False
        """Whether many tasks are going to be sent it: it is of a callable that is mapped."""
        self._frames: Frames | None = None

    @property
    def is_serialized(self) -> bool:
        """Whether its frames are there."""
        return self._frames is not None

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
        start = time.perf_counter()
        try:
            frames: Frames = dumps(self.obj, *(() if self.parts is None else (self.parts,)))
        except SerializationError as error:
            raise error.about(self.what) from error.__cause__
        self.seconds = time.perf_counter() - start
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


def frames_of_pickle(pickled: Pickled) -> Frames:
    """Return the frames of a pickle."""
    kind = _WITH_IDS if pickled.with_ids else _PICKLE
    writable = bytes([not view.readonly for view in pickled.buffers])
    envelope = _ENVELOPE.pack(kind, len(pickled.stream)) + writable
    return [envelope, *pickled.stream, *pickled.buffers]


def load_pickle(frames: Frames, unpickler: Any = None) -> Any:
    """Return the object in the frames of a pickle; the unpickler is pickle's if none is given."""
    if bytes(frames[0])[:1] != _PICKLE:
        raise ValueError("these are not the frames of a pickle")
    return _load(frames, unpickler)


def _load(frames: Frames, loader: Any = None) -> Any:
    envelope = bytes(frames[0])
    kind, streams = _ENVELOPE.unpack_from(envelope)
    if kind == _BYTES:
        return bytes_of(frames[1])
    if kind == _BYTEARRAY:
        return bytearray_of(frames[1])
    if kind == _ARRAY:
        return array_in(envelope[_ENVELOPE.size :], frames[1])
    if kind not in (_PICKLE, _WITH_IDS):
        if kind == PAYLOAD_MARK:
            # Executors with strategies of their own may use the same store.
            from proxyexec._payloads import data_in  # noqa: PLC0415 - which needs this

            return data_in(frames)
        raise ValueError(f"unknown kind {kind!r}")
    writable = envelope[_ENVELOPE.size :]
    buffers = frames[1 + streams :]
    if len(writable) != len(buffers) or streams < 1:
        raise ValueError(f"{len(frames)} frames where the envelope says otherwise")
    pieces = frames[1 : 1 + streams]
    ready = map(_ready, buffers, writable)
    if loader is not None:
        return loader(io.BytesIO(b"".join(_views(pieces))), buffers=ready).load()
    unpickler = Unpickler if kind == _WITH_IDS else pickle.Unpickler
    if sum(map(_length, pieces)) >= _LONG_PICKLE:
        return unpickler(Reader(pieces), buffers=ready).load()
    stream = pieces[0] if streams == 1 else b"".join(_views(pieces))
    if kind == _WITH_IDS:
        return Unpickler(io.BytesIO(stream), buffers=ready).load()
    return pickle.loads(stream, buffers=ready)


def _ready(buffer: Buffer, writable: int) -> Buffer:
    """A buffer that may be written to exactly when the original could be."""
    return bytearray_of(buffer) if writable and memoryview(buffer).readonly else buffer


def _views(frames: Frames) -> Sequence[memoryview]:
    return [memoryview(frame) for frame in frames]


def _length(frame: Buffer) -> int:
    return len(frame) if isinstance(frame, bytes) else memoryview(frame).nbytes


def _mentions_main(stream: Sequence[bytes]) -> bool:
    return any(len(piece) <= _SEARCHED and b"__main__" in piece for piece in stream)
