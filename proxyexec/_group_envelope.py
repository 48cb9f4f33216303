"""What is around the parts of a call, or of an outcome, when it is written down.

Function, arguments and results are made ready to travel as in any call: each is a reference, a
serialized object, or an object that passes as it is. A serializer of ours writes all of that
down as one object. Others may know nothing but what users give them; then there is nothing that
passes as it is, and a pickle of the rest is read with nothing else allowed in it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from proxyexec._context import Inline, Stored
from proxyexec._group_records import CallReference
from proxyexec._proxy import Reference
from proxyexec._serialize import PickleSerializer, Serializer
from proxyexec.errors import DeserializationError

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

    from proxyexec._context import Context

__all__ = ["Envelope", "envelope_of"]


class Envelope:
    """Writes down what stands for objects, and nothing else; a serializer."""

    def dumps(self, obj: Any) -> Sequence[bytes]:
        return [pickle.dumps(obj, protocol=5)]

    def loads(self, frames: Frames) -> Any:
        try:
            return _Reader(io.BytesIO(b"".join(map(bytes, frames)))).load()
        except Exception as error:
            raise DeserializationError("what is written down of a task", str(error)) from error


def envelope_of(context: Context) -> Serializer:
    """Return what writes down the parts of a call."""
    serializer = context.serializer
    return serializer if isinstance(serializer, PickleSerializer) else Envelope()


class _Reader(pickle.Unpickler):
    """Makes no objects but those that stand for others."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return known


_KNOWN = {
    (kind.__module__, kind.__qualname__): kind
    for kind in (Inline, Stored, Reference, CallReference)
}
