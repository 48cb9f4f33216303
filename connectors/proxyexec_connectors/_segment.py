"""One segment: a file in shared memory for one large object after the other; see ``_segments``.

A segment is opened by its name, or made. A new one has no name until its object is whole. It is
backed by *large pages* (2 MiB instead of 4 KiB, as a rule) where the kernel can do that: it then
clears, enters into page tables and takes back hundreds of times less often, and reading is as
fast as in any other memory. The file system's own setting for them is for all that is written
there, and off by default; asking for them file by file needs no setting, but Linux 6.1.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading

from proxyexec_connectors._mapping import LARGE_PAGE, Mapping

__all__ = [
    "HEADER_BYTES",
    "Segment",
    "discard",
    "give_name",
    "header",
    "is_segment",
    "length_in",
    "number_of",
    "object_in",
]

# What comes before an object, so that its frames stay aligned.
HEADER_BYTES = 256

_MAGIC = b"pxsegm01"
_HEADER = struct.Struct("<8sQQH")
_EMPTY, _WHOLE = 0, 1


def header(name: str, length: int, *, whole: bool = True) -> bytes:
    """Return what stands before an object.

    Args:
        name: of its file.
        length: in bytes.
        whole: whether it is there; if not, nobody sees it.
    """
    encoded = name.encode()
    state = _WHOLE if whole else _EMPTY
    return (_HEADER.pack(_MAGIC, state, length, len(encoded)) + encoded).ljust(HEADER_BYTES, b"\0")


def object_in(head: bytes) -> tuple[str, int] | None:
    """Return the name and the length of the object that a header tells of."""
    if len(head) < HEADER_BYTES:
        return None
    magic, state, length, size = _HEADER.unpack_from(head)
    if magic != _MAGIC or state != _WHOLE:
        return None
    return head[_HEADER.size : _HEADER.size + size].decode("ascii", "replace"), length


class Segment:
    """A segment that this process has open, with the lock that it may hold on it.

    Args:
        descriptor: of the file; closed with this.
        shared: whether what is written into the mapping gets into the file.
    """

    __slots__ = ("_descriptor", "_forks", "mapping", "number", "size")

    def __init__(self, descriptor: int, *, shared: bool) -> None:
        self._descriptor = descriptor
        try:
            status = os.fstat(descriptor)
            self.number = status.st_ino
            self.size = status.st_size
            self._forks = _forks
            self.mapping = Mapping(descriptor, max(self.size, 1), shared=shared)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def opened(cls, path: str, *, shared: bool) -> Segment:
        """Open the segment at ``path``.

        Raises:
            OSError: there is none, or no descriptor or mapping to be had.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return cls(os.open(path, flags), shared=shared)

    @classmethod
    def made(cls, directory: str, size: int) -> Segment:
        """Make a segment of large pages, all of them there.

        Raises:
            OSError: there is no room, or there are no large pages to be had.
        """
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size)
            # The kernel makes a large page where there is a small one. What is left at the end is
            # not as long as one.
            rest = size % LARGE_PAGE
            for start in range(0, size - rest, LARGE_PAGE):
                os.pwrite(descriptor, b"\0", start)
            if rest:
                os.posix_fallocate(descriptor, size - rest, rest)
        except BaseException:
            os.close(descriptor)
            raise
        segment = cls(descriptor, shared=True)
        try:
            segment.mapping.collapse()
        except OSError:
            segment.close()
            raise
        segment.mapping.touch()
        return segment

    def give_name(self, path: str) -> None:
        """Name a segment that has none, unless there is a file of that name."""
        give_name(self._descriptor, path)

    def lock(self, kind: int) -> bool:
        """Take a lock, ``LOCK_SH`` or ``LOCK_EX``, if that is possible at once."""
        self._forks = _forks
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait_for_shared_lock(self) -> None:
        """Take the lock ``LOCK_SH`` as soon as that is possible."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def unlock(self) -> None:
        """Let go of the lock."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def read_header(self) -> bytes:
        """Return what stands before the object."""
        # Not through the mapping: the segment may have been discarded, its pages being gone.
        return os.pread(self._descriptor, HEADER_BYTES, 0)

    def size_of_file(self) -> int:
        """Return how many bytes the file has now."""
        return os.fstat(self._descriptor).st_size

    def is_discarded(self) -> bool:
        """Tell whether it has no name any more."""
        return not os.fstat(self._descriptor).st_nlink

    def is_at(self, path: str) -> bool:
        """Tell whether it is the file at ``path``, and has all its pages still."""
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return False
        return (status.st_ino, status.st_size) == (self.number, self.size)

    def keeps_lock(self) -> bool:
        """Tell that a lock may be let go of, as no forked child shares it."""
        return self._descriptor >= 0 and self._forks == _forks and not _forking

    def let_go_of_descriptor(self) -> None:
        """Keep the mapping only, and with it the lock, which goes when the mapping goes."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of all. What a forked child has of it stays locked."""
        self.mapping.close()
        self.let_go_of_descriptor()


def give_name(descriptor: int, path: str, source: str | None = None) -> None:
    """Name a file, unless there is one of that name.

    Args:
        descriptor: of the file.
        path: its name from now on.
        source: the name that it has, if it has one.
    """
    source = source or f"/proc/self/fd/{descriptor}"
    # Given a directory descriptor, which an absolute path does not use, link() is
    # linkat(AT_SYMLINK_FOLLOW); without, Python calls one that links the /proc entry.
    with contextlib.suppress(FileExistsError):
        os.link(source, path, src_dir_fd=descriptor, follow_symlinks=True)


def discard(path: str) -> None:
    """Remove a segment, and give its memory back even if processes have it mapped."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            # First of all: from now on, nobody can find it, and who lets go of it will see.
            os.unlink(path)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(descriptor).st_nlink:  # or it was another file that had the name
                os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)


def length_in(path: str) -> int | None:
    """Return the length of the object in a segment; ``None`` if there is none."""
    with open(path, "rb", buffering=0) as file:
        found = object_in(file.read(HEADER_BYTES) or b"")
    return None if found is None else found[1]


def is_segment(path: str) -> bool:
    """Tell whether a file is a segment."""
    with open(path, "rb", buffering=0) as file:
        return file.read(len(_MAGIC)) == _MAGIC


def number_of(path: str) -> int | None:
    """Return the inode number of the file at ``path``, if there is one."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


# A forked child shares the locks of what is in use at that moment: unlocked here, its memory would
# change there. So locks that were taken before a fork, or during one, are never let go of by
# hand; they go when the last mapping goes.
_forks = 0
_forking: set[int] = set()


def _before_fork() -> None:
    global _forks
    _forking.add(threading.get_ident())
    _forks += 1


def _after_fork_in_parent() -> None:
    global _forks
    _forks += 1
    _forking.discard(threading.get_ident())


def _after_fork_in_child() -> None:
    global _forks
    _forks += 1
    _forking.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
