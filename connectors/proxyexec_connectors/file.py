"""Objects as files: shared memory on one machine, or any directory that processes share.

One file an object. Frames are written piecewise with system calls, not through a mapping: a
full tmpfs answers a write with an error, and a store through a mapping with SIGBUS. A file gets
its name when it is whole, so a reader sees all of it or nothing, and a writer that is killed
leaves nothing. Large objects are read by mapping them copy-on-write, which copies nothing and
gives each reader private, writable memory; small ones by a plain read.

In shared memory, the files of large objects are kept when these are evicted, and written again:
see ``_segments``.

Nothing is compressed, encrypted or synced to the medium.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import math
import os
import re
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from proxyexec_connectors import _file_durable
from proxyexec_connectors._file_listing import FileListing, objects_in
from proxyexec_connectors._layout import pieces, split
from proxyexec_connectors._mapping import map_private
from proxyexec_connectors._segment import give_name, header, length_in
from proxyexec_connectors._segments import SEGMENT_FROM, Segments
from proxyexec_connectors._sessions import (
    Session,
    check_is_ours,
    is_name,
    known_roots,
    new_name,
    session_in_place,
)
from proxyexec_connectors.durable import DurableSession, check_max_age, check_name
from proxyexec_connectors.errors import (
    ConnectorClosedError,
    ConnectorError,
    ConnectorFullError,
    ConnectorUnavailableError,
    CorruptObjectError,
    NotDurableError,
)
from proxyexec_connectors.protocol import Usage

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from proxyexec_connectors._file_durable import FileClaim
    from proxyexec_connectors.listing import StoredObject
    from proxyexec_connectors.protocol import Frames

__all__ = ["FileConnector"]

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - what we put there is in a directory of mode 0700

# From this size on, mapping a file beats reading it.
_MAPPED_FROM = 64 * 1024

# Objects from this size on look for room before they are written, not while.
_LARGE = 1024 * 1024

# For so long, memory is kept for the next objects when there are none.
_KEPT_SECONDS = 60.0

# Shared memory is memory: leave this much of the machine's to programs.
_MEMORY_RESERVE = 256 * 1024 * 1024

# Where a file needs a name before it is whole, the name starts with this.
_UNFINISHED = "~"

# This file is in the first directory until an object is written into another: looking there
# for each key would take longer than writing a small object.
_ALL_IN_FIRST = f"{_UNFINISHED}all-in-first"

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}

# Whatever has the name of an object: opening it does not wait for a pipe's other end, nor does it
# lead elsewhere. What is no file then is one of these errors, or empty.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NO_FILE = {errno.ELOOP, errno.EISDIR, errno.ENXIO}

# A single writev() takes at most this many pieces.
_PIECES_AT_ONCE = min(1024, os.sysconf("SC_IOV_MAX"))


class FileConnector:
    """A session in a directory.

    Args:
        directory: where to keep objects; made when it is missing. ``None`` takes shared memory,
            with the system's directory for temporary files behind it for what does not fit.
        spill: a second directory, for objects that find no room in the first.

    Raises:
        UnsafeDirectoryError: a directory belongs to another user, or others may write into it.
            Where none was named, and somebody has taken the usual one, another one is used.
        ConnectorUnavailableError: a directory cannot be made.
        ValueError: a directory has a name that no file system takes.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        spill: str | os.PathLike[str] | None = None,
    ) -> None:
        roots = [os.path.abspath(one) for one in (directory, spill) if one is not None]
        place = "" if directory is None else quote(roots[0])
        query = "" if spill is None else f"?{urlencode({'spill': roots[-1]})}"
        self._source: str | None = f"file://{place}{query}"
        usual = _usual_roots()
        if directory is None:
            roots = [*usual[:-1], *(roots or usual[-1:])]
        session = new_name()
        sessions: list[Session] = []
        try:
            for root in roots:
                ours = root in usual
                # A directory that was asked for by its name is that one or none.
                if ours and directory is None:
                    sessions.append(session_in_place(root, session))
                else:
                    sessions.append(Session(root, session, ours=ours))
        except OSError as error:
            _remove(sessions, os.getpid())
            if isinstance(error, ConnectorError):
                raise
            raise ConnectorUnavailableError(f"file://{quote(roots[0])}", str(error)) from error
        except BaseException:
            _remove(sessions, os.getpid())
            raise
        roots = [one.root for one in sessions]
        self._set_up(session, roots, weakref.finalize(self, _remove, sessions, os.getpid()))
        try:
            for segments in self._segments:
                segments.make()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(f"{self._places[0]}/{_ALL_IN_FIRST}", flags, 0o600))
        except OSError as error:
            self.close()
            raise ConnectorUnavailableError(self.url, str(error)) from error

    def _set_up(
        self,
        session: str,
        roots: list[str],
        remove: weakref.finalize[..., FileConnector] | None = None,
    ) -> None:
        self._session = session
        self._roots = roots
        self._places = [os.path.join(root, session) for root in roots]
        self._segments = [Segments(place) for place in self._places]
        self._let_go = weakref.finalize(self, _let_go, self._segments)
        self._let_go.atexit = False
        self._closed = False
        self._remove = remove

    @classmethod
    def from_url(cls, url: str) -> FileConnector:
        """Open a new session: ``file:///directory?spill=/other``, or ``file://`` for memory."""
        parts = urlsplit(url)
        options = parse_qs(parts.query)
        return cls(unquote(parts.path) or None, spill=options.get("spill", [None])[0])

    @classmethod
    def attach(cls, address: str) -> FileConnector:
        """Open an existing session, without owning it.

        Raises:
            ValueError: this is not the address of a session.
            UnsafeDirectoryError: the session belongs to another user.
        """
        parts = urlsplit(address)
        options = parse_qs(parts.query)
        roots = [unquote(parts.path), *options.get("spill", [])]
        session = options.get("session", [""])[0]
        is_one = is_name(session) or _file_durable.is_directory_name(session)
        if not is_one or any(root[:1] != "/" or "\0" in root for root in roots):
            raise ValueError(f"{address!r} is not the address of a session")
        connector = _attach(cls, session, roots)
        for place in connector._places:
            try:
                check_is_ours(place)
            except OSError as error:
                if isinstance(error, ConnectorError):
                    raise
                raise connector._translated(error) from error
        return connector

    @classmethod
    def open_durable(
        cls, url: str, name: str, *, max_age: float | None = None, create: bool = True
    ) -> FileConnector:
        root = _durable_root(url)
        check_max_age(max_age)
        public = f"file://{quote(root)}"
        try:
            _file_durable.make(root, check_name(name), max_age, create=create, url=public)
            # Not before: what file system it is in decides how objects are written.
            connector = _attach(cls, _file_durable.directory_name(name), [root])
            connector._source = public
            connector._segments[0].make()
        except OSError as error:
            if isinstance(error, ConnectorError):
                raise
            raise ConnectorUnavailableError(public, str(error)) from error
        return connector

    @classmethod
    def durable_sessions(cls, url: str) -> list[DurableSession]:
        root = _durable_root(url)
        found = []
        for name in _file_durable.names(root):
            connector = _attach(cls, _file_durable.directory_name(name), [root])
            known = _file_durable.about(root, name, *connector.usage())
            connector.close()
            if known is not None:
                found.append(known)
        return found

    @classmethod
    def remove_durable(cls, url: str, name: str, *, only_expired: bool = False) -> bool:
        root = _durable_root(url)
        try:
            return _file_durable.remove(root, check_name(name), only_expired=only_expired)
        except OSError as error:
            raise ConnectorUnavailableError(f"file://{quote(root)}", str(error)) from error

    @classmethod
    def listing(cls, url: str) -> FileListing:
        parts = urlsplit(url)
        spill = parse_qs(parts.query).get("spill", [])
        named = [os.path.abspath(one) for one in (unquote(parts.path), *spill) if one]
        if unquote(parts.path):
            return FileListing(named)
        return FileListing(
            [*(root for usual in _usual_roots() for root in known_roots(usual)), *named]
        )

    def objects(self) -> list[StoredObject]:
        self._check_open()
        return sorted(objects_in(self._places))

    def durable(self, name: str, *, max_age: float | None = None) -> FileConnector:
        if len(self._roots) > 1:
            raise NotDurableError(self.url)
        return self.open_durable(self.url, name, max_age=max_age)

    def __reduce__(self) -> tuple[object, ...]:
        return _attach, (type(self), self._session, self._roots)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._roots[0]!r}, session={self._session!r})"

    @property
    def url(self) -> str:
        return f"file://{quote(self._roots[0])}"

    @property
    def source(self) -> str | None:
        return self._source

    @property
    def address(self) -> str:
        spill = [("spill", root) for root in self._roots[1:]]
        return f"{self.url}?{urlencode([('session', self._session), *spill])}"

    def put(self, key: str, frames: Frames) -> None:
        self._check_open()
        parts, size = pieces(frames)
        name = _file_name(key)
        first, *others = self._places
        # Taking a name decides who is first, but not between directories: look in the others.
        if (
            others
            and not os.path.exists(f"{first}/{_ALL_IN_FIRST}")
            and any(os.path.exists(f"{place}/{name}") for place in others)
        ):
            return
        last = self._segments[-1]
        for segments in self._segments:
            if segments.place is not first:
                with contextlib.suppress(OSError):
                    os.unlink(f"{first}/{_ALL_IN_FIRST}")
            try:
                if self._write(segments, name, parts, size, or_fail=segments is last):
                    return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise self._translated(error) from error
                if segments is last:
                    free = max(map(_free_bytes, self._places))
                    raise ConnectorFullError(self.url, size, free) from error

    def get(self, key: str) -> Frames | None:
        self._check_open()
        name = _file_name(key)
        try:
            buffer = self._read(name)
            return None if buffer is None else split(buffer)
        except OSError as error:
            if error.errno in _NO_FILE:
                raise CorruptObjectError(self.url, key, "it is no file") from error
            raise self._translated(error) from error
        except ValueError as error:
            raise CorruptObjectError(self.url, key, str(error)) from error

    def exists(self, key: str) -> bool:
        return self._find(key) is not None

    def evict(self, keys: Iterable[str]) -> None:
        self._check_open()
        failure: OSError | None = None
        names = [_file_name(key) for key in keys]
        for segments in self._segments:
            recycled = False
            for name in names:
                try:
                    recycled |= _evict(segments, name)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    failure = failure or error
            if recycled:
                _trim(segments)
        if failure is not None:
            raise self._translated(failure) from failure

    def put_many(self, items: Mapping[str, Frames]) -> None:
        for key, frames in items.items():
            self.put(key, frames)

    def get_many(self, keys: Sequence[str]) -> list[Frames | None]:
        return [self.get(key) for key in keys]

    def keys(self, prefix: str = "") -> list[str]:
        self._check_open()
        try:
            names = os.listdir(self._places[0])
        except OSError as error:
            raise self._translated(error) from error
        return sorted(name for name in names if name.startswith(prefix) and _PLAIN(name))

    def touch(self) -> None:
        self._check_open()
        try:
            _file_durable.touch(self._places[0])
        except OSError as error:
            raise self._translated(error) from error

    def claim(self, name: str) -> FileClaim | None:
        self._check_open()
        try:
            return _file_durable.claim(self._places[0], name)
        except OSError as error:
            raise self._translated(error) from error

    def claimed(self, names: Sequence[str]) -> list[bool]:
        self._check_open()
        try:
            return [_file_durable.is_claimed(self._places[0], name) for name in names]
        except OSError as error:
            raise self._translated(error) from error

    def usage(self) -> Usage:
        self._check_open()
        sizes = []
        for segments in self._segments:
            with contextlib.suppress(FileNotFoundError), os.scandir(segments.place) as entries:
                for entry in entries:
                    if entry.name.startswith(_UNFINISHED):
                        continue
                    with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
                        size = entry.stat().st_size
                        if size >= SEGMENT_FROM and segments.works:
                            size = length_in(entry.path) or 0
                        sizes.append(size)
        return Usage(len(sizes), sum(sizes))

    def release_idle(self, seconds: float = math.inf) -> bool:
        """Give back memory that is kept for the next objects.

        Args:
            seconds: how long nothing has been evicted. Up to a minute, only what is too much beside
                the memory that others have left by now is given back.

        Returns:
            Whether some is kept still.
        """
        kept = False
        for segments in self._segments:
            if seconds < _KEPT_SECONDS:
                kept |= _trim(segments, at_once=True)
            else:
                segments.discard_free()
        return kept

    def close(self) -> None:
        self._closed = True
        if self._remove is not None:
            self._remove()
        self._let_go()

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectorClosedError(self.url)

    def _find(self, key: str) -> str | None:
        self._check_open()
        name = _file_name(key)
        for place in self._places:
            path = f"{place}/{name}"
            if os.path.exists(path):
                return path
        return None

    def _write(
        self,
        segments: Segments,
        name: str,
        parts: Sequence[bytes | memoryview],
        size: int,
        *,
        or_fail: bool,
    ) -> bool:
        """Write an object into one directory, if there is room for it."""
        place = segments.place
        in_segment = segments.works and size >= SEGMENT_FROM
        if in_segment and segments.write(name, parts, size):
            return True
        if not or_fail and size >= _LARGE and size > _free_bytes(place):
            segments.discard_free()
            if size > _free_bytes(place):
                return False
        if in_segment:
            if segments.write_new(name, parts, size):
                return True
            parts = [header(name, size), *parts]
        try:
            _write(place, name, parts)
        except OSError as error:
            if error.errno not in _NO_ROOM or not segments.discard_free():
                raise
            _write(place, name, parts)
        return True

    def _read(self, name: str) -> Buffer | None:
        for segments in self._segments:
            with contextlib.suppress(FileNotFoundError):
                while True:
                    path = f"{segments.place}/{name}"
                    status = os.lstat(path)
                    if status.st_size < SEGMENT_FROM or not segments.works:
                        return _read(path)
                    buffer = segments.read(name, status.st_ino)
                    if buffer is not None:
                        return buffer
        return None

    def _translated(self, error: OSError) -> ConnectorError:
        if error.errno == errno.ENOENT:
            durable = _file_durable.is_directory_name(self._session)
            why = "it was removed, or collected" if durable else "the owner closed it, or died"
            reason = f"its session {self._session} is gone: {why}"
            return ConnectorUnavailableError(self.url, reason)
        return ConnectorUnavailableError(self.url, str(error))


