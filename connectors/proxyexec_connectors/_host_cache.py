"""What one process of a host has fetched, for the others: in shared memory, mapped by each.

Processes of one host that use the same session of a connector share a directory. Who wants an
object that is not there creates its *work* file, locks that, and fetches; the others wait for
it. The file gets the object's name when it is whole, and never changes after that: whoever maps
it copy-on-write has private memory, for as long as he likes, also when the name is gone.

- Nobody is waited for in vain. The kernel lets go of the lock of who dies; who is stopped makes
  no progress, which can be seen from the file, and loses the name to the next one. A work file
  is never written by two: the name goes to a new file. What the former one finishes cannot get
  a name any more.
- An object's *token* says which one of several under the same key it is. Callers ask the
  connector's server whether the object of that token is there, each time, so nothing is served
  that has been evicted; the file of an object that is evicted while it is fetched is removed by
  its writer, who asks again after naming it.
- Files are written with system calls: full shared memory is an error, never a signal, and then
  the object is simply not kept here. What is kept is bounded in bytes; what has not been used for
  the longest time goes first.
- The directory is a session that nobody owns: see ``_sessions``. Each process holds a shared lock,
  and the last one to leave removes it. What killed processes left is swept by the next one who
  opens a session.

Knows nothing of servers; the connector fetches. Objects are runs of bytes as ``_layout`` describes
them, which no sweeper takes for a segment of the file connector, to cut it short.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import multiprocessing.util
import os
import re
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from proxyexec_connectors import _sessions
from proxyexec_connectors._mapping import map_private
from proxyexec_connectors._sessions import Session
from proxyexec_connectors.errors import ConnectorError, UnsafeDirectoryError

if TYPE_CHECKING:
    import mmap

__all__ = ["HostCache", "Known", "Write"]

_logger = logging.getLogger("proxyexec.connectors.redis")

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - what we put there is in a directory of mode 0700

_WORK = "~"

# Who is waited for has to show some progress within this many seconds. What a network has lost is
# sent again within one or two, and whoever has given up waiting loads it twice as much.
_PATIENCE = 3.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0002, 0.002

# How often others may get in between before an object is fetched without looking at them.
_TRIES = 100

# How many files are asked about whenever one is added: those of objects evicted elsewhere.
_ASKED_ABOUT = 16

_TRAILER = struct.Struct("<16sQQ8s")
_MAGIC = b"pxcache1"

_is_session = re.compile("[0-9a-f]{16}").fullmatch

# Nobody waits for the other end of a pipe that has the name of a file.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Known(NamedTuple):
    """One object of possibly several that a key has led to."""

    key: str
    token: bytes


# Puts bytes at an offset of the object.
Write: TypeAlias = Callable[[memoryview, int], None]


class NoRoomError(Exception):
    """A piece could not be written. No OSError, as the connector may take that for its own."""


class HostCache:
    """Objects of one session, in this host's shared memory.

    Args:
        session: the session's name.
        limit: how many bytes may be kept, all processes together; 0 to keep nothing.
        are_current: asks the server which objects are still there.
    """

    def __init__(
        self, session: str, limit: int, are_current: Callable[[Sequence[Known]], list[bool]]
    ) -> None:
        self._root = os.path.join(_SHARED_MEMORY, f"proxyexec-{os.geteuid()}")
        self._name = f"session-{session}"
        self._place = os.path.join(self._root, self._name)
        # Sessions have other names only where somebody made one up, for an address.
        self._limit = limit if _is_session(session) else 0
        self._are_current = are_current
        self._session: Session | None = None
        self._at_exit: multiprocessing.util.Finalize | None = None
        self._lock = threading.Lock()
        _caches.add(self)

    def find(self, key: str) -> tuple[Known, mmap.mmap] | None:
        """Return the object that is kept under ``key``; it may have been evicted elsewhere."""
        if self._session is None and not (
            self._limit and os.path.isdir(self._place) and self._join()
        ):
            return None
        path = self._path(key)
        # For most objects there is none, and an error costs more than a look.
        if not os.access(path, os.F_OK):
            return None
        try:
            found = _opened(path)
        except OSError as error:  # too many mappings, say
            _logger.debug("what is in shared memory is not used: %s", error)
            return None
        return None if found is None or found[0].key != key else found

    def obtain(self, known: Known, size: int, receive: Callable[[Write], None]) -> mmap.mmap | None:
        """Return an object's bytes, from here or fetched; ``None`` if there is no room here.

        Args:
            known: the object.
            size: its length in bytes.
            receive: fetches it and writes all of it, or raises.

        Raises:
            Exception: what ``receive`` raised.
        """
        if size > self._limit or not self._join():
            return None
        try:
            path = self._path(known.key)
            for _ in range(_TRIES):
                found = _opened(path, (known, size))
                if found is not None:
                    return found[1]
                with _claimed(path + _WORK) as descriptor:
                    if descriptor is not None:
                        return self._received(descriptor, path, known, size, receive)
        except ConnectorError:
            raise
        except (OSError, NoRoomError) as error:
            _logger.debug("an object was not kept in shared memory: %s", error)
        return None

    def forget(self, keys: Iterable[str]) -> None:
        """Remove what is kept under ``keys``."""
        if self._limit and os.path.isdir(self._place):
            for key in keys:
                with contextlib.suppress(OSError):
                    os.unlink(self._path(key))

    def leave(self) -> None:
        """Use nothing any more; the last process removes what there is."""
        with self._lock:
            session, self._session = self._session, None
            at_exit, self._at_exit = self._at_exit, None
        if at_exit is not None:
            at_exit.cancel()
        if session is not None:
            session.remove()

    def remove(self) -> None:
        """Remove what there is, for all processes."""
        self.leave()
        try:
            _sessions.check_is_ours(self._root)
        except UnsafeDirectoryError:  # so there is nothing of ours in it
            return
        if os.path.lexists(self._place):
            _sessions.remove_directory(self._place)
            with contextlib.suppress(OSError):  # others are in it
                os.rmdir(self._root)

    def after_fork(self) -> None:
        """In the child, be nowhere: the lock is the parent's."""
        self._session = self._at_exit = None
        self._lock = threading.Lock()

    def _path(self, key: str) -> str:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self._place}/{digest[:32]}"

    def _join(self) -> bool:
        with self._lock:
            if self._session is None:
                try:
                    self._session = Session(self._root, self._name, ours=True, shared=True)
                except (OSError, UnsafeDirectoryError) as error:
                    # Another user was there first, say, or the last process is just leaving.
                    _logger.debug("nothing is kept in shared memory: %s", error)
                    return False
                # Processes of multiprocessing run these at their end, and no others.
                self._at_exit = multiprocessing.util.Finalize(None, self.leave, exitpriority=0)
        return True

    def _received(
        self,
        descriptor: int,
        path: str,
        known: Known,
        size: int,
        receive: Callable[[Write], None],
    ) -> mmap.mmap | None:
        os.ftruncate(descriptor, size)  # by which the others know how much room it needs
        self._drop_stale()
        if not self._make_room(size):
            return None

        def write(data: memoryview, offset: int) -> None:
            try:
                _write(descriptor, data, offset)
            except OSError as error:
                raise NoRoomError(str(error)) from error

        receive(write)
        _write(descriptor, memoryview(_trailer(known, size)), size)
        if _is_named(descriptor, path, known):
            try:
                [current] = self._are_current([known])
            except BaseException:
                _unlink(path)
                raise
            if not current:  # evicted before it had its name, by which it would have been found
                _unlink(path)
        return map_private(descriptor, size)

    def _drop_stale(self) -> None:
        """Remove some of what has been evicted by another host."""
        found = {}
        for entry in sorted(self._entries(), key=lambda one: one.used)[:_ASKED_ABOUT]:
            with contextlib.suppress(OSError):
                descriptor = os.open(entry.path, _READ)
                try:
                    known = _known(descriptor)
                finally:
                    os.close(descriptor)
                if known is not None:
                    found[entry.path] = known[0]
        if found:
            current = self._are_current(list(found.values()))
            for path, is_current in zip(found, current, strict=True):
                if not is_current:
                    _unlink(path)

    def _make_room(self, size: int) -> bool:
        """Remove old files until there is room for what has just been begun."""
        entries = list(self._entries())
        kept = sum(entry.size for entry in entries) + self._being_written()
        # Shared memory is memory, and others need some.
        shortage = max(kept - self._limit, 2 * size - _free_bytes(self._place))
        for entry in sorted(entries, key=lambda one: one.used):
            if shortage <= 0:
                break
            _unlink(entry.path)
            shortage -= entry.size
        return shortage <= 0

    def _entries(self) -> Iterator[_Entry]:
        for path, status in self._files():
            if not path.endswith(_WORK):
                yield _Entry(path, status.st_size, status.st_mtime_ns)

    def _being_written(self) -> int:
        """How many bytes the work files are going to have; those of the dead are removed."""
        total = 0
        for path, status in self._files():
            if path.endswith(_WORK) and not _is_abandoned(path):
                total += status.st_size
        return total

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(self._place) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):
                    yield entry.path, entry.stat(follow_symlinks=False)


