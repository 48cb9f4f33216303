"""Calls that are written down together, with what they refer to, in one go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from proxyexec._contents import Content
from proxyexec._proxy import Kept, Reference
from proxyexec._serialize import frames_size
from proxyexec._store import leases_of
from proxyexec._types import describe

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

    from proxyexec._group_call import GroupCall
    from proxyexec._group_store import GroupStore

__all__ = ["Batch"]


class Batch:
    """What one thread wants stored, until it is sent; see :class:`proxyexec._context.Keeper`.

    What is equal is stored once, within the batch.
    """

    takes_parts = True
    shares = False
    every = False

    def __init__(self, store: GroupStore) -> None:
        self._store = store
        self._thread = threading.get_ident()
        self._items: dict[str, Frames] = {}
        self._calls: list[tuple[GroupCall, str, Callable[[], None]]] = []
        self._stored: dict[bytes, Reference] = {}

    @property
    def is_this_threads(self) -> bool:
        """Whether it is the calling thread that submits together what it submits."""
        return threading.get_ident() == self._thread

    def keep(self, obj: Any, frames: Frames, embedded: Sequence[Kept]) -> Kept:
        """Store an object when the batch is sent."""
        store = self._store
        digest = Content(frames).digest()
        found = None if digest is None else self._stored.get(digest)
        lease = None if found is None else store.join(found.key)
        if found is not None and lease is not None:
            return Kept(found, lease)
        key = store.new_key()
        type_name, methods = describe(type(obj))
        reference = Reference(store.address, key, type_name, frames_size(frames), methods)
        # As it is now: a put has copied what it was given when it returns, and so has this.
        self._items[key] = [bytes(frame) for frame in frames]
        if digest is not None:
            self._stored[digest] = reference
        return Kept(reference, store.take(key, leases_of(embedded)))

    keep_part = keep

    def add(self, call: GroupCall, key: str, frames: Sequence[Any], go: Callable[[], None]) -> None:
        """Write a call down when the batch is sent, and submit it then."""
        self._items[key] = [bytes(frame) for frame in frames]
        self._calls.append((call, key, go))

    def send(self) -> None:
        """Write everything down, then submit the calls."""
        calls = [one for one in self._calls if not self._is_withdrawn(*one[:2])]
        try:
            # What calls refer to comes first.
            self._store.connector.put_many(self._items)
        except BaseException as error:
            self.fail(error)
            raise
        self._items = {}
        for _, _, go in calls:
            go()

    def fail(self, error: BaseException) -> None:
        """Submit nothing: the calls end with an error."""
        self._items = {}
        for call, _, _ in self._calls:
            call.fail(error)

    def _is_withdrawn(self, call: GroupCall, key: str) -> bool:
        """Tell whether a call was cancelled before it was written down; then it never is."""
        if call.future is None:
            self._items.pop(key)
        return call.future is None