def _durable_root(url: str) -> str:
    """Return the directory that a URL names, for sessions that outlive processes."""
    parts = urlsplit(url)
    options = parse_qs(parts.query)
    # In shared memory, and in a directory for temporary files, nothing is for good; and between two
    # directories, nobody can say which put was the first.
    if not unquote(parts.path) or "spill" in options:
        raise NotDurableError(url)
    return os.path.abspath(unquote(parts.path))


def _attach(cls: type[FileConnector], session: str, roots: list[str]) -> FileConnector:
    """A connector for a session that another process owns (or another object of this one)."""
    connector = cls.__new__(cls)
    connector._source = None
    connector._set_up(session, roots)
    return connector


def _remove(sessions: list[Session], owner: int) -> None:
    if os.getpid() == owner:
        for session in sessions:
            session.remove()


def _let_go(all_segments: list[Segments]) -> None:
    for segments in all_segments:
        segments.close()


def _evict(segments: Segments, name: str) -> bool:
    """Remove an object, if it is there; tell whether its file was kept."""
    path = f"{segments.place}/{name}"
    if segments.works:
        status = os.stat(path, follow_symlinks=False)
        if status.st_size >= SEGMENT_FROM:
            segments.recycle(path, status)
            return True
    os.unlink(path)
    return False


