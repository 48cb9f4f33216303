"""Objects to frames and back: pickle protocol 5 with out-of-band buffers.

Buffers of arrays and data frames, and whole ``bytes``, become frames of their own that nothing
has copied; when they come back writable, the object is built on them without a copy. What
pickle cannot do (lambdas, closures, functions of an interactive session) cloudpickle does.

This module knows no stores and keeps nothing. Frames are::

    envelope, stream, …, buffer, …

The envelope holds a kind, the number of stream frames (several when the pickle contains large
``bytes``, which are not copied together), and for each buffer whether its owner could write.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import cloudpickle
from wrapt import BaseObjectProxy

from proxyexec.errors import DeserializationError, SerializationError, name_of

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames
    from typing_extensions import Buffer

__all__ = ["Candidate", "PickleSerializer", "Serializer", "frames_size"]

# Smaller buffers are copied into the pickle: a frame costs more than it saves.
_SMALL_BUFFER = 2048

# How much of a stream frame is searched for mentions of __main__; larger ones are payload.
_SEARCHED = 1 << 20

_ENVELOPE = struct.Struct("<cI")
_PICKLE, _BYTES, _BYTEARRAY = b"p", b"b", b"a"
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
    """

    def __init__(self, main: Literal["reference", "value"] = "reference") -> None:
        self.main = main

    def __repr__(self) -> str:
        return f"PickleSerializer(main={self.main!r})"

    def dumps(self, obj: Any) -> Frames:
        """Return frames for ``obj``; see :class:`Serializer`.

        Raises:
            SerializationError: neither pickle nor cloudpickle can.
        """
        kind = _RAW.get(type(obj))
        if kind is not None:
            return [_ENVELOPE.pack(kind, 1), obj]
        try:
            frames = _pickled(pickle.Pickler, obj)
        except Exception:  # noqa: BLE001 - objects raise what they like from __reduce__
            frames = None
        if frames is None or (self.main == "value" and _mentions_main(frames)):
            try:
                frames = _pickled(_CloudPickler, obj)
            except Exception as error:
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
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise DeserializationError("a stored object", reason) from error


class Candidate:
    """An object on its way, serialized at most once however many policies ask for its size.

    Args:
        obj: the object.
        serializer: turns it into frames.
        what: what it is to the caller, for messages: ``"argument 0 of f"``.
    """

    __slots__ = ("_frames", "obj", "serializer", "what")

    def __init__(self, obj: Any, serializer: Serializer, what: str = "an object") -> None:
        self.obj = obj
        self.serializer = serializer
        self.what = what
        self._frames: Frames | None = None

    @property
    def frames(self) -> Frames:
        """The object's frames.

        Raises:
            SerializationError: it cannot be serialized; the error says what it was.
        """
        if self._frames is None:
            try:
                self._frames = self.serializer.dumps(self.obj)
            except SerializationError as error:
                raise SerializationError(self.what, error.kind, error.reason) from error.__cause__
        return self._frames

    @property
    def size(self) -> int:
        """The exact serialized size in bytes."""
        return frames_size(self.frames)


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


def _pickled(pickler: type[pickle.Pickler], obj: Any) -> list[Buffer]:
    stream = _Stream()
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _SMALL_BUFFER:
            return True
        buffers.append(view)
        return False

    pickler(stream, 5, buffer_callback=keep_in_band).dump(obj)
    writable = bytes([not view.readonly for view in buffers])
    return [_ENVELOPE.pack(_PICKLE, len(stream)) + writable, *stream, *buffers]


def _load(frames: Frames) -> Any:
    envelope = bytes(frames[0])
    kind, streams = _ENVELOPE.unpack_from(envelope)
    if kind == _BYTES:
        return bytes(frames[1])
    if kind == _BYTEARRAY:
        return bytearray(frames[1])
    if kind != _PICKLE:
        raise ValueError(f"unknown kind {kind!r}")
    writable = envelope[_ENVELOPE.size :]
    buffers = frames[1 + streams :]
    if len(writable) != len(buffers) or streams < 1:
        raise ValueError(f"{len(frames)} frames where the envelope says otherwise")
    stream = frames[1] if streams == 1 else b"".join(_views(frames[1 : 1 + streams]))
    return pickle.loads(stream, buffers=map(_ready, buffers, writable))


def _ready(buffer: Buffer, writable: int) -> Buffer:
    """A buffer that may be written to exactly when the original could be."""
    return bytearray(buffer) if writable and memoryview(buffer).readonly else buffer


def _views(frames: Frames) -> Sequence[memoryview]:
    return [memoryview(frame) for frame in frames]


def _length(frame: Buffer) -> int:
    return len(frame) if isinstance(frame, bytes) else memoryview(frame).nbytes


def _mentions_main(frames: Sequence[Buffer]) -> bool:
    return any(
        isinstance(frame, bytes) and len(frame) <= _SEARCHED and b"__main__" in frame
        for frame in frames[1:]
    )
