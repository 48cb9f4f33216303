"""Segments: files in shared memory that hold one large object after the other.

Fresh memory is dear: the kernel clears each page, and enters it into each process that looks at
it, which takes several times as long as copying the bytes. So the file of a large object that is
evicted is kept for a while, as a *segment*, and the next object is written into it through
mappings that writers keep; readers keep theirs. Nobody may ever see another object's bytes,
whatever happens when, and whoever is killed in the middle. The argument, step by step, is in
docs/segments.md; tests/test_segments_model.py goes through all interleavings of the steps. These
are the rules (a *lock* is a ``flock`` on the segment, of a descriptor that is nobody else's):

- An object is a segment with a name in the session's directory. Evicting moves it into the
  directory of free segments, under a name that is never used again, in one step.
- Who writes holds the exclusive lock, and sees the segment among the free ones after taking it.
  The header says that no object is there before the first byte is changed, and which one is after
  the last. Only then the segment gets the object's name, in one step, unless that is taken.
- Who reads holds a shared lock for as long as the memory is referred to, and looks at the header
  after taking it: if another object is there, the one that was asked for has been evicted.
- Who discards a segment takes its name first. It gives the memory back only with the exclusive
  lock in hand; without, it goes when the last reader goes.

The kernel lets go of locks when a process dies. Segments are written through mappings only
where all their pages are there already, so a full file system is never a signal. All this is for
tmpfs: elsewhere pages have to be written to a medium, and what is saved is not worth it.

What one segment is, and how a new one is made of large pages, is in ``_segment``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import time
import weakref
from collections.abc import Callable, Iterable, Sequence

from proxyexec_connectors._layout import joined
from proxyexec_connectors._mapping import LARGE_PAGE
from proxyexec_connectors._segment import (
    HEADER_BYTES,
    Segment,
    discard,
    header,
    is_segment,
    number_of,
    object_in,
)

__all__ = ["SEGMENT_FROM", "Segments", "discard_all"]

# Files from this size in bytes on are segments, where there are any.
SEGMENT_FROM = 256 * 1024

# The directory of free segments, within a session's.
_FREE = "~free"

# Free segments that are kept, at most; each one is looked at whenever one is needed.
_KEPT_AT_MOST = 64

# Pieces of an object of up to so many bytes are joined before they are written.
_SMALL_BYTES = 16 * 1024

# Free segments together may take this part of the memory that is free otherwise.
_PART_OF_FREE = 4

# After so many evictions, free segments are counted; also after that part of what they may take.
_TRIMMED_EVERY = 8

# A process that writes looks so often whether what it has open was discarded by others.
_LOOKS_AGAIN_SECONDS = 1.0

# Segments that a process has open beside those in use, for writing and for reading.
_OPEN_AT_MOST = 64

# Segments in use for which a descriptor is kept. Without, the mapping cannot be kept either.
_LENT_AT_MOST = 64

# How many free segments are tried at a time: those that their readers do not let go of
# must not make writing slow.
_TRIED_AT_MOST = 16


class Segments:
    """The segments of one session in one directory, as this process sees them."""

    def __init__(self, place: str) -> None:
        self.place = place
        """The session's directory."""
        self._free = f"{place}/{_FREE}"
        self.works = _rename_exclusively is not None and _is_tmpfs(place)
        """Whether large objects are in segments here."""
        self._makes_new = self.works and LARGE_PAGE > 0
        # By inode number: those that nobody here uses just now. Who takes one out, in one step, has
        # it for himself; so there is no lock, and finalizers may put some back at any moment.
        self._for_writing: dict[int, Segment] = {}
        self._for_reading: dict[int, Segment] = {}
        self._lent: set[Segment] = set()
        # What this process has evicted itself: inode numbers and sizes by free names.
        self._recycled: dict[str, tuple[int, int]] = {}
        # When those for writing were last looked at.
        self._looked_again = 0.0
        # How much was evicted since free segments were last counted, and what is few.
        self._untrimmed = self._untrimmed_bytes = self._few_bytes = 0
        self._closed = False
        _all.add(self)

    def make(self) -> None:
        """Make what the session needs for segments, unless another process has."""
        if self.works:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._free, 0o700)

    def write(self, name: str, parts: Sequence[bytes | memoryview], length: int) -> bool:
        """Write an object into a free segment; tell whether there was one.

        Args:
            name: of the file; if there is one, that stays as it is.
            parts: of the object.
            length: theirs together.
        """
        claimed = self._claim(HEADER_BYTES + length)
        if claimed is None:
            return False
        segment, path = claimed
        try:
            _fill(segment, name, parts, length)
            return _rename(path, f"{self.place}/{name}")
        finally:
            segment.unlock()
            self._put_back(segment, self._for_writing)

    def write_new(self, name: str, parts: Sequence[bytes | memoryview], length: int) -> bool:
        """Write an object into a new segment of large pages; tell whether that was possible.

        Args:
            name: of the file; if there is one, that stays as it is.
            parts: of the object.
            length: theirs together.

        Raises:
            OSError: the session's directory is gone.
        """
        size = HEADER_BYTES + length
        if not self._makes_new or size < LARGE_PAGE:
            return False
        try:
            segment = Segment.made(self.place, size)
        except OSError as error:
            # There is no room, or no large page just now, or this kernel has none.
            self._makes_new = error.errno != errno.EINVAL or not _has_room(self.place, size)
            return False
        try:
            _fill(segment, name, parts, length)
            segment.give_name(f"{self.place}/{name}")
        finally:
            self._put_back(segment, self._for_writing)
        return True

    def read(self, name: str, number: int) -> memoryview | None:
        """Return the bytes of an object, private to the caller.

        Args:
            name: of the file.
            number: of the inode that the name was seen to lead to. If it does not any more,
                nothing is returned: there may be another object, or none.

        Raises:
            FileNotFoundError: there is none.
            ValueError: what is there is no object.
        """
        path = f"{self.place}/{name}"
        segment = self._for_reading.pop(number, None) or Segment.opened(path, shared=False)
        try:
            if segment.number == number:
                length = self._locked(segment, path, name)
                if length is not None:
                    return self._lend(segment, length)
        except BaseException:
            segment.close()
            raise
        segment.close()
        return None

    def recycle(self, path: str, status: os.stat_result) -> None:
        """Evict an object, and keep its segment if there is room.

        Raises:
            FileNotFoundError: there is no object at ``path``.
        """
        # What the name says is a hint that saves looking. Time makes it unique, and an order.
        free = f"{time.monotonic_ns():016x}-{status.st_ino:x}-{status.st_size:x}"
        os.rename(path, f"{self._free}/{free}")
        self._recycled[free] = status.st_ino, status.st_size
        self._untrimmed += 1
        self._untrimmed_bytes += status.st_size
        if len(self._recycled) > _KEPT_AT_MOST:  # others may have taken them
            self._recycled.pop(next(iter(self._recycled)), None)

    def trim(self, free_bytes: Callable[[], int], *, at_once: bool = False) -> bool:
        """Discard free segments until there are not too many; tell whether there are some left.

        Args:
            free_bytes: tells what may be written in this place beside them.
            at_once: whether to count them in any case, which takes a while.
        """
        few = self._untrimmed < _TRIMMED_EVERY and self._untrimmed_bytes < self._few_bytes
        if few and not at_once:
            return True
        self._untrimmed = self._untrimmed_bytes = 0
        kept = self._free_ones()
        total = sum(size for _, _, size in kept)
        allowed = free_bytes() // _PART_OF_FREE
        self._few_bytes = allowed // _TRIMMED_EVERY
        excess = (
            len(kept) + _TRIMMED_EVERY - _KEPT_AT_MOST
        )  # as so many may come before the next time
        for name, _, size in kept:
            if excess <= 0 and total <= allowed:
                return True
            self._discard(name)
            excess -= 1
            total -= size
        return False

    def discard_free(self) -> bool:
        """Discard all free segments; tell whether there were any."""
        kept = self._free_ones()
        for name, _, _ in kept:
            self._discard(name)
        self._drop_discarded(self._for_reading)
        return bool(kept)

    def close(self) -> None:
        """Let go of all segments of this process that nobody uses."""
        self._closed = True
        self.drop()

    def drop(self) -> None:
        """Close what is open for the next time."""
        for kept in (self._for_writing, self._for_reading):
            for number in list(kept):
                segment = kept.pop(number, None)
                if segment is not None:
                    segment.close()

    def _claim(self, size: int) -> tuple[Segment, str] | None:
        """Take the exclusive lock on a free segment of at least ``size`` bytes."""
        # Later ones come first: their pages are warm. Before them those whose mapping is here,
        # and before all those that need no look into the directory.
        recycled = [(name, *hints) for name, hints in list(self._recycled.items())]
        claimed = self._claim_one(reversed(recycled), size)
        if claimed is None:
            free = self._free_ones()
            free.reverse()
            free.sort(key=lambda one: one[1] not in self._for_writing)
            claimed = self._claim_one(free, size)
        if claimed is None and time.monotonic() > self._looked_again + _LOOKS_AGAIN_SECONDS:
            self._looked_again = time.monotonic()
            self._drop_discarded(self._for_writing)
        return claimed

    def _claim_one(
        self, free: Iterable[tuple[str, int, int]], size: int
    ) -> tuple[Segment, str] | None:
        fitting = [one for one in free if size <= one[2] <= 2 * size]
        for name, number, _ in fitting[:_TRIED_AT_MOST]:
            path = f"{self._free}/{name}"
            segment = self._for_writing.pop(number, None)
            if segment is None:
                segment = self._opened_for_writing(path)
                if segment is None:
                    self._recycled.pop(name, None)
                    continue
            if segment.lock(fcntl.LOCK_EX):
                self._recycled.pop(name, None)
                # Between looking and locking, it may have been taken and be an object by now.
                if segment.size >= size and segment.is_at(path):
                    return segment, path
                segment.unlock()
            self._put_back(segment, self._for_writing)
        return None

    def _opened_for_writing(self, path: str) -> Segment | None:
        try:
            segment = Segment.opened(path, shared=True)
        except OSError:  # taken meanwhile, or there are no mappings to be had
            return None
        # Nobody discards it: who does, takes the name first, and it would not be here.
        if segment.lock(fcntl.LOCK_EX):
            if number_of(path) == segment.number:
                segment.mapping.touch()
            return segment
        segment.close()
        return None

    def _locked(self, segment: Segment, path: str, name: str) -> int | None:
        """Take the shared lock; return the object's length, or ``None`` if it is not there."""
        if not segment.lock(fcntl.LOCK_SH):
            # Somebody writes there. If it has the name, that was this object, and is done.
            if number_of(path) != segment.number:
                return None
            segment.wait_for_shared_lock()
        head = segment.read_header()
        found = object_in(head)
        if found is not None and found[0] == name:
            length = found[1]
            # As it is now: beyond the end of a file that somebody cut short, reading is a signal.
            size = min(segment.size, segment.size_of_file())
            if HEADER_BYTES + length > size:
                raise ValueError(f"{length} bytes in a segment of {size}")
            return length
        if number_of(path) == segment.number:  # nobody changes that now
            raise ValueError(f"a segment that starts with {head[:8]!r}")
        return None

    def _lend(self, segment: Segment, length: int) -> memoryview:
        memory = segment.mapping.lend(HEADER_BYTES, length)
        self._lent.add(segment)
        if len(self._lent) > _LENT_AT_MOST:
            segment.let_go_of_descriptor()
        # Called wherever the last reference goes: in the garbage collector, for instance.
        weakref.finalize(memory, self._take_back, segment).atexit = False
        return memoryview(memory).cast("B")

    def _take_back(self, segment: Segment) -> None:
        self._lent.discard(segment)
        # A mapping with changes of ours would show them in place of the next object.
        if not segment.keeps_lock() or self._closed or not segment.mapping.is_as_in_file():
            segment.close()
            return
        segment.unlock()
        # In this order: who discards takes the name before the lock.
        self._put_back(segment, self._for_reading)

    def _put_back(self, segment: Segment, kept: dict[int, Segment]) -> None:
        if segment.is_discarded() or kept.setdefault(segment.number, segment) is not segment:
            segment.close()
        elif self._closed:
            self.drop()
        elif len(kept) > _OPEN_AT_MOST:
            for number in list(kept)[: len(kept) - _OPEN_AT_MOST]:
                oldest = kept.pop(number, None)
                if oldest is not None:
                    oldest.close()

    def _drop_discarded(self, kept: dict[int, Segment]) -> None:
        for number in list(kept):
            segment = kept.pop(number, None)
            if segment is not None:
                self._put_back(segment, kept)

    def _free_ones(self) -> list[tuple[str, int, int]]:
        """Names, inode numbers and sizes of free segments, the oldest first."""
        try:
            names = os.listdir(self._free)
        except FileNotFoundError:
            return []
        names.sort()
        return [(name, *hints) for name in names if (hints := _hints(name)) is not None]

    def _discard(self, name: str) -> None:
        self._recycled.pop(name, None)
        hints = _hints(name)
        segment = None if hints is None else self._for_writing.pop(hints[0], None)
        discard(f"{self._free}/{name}")
        if segment is not None:
            self._put_back(segment, self._for_writing)


