"""What a store's owner has stored, by content: nothing is stored twice while its lease lives.

Most objects are new, and looking at all of their bytes to learn that would cost a part of what
storing costs. So a *fingerprint* comes first: the lengths of the frames and some of their bytes,
a few microseconds' work. Only when an object with the same fingerprint is stored, digests are
compared: 128 bits of XXH3, seeded anew in each process, over all bytes of both. The stored
object's is made when it is first needed, from what is stored. Where reading that back would cost as
much as storing it again, it is made of what is about to be stored, and once more when it has been:
nobody changed it meanwhile if these are equal.

Keeps no objects alive, and knows nothing of leases.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import xxhash
from proxyexec_connectors._layout import flatten

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

    from proxyexec._proxy import Reference

__all__ = ["Content", "Contents", "are_equal", "likeness_of"]

# How many bytes of a frame are looked at, in each of three places.
_LOOKED_AT = 1024

# How many of what was not stored by itself are remembered.
_SEEN_AT_MOST = 4096

# How much is compared at a time: what the processor's cache holds.
_COMPARED = 1 << 18

_SEED = secrets.randbits(64)


class Content:
    """The content of an object that is to be stored, or is.

    Args:
        frames: of the object. They are let go of by :meth:`settle`.
    """

    __slots__ = ("_digest", "_frames", "fingerprint")

    def __init__(self, frames: Frames) -> None:
        self._frames: Frames | None = frames
        self._digest: bytes | None = None
        self.fingerprint = hash(tuple(map(_sample, map(flatten, frames))))

    def digest(self, fetch: Callable[[], Frames | None] | None = None) -> bytes | None:
        """Return a digest of all bytes; ``None`` if they are gone.

        Args:
            fetch: gets the frames, if this content has let go of them.
        """
        if self._digest is None:
            frames = self._frames if fetch is None else fetch()
            if frames is not None:
                self._digest = _digest(frames)
        return self._digest

    @property
    def may_change(self) -> bool:
        """Whether somebody may change the frames."""
        frames = self._frames or ()
        return not all(type(memoryview(frame).obj) is bytes for frame in frames)

    def settle(self, *, confirm: bool) -> bool:
        """Let go of the frames, and of what they were: what is stored counts from now on.

        Args:
            confirm: keep the digest, if the frames still have it.

        Returns:
            Whether they do, or nobody asked.
        """
        unchanged = True
        if not confirm:
            self._digest = None
        elif self.may_change:
            before, self._digest = self._digest, None
            unchanged = self.digest() == before
            if not unchanged:
                self._digest = None
        self._frames = None
        return unchanged


class Contents:
    """References by content.

    Args:
        fetch: returns the frames that a reference leads to, if there are any.
        ahead: whether fetching is so dear that digests are made ahead, of all that is stored.
    """

    def __init__(self, fetch: Callable[[Reference], Frames | None], *, ahead: bool) -> None:
        self._fetch = fetch
        self._ahead = ahead
        self._stored: dict[int, dict[str, tuple[Reference, Content]]] = {}
        self._fingerprints: dict[str, int] = {}
        self._seen: dict[int, None] = {}
        # Held for dictionary operations only. Reentrant, as a finalizer that the garbage collector
        # runs inside may get here.
        self._lock = threading.RLock()

    def is_repeated(self, content: Content) -> bool:
        """Tell whether something alike is stored, or was asked about; from now on, this was."""
        fingerprint = content.fingerprint
        if fingerprint in self._stored:
            return True
        with self._lock:
            seen = fingerprint in self._seen
            self._seen[fingerprint] = None
            if len(self._seen) > _SEEN_AT_MOST:
                del self._seen[next(iter(self._seen))]
        return seen

    def candidates(self, content: Content) -> Sequence[tuple[Reference, Content]]:
        """Return what is stored that may have this content."""
        if content.fingerprint not in self._stored:  # as a rule
            return ()
        with self._lock:
            return list(self._stored.get(content.fingerprint, {}).values())

    def is_same(self, content: Content, stored: tuple[Reference, Content]) -> bool:
        """Tell whether what is stored has this content. Somebody has to hold it meanwhile."""
        reference, other = stored
        digest = other.digest(lambda: self._fetch(reference))
        return digest is not None and digest == content.digest()

    def expect(self, content: Content) -> None:
        """Look at what is going to be stored."""
        if self._ahead:
            content.digest()

    def add(self, reference: Reference, content: Content) -> None:
        """Remember what has been stored."""
        content.settle(confirm=self._ahead)
        with self._lock:
            self._stored.setdefault(content.fingerprint, {})[reference.key] = reference, content
            self._fingerprints[reference.key] = content.fingerprint

    def forget(self, keys: Iterable[str]) -> None:
        """Forget what is being evicted."""
        with self._lock:
            for key in keys:
                fingerprint = self._fingerprints.pop(key, None)
                if fingerprint is not None:
                    alike = self._stored[fingerprint]
                    del alike[key]
                    if not alike:
                        del self._stored[fingerprint]


def likeness_of(frames: Frames) -> str:
    """Return what is alike for all objects of one content, in every process.

    And unlike for others, unless the bytes in which they differ are not among those looked at.
    """
    state = xxhash.xxh3_64()
    for view in map(flatten, frames):
        state.update(view.nbytes.to_bytes(8, "little"))
        sample = _sample(view)
        for piece in (sample,) if isinstance(sample, bytes) else sample[1:]:
            state.update(piece)
    return str(state.hexdigest())


def are_equal(some: Frames, others: Frames) -> bool:
    """Tell whether frames are the same, all of their bytes."""
    return len(some) == len(others) and all(
        map(_is_equal, map(flatten, some), map(flatten, others))
    )


def _is_equal(one: memoryview, other: memoryview) -> bool:
    # memoryviews compare item by item; a bytearray compares as memory.
    return one.nbytes == other.nbytes and all(
        bytearray(one[start : start + _COMPARED]) == other[start : start + _COMPARED]
        for start in range(0, one.nbytes, _COMPARED)
    )


def _sample(view: memoryview) -> Any:
    size = view.nbytes
    if size <= 3 * _LOOKED_AT:
        return bytes(view)
    middle = size // 2
    return (
        size,
        bytes(view[:_LOOKED_AT]),
        bytes(view[middle : middle + _LOOKED_AT]),
        bytes(view[-_LOOKED_AT:]),
    )


def _digest(frames: Frames) -> bytes:
    state = xxhash.xxh3_128(seed=_SEED)
    for view in map(flatten, frames):
        # With the lengths, so that bytes cannot move from one frame to the next.
        state.update(view.nbytes.to_bytes(8, "little"))
        state.update(view)
    return bytes(state.digest())
