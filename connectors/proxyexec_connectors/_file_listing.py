"""What the file connector has stored, seen from outside: directories are read, and nothing else.

What a session's directory holds is said in ``file``, ``_segments`` and ``_file_durable``; who owns
one, in its lock (see ``_sessions``). A session may be in several directories: those that the place
names, and for the usual place also those that stand in for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

from proxyexec_connectors import _file_durable, _sessions
from proxyexec_connectors._layout import beginnings
from proxyexec_connectors._owners import Owner
from proxyexec_connectors._segment import HEADER_BYTES, length_in, object_in
from proxyexec_connectors._segments import SEGMENT_FROM, Segments
from proxyexec_connectors.errors import ConnectorUnavailableError, CorruptObjectError
from proxyexec_connectors.listing import ObjectStart, StoredObject, StoredSession

__all__ = ["FileListing", "objects_in"]

# What is read of an object to say how it begins.
_START_BYTES = 64 * 1024

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

# What is no object has a name that begins so, or in a directory of copies ends so.
_UNFINISHED = "~"

# What objects' files are called: by their keys, or by digests of these.
_IS_OBJECT = re.compile(r"[A-Za-z0-9_=][A-Za-z0-9_.+-]{0,199}").fullmatch


class FileListing:
    """See :class:`proxyexec_connectors.listing.Listing`.

    Args:
        roots: directories that sessions are in.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots

    @property
    def url(self) -> str:
        return f"file://{quote(self._roots[0])}"

    def sessions(self) -> list[StoredSession]:
        places: defaultdict[str, list[str]] = defaultdict(list)
        for root in self._roots:
            for name in self._names(root):
                places[name].append(os.path.join(root, name))
        with self._reading():
            found = [_told(name, where) for name, where in sorted(places.items())]
        return [one for one in found if one is not None]

    def objects(self, session: str) -> list[StoredObject]:
        if not _is_session(session):
            return []
        places = [os.path.join(root, session) for root in self._roots]
        with self._reading():
            return sorted(objects_in(places))

    def start(self, session: str, key: str) -> ObjectStart | None:
        if not (_is_session(session) and _IS_OBJECT(key)):
            return None
        for root in self._roots:
            with contextlib.suppress(FileNotFoundError):
                path = os.path.join(root, session, key)
                try:
                    return ObjectStart(*beginnings(_beginning(path, key)))
                except ValueError as error:
                    raise CorruptObjectError(self.url, key, str(error)) from error
                except FileNotFoundError:
                    raise
                except OSError as error:
                    raise ConnectorUnavailableError(self.url, str(error)) from error
        return None

    def close(self) -> None:
        pass

    def _names(self, root: str) -> Iterator[str]:
        with self._reading():
            try:
                entries = os.listdir(root)
            except FileNotFoundError:
                return
        yield from filter(_is_session, entries)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Say of what somebody else keeps to himself, for one, that it cannot be looked at."""
        try:
            yield
        except OSError as error:
            raise ConnectorUnavailableError(self.url, str(error)) from error


def objects_in(places: Iterable[str]) -> list[StoredObject]:
    """Return the objects in the directories of one session."""
    return [
        StoredObject(name, size, since)
        for place in places
        for name, size, since in _files(place)
        if since is not None
    ]


class _File(NamedTuple):
    name: str
    bytes: int
    # Of an object, when it got its name; ``None`` for what is none.
    since: float | None


def _told(name: str, places: Sequence[str]) -> StoredSession | None:
    files = [file for place in places for file in _files(place)]
    sizes = [file.bytes for file in files if file.since is not None]
    held = len(sizes), sum(sizes), sum(file.bytes for file in files if file.since is None)
    if _file_durable.is_directory_name(name):
        root, _ = os.path.split(places[0])
        known = _file_durable.about(root, name.removeprefix(_file_durable.directory_name("")), 0, 0)
        created = None if known is None else known.created
        return StoredSession(name, "durable", "", None, None, created, *held)
    said = None
    for place in places:
        said = said or _sessions.read_lock(place)
    if said is None:  # it has been removed meanwhile, or was made by something else
        if not (files and any(map(os.path.lexists, places))):
            return None
        return StoredSession(name, "session", "unknown", *_NOBODY, *held)
    written, since = said
    if written == _sessions.SHARED:
        return StoredSession(name, "copies", "", None, None, since, *held)
    owner = Owner.read(written)
    state = _state(owner, places[0])
    if owner is None:
        return StoredSession(name, "session", state, None, None, since, *held)
    return StoredSession(name, "session", state, owner.host, owner.pid, owner.since, *held)


def _state(owner: Owner | None, place: str) -> str:
    is_running = None if owner is None else owner.is_running()
    if is_running is None:
        is_running = _sessions.is_held(place)
        if is_running is False and owner is not None:
            # Of another machine: its locks may be seen here, or not.
            is_running = None
    return {True: "alive", False: "dead", None: "unknown"}[is_running]


def _files(place: str) -> Iterator[_File]:
    works = Segments(place).works
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                status = entry.stat(follow_symlinks=False)
                if _UNFINISHED in (entry.name[0], entry.name[-1]):
                    yield from _idle(entry, status)
                elif stat.S_ISREG(status.st_mode):
                    size = status.st_size
                    if status.st_size >= SEGMENT_FROM and works:
                        # A copy of a remote object is no segment.
                        size = length_in(entry.path) or size
                    yield _File(entry.name, size, status.st_ctime)


def _idle(entry: os.DirEntry[str], status: os.stat_result) -> Iterator[_File]:
    """What belongs to no object."""
    if not stat.S_ISDIR(status.st_mode):
        yield _File(entry.name, status.st_size, None)
        return
    with contextlib.suppress(FileNotFoundError), os.scandir(entry.path) as entries:
        for one in entries:
            with contextlib.suppress(FileNotFoundError):
                yield _File(one.name, one.stat(follow_symlinks=False).st_size, None)


def _beginning(path: str, name: str) -> bytes:
    descriptor = os.open(path, _READ)
    try:
        start = os.pread(descriptor, HEADER_BYTES + _START_BYTES, 0)
    finally:
        os.close(descriptor)
    found = object_in(start)
    if found is not None:
        if found[0] != name:  # evicted between the two, and written anew
            raise FileNotFoundError(path)
        start = start[HEADER_BYTES:]
    return start[:_START_BYTES]


def _is_session(name: str) -> bool:
    return _sessions.is_name(name) or _file_durable.is_directory_name(name)


# No host, no process, no time.
_NOBODY = (None, None, None)