def _fill(segment: Segment, name: str, parts: Sequence[bytes | memoryview], length: int) -> None:
    """Write an object into a segment that nobody else can see, or has the lock of."""
    mapping = segment.mapping
    mapping.write(0, header(name, length, whole=False))
    position = HEADER_BYTES
    for part in joined(parts, _SMALL_BYTES):
        mapping.write(position, part)
        position += len(part)
    mapping.write(0, header(name, length))


def discard_all(place: str) -> None:
    """Remove all segments in a session's directory that is being removed."""
    for directory in (f"{place}/{_FREE}", place):
        if os.path.islink(directory):  # to segments that may be in use
            continue
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_size >= SEGMENT_FROM and is_segment(
                        entry.path
                    ):
                        discard(entry.path)


def _hints(name: str) -> tuple[int, int] | None:
    """Return what the name of a free segment says of it: inode number and size."""
    try:
        _, number, size = name.split("-")
        return int(number, 16), int(size, 16)
    except ValueError:  # somebody else's file
        return None


def _rename(source: str, target: str) -> bool:
    """Rename a file unless the target exists; tell whether there is a target now.

    Raises:
        OSError: the target's directory is gone.
    """
    assert _rename_exclusively is not None  # noqa: S101 - or there are no segments
    arguments = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _NOREPLACE)
    if _rename_exclusively(*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return True
    if code == errno.ENOENT and os.path.isdir(os.path.dirname(target)):
        return False  # somebody discarded the segment
    raise OSError(code, os.strerror(code), target)


def _has_room(directory: str, size: int) -> bool:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize >= size


def _is_tmpfs(directory: str) -> bool:
    """Tell whether a directory is in memory, by what the kernel says of its device."""
    try:
        device = os.stat(directory).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo") as lines:
            for line in lines:
                fields = line.split()
                if fields[2] == wanted:
                    return fields[fields.index("-") + 1] == "tmpfs"
    except (OSError, ValueError, IndexError):
        pass
    return False


_AT_FDCWD = -100
_NOREPLACE = 1
# In glibc from 2.28 on.
_rename_exclusively = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
if _rename_exclusively is not None:
    _rename_exclusively.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )

_all: weakref.WeakSet[Segments] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for segments in list(_all):
        segments.drop()


os.register_at_fork(after_in_child=_after_fork_in_child)