class _Entry(NamedTuple):
    path: str
    size: int
    used: int


@contextlib.contextmanager
def _claimed(work: str) -> Iterator[int | None]:
    """Create a work file and lock it, or wait for who has; ``None`` says to look again."""
    try:
        descriptor = os.open(work, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        _wait_for(work)
        yield None
        return
    # A child would keep the lock beyond this process's death.
    _sessions.close_in_children(descriptor)
    try:
        # Somebody may have found it without a lock, and taken its name, in between.
        yield descriptor if _locks(descriptor) and os.fstat(descriptor).st_nlink else None
    finally:
        # After the object has its name. Before the lock goes, or it would look abandoned.
        _unlink_if(work, descriptor)
        # Closing it would not do: who has the file mapped, as we may by now, has its locks, too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        _sessions.close(descriptor)


def _wait_for(work: str) -> None:
    """Wait until a work file is finished; if nobody is at it, take its name away."""
    try:
        descriptor = os.open(work, _READ)
    except FileNotFoundError:
        return
    _sessions.close_in_children(descriptor)
    try:
        written, since, pause = -1, time.monotonic(), _FIRST_PAUSE
        while not _locks(descriptor):
            # Its size would not tell when something is fetched anew, over another connection.
            last = os.fstat(descriptor).st_mtime_ns
            if last != written:
                written, since = last, time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                break
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        _unlink_if(work, descriptor)
    finally:
        _sessions.close(descriptor)


def _is_abandoned(work: str) -> bool:
    """Tell whether nobody is at a work file, and remove it then."""
    try:
        descriptor = os.open(work, _READ)
    except OSError:
        return True
    _sessions.close_in_children(descriptor)
    try:
        if not _locks(descriptor):
            return False
        _unlink_if(work, descriptor)
        return True
    finally:
        _sessions.close(descriptor)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_named(descriptor: int, path: str, known: Known) -> bool:
    """Give a whole file its name; ``False`` if it has lost its right to that, or it cannot be."""
    with contextlib.suppress(OSError):  # what is in the file is still good for who has fetched it
        return _named(descriptor, path, known)
    return False


def _named(descriptor: int, path: str, known: Known) -> bool:
    for _ in range(_TRIES):
        # Not by its former name, which may be another file's by now. Without any name left, this
        # fails: somebody has given up waiting for us.
        try:
            os.link(
                f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True
            )
        except FileNotFoundError:
            return False
        except FileExistsError:
            if _is_known(path, known):
                return False
            _unlink(path)  # an earlier object of that key
        else:
            return True
    return False


def _opened(path: str, wanted: tuple[Known, int] | None = None) -> tuple[Known, mmap.mmap] | None:
    """Map the object in a file, if it is the one that is wanted, or any is."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return None
    try:
        found = _known(descriptor)
        if found is None or found[1] == 0 or (wanted is not None and found != wanted):
            return None
        os.utime(descriptor)
        return found[0], map_private(descriptor, found[1])
    finally:
        os.close(descriptor)


def _is_known(path: str, known: Known) -> bool:
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, _READ)
        try:
            found = _known(descriptor)
            return found is not None and found[0] == known
        finally:
            os.close(descriptor)
    return False


def _trailer(known: Known, size: int) -> bytes:
    key = known.key.encode("utf-8", "surrogatepass")
    return key + _TRAILER.pack(known.token, size, len(key), _MAGIC)


def _known(descriptor: int) -> tuple[Known, int] | None:
    """Which object a file holds, and how long that is."""
    end = os.fstat(descriptor).st_size - _TRAILER.size
    if end < 0:
        return None
    trailer = os.pread(descriptor, _TRAILER.size, end)
    if len(trailer) < _TRAILER.size:  # cut meanwhile
        return None
    token, size, length, magic = _TRAILER.unpack(trailer)
    if magic != _MAGIC or size + length != end:
        return None
    try:
        key = os.pread(descriptor, length, size).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
    return Known(key, token), size


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _unlink_if(path: str, descriptor: int) -> None:
    """Take a file's name away, unless that is another file's by now."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(path), os.fstat(descriptor)):
            os.unlink(path)


def _free_bytes(place: str) -> int:
    """How much can be put into ``place``, by the file system and by the machine's memory."""
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    with contextlib.suppress(OSError), open("/proc/meminfo", "rb") as lines:
        for line in lines:
            if line.startswith(b"MemAvailable:"):
                return min(free, int(line.split()[1]) * 1024)
    return free


_caches: weakref.WeakSet[HostCache] = weakref.WeakSet()


def _after_fork() -> None:
    for cache in list(_caches):
        cache.after_fork()


os.register_at_fork(after_in_child=_after_fork)