def _usual_roots() -> list[str]:
    """Shared memory where there is any, then the system's directory for temporary files."""
    name = f"proxyexec-{os.geteuid()}"
    places = [tempfile.gettempdir()]
    if os.access(_SHARED_MEMORY, os.W_OK | os.X_OK):
        places.insert(0, _SHARED_MEMORY)
    return [os.path.join(place, name) for place in places]


_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}").fullmatch


def _file_name(key: str) -> str:
    """The key itself where that is a good file name, a digest of it where not."""
    if _PLAIN(key):
        return key
    return "=" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _write(place: str, name: str, parts: Sequence[Buffer]) -> None:
    """Write a file that has no name until it is whole. The first one to get the name wins."""
    try:
        descriptor = os.open(place, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        unnamed = None
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        # This file system knows only files with names (NFS, for one).
        unnamed = f"{place}/{_UNFINISHED}{name}-{os.getpid()}-{new_name()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(unnamed, flags, 0o600)
    try:
        _write_all(descriptor, parts)
        give_name(descriptor, f"{place}/{name}", unnamed)
    finally:
        os.close(descriptor)
        if unnamed is not None:
            os.unlink(unnamed)


def _write_all(descriptor: int, parts: Sequence[Buffer]) -> None:
    views = [memoryview(part) for part in parts]
    position = 0
    while position < len(views):
        written = os.writev(descriptor, views[position : position + _PIECES_AT_ONCE])
        # The kernel may take less than it was given, above 2 GiB always.
        while position < len(views) and written >= views[position].nbytes:
            written -= views[position].nbytes
            position += 1
        if written:
            views[position] = views[position][written:]


def _read(path: str) -> Buffer:
    descriptor = os.open(path, _READ)
    try:
        size = os.fstat(descriptor).st_size
        if size >= _MAPPED_FROM:
            # No further mapping to be had: read it, as one would a small object.
            with contextlib.suppress(OSError):
                return map_private(descriptor, size)
        buffer = bytearray(size)
        rest = memoryview(buffer)
        while rest:
            count = os.readv(descriptor, [rest])
            if not count:
                break
            rest = rest[count:]
        return buffer
    finally:
        os.close(descriptor)


def _trim(segments: Segments, *, at_once: bool = False) -> bool:
    try:
        return segments.trim(functools.partial(_free_bytes, segments.place), at_once=at_once)
    except FileNotFoundError:  # the session is closed, or swept, at the same time
        return False


def _free_bytes(place: str) -> int:
    """Bytes that may still be written below ``place``."""
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    if place.startswith(_SHARED_MEMORY + "/"):
        free = min(free, _available_memory() - _MEMORY_RESERVE)
    return max(free, 0)


def _available_memory() -> int:
    """Bytes of memory that programs can still have, by the kernel's own estimate."""
    with open("/proc/meminfo", "rb") as lines:
        for line in lines:
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 62
