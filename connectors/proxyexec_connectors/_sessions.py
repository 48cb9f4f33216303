"""Directories that live as long as the process that made them.

A session is a directory ``<root>/<id>`` of mode 0700 beside a lock file ``<root>/<id>.lock``.
Its owner holds an exclusive ``flock`` on the lock file; the kernel lets go of it when the owner
dies, however it dies. Whoever opens a session in the same root first *sweeps*: a lock that can
be taken belongs to nobody alive, so its session is removed.

Others may be able to rename what is above the root, and put something of theirs in its place. So
the root is looked at, and the session made in it, by one descriptor: a session is in a directory
that only we write to, or it is not made. Its name then is a secret, as nobody else can list that.

Why ``flock``: POSIX record locks never conflict within one process (a process could sweep its
own sessions) and are lost when any descriptor of the file is closed. The trap of ``flock`` is
that forked children inherit it, so that an orphaned worker would keep a dead owner's session
alive; therefore every child closes its copy right after the fork.

This module moves no objects.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator

from proxyexec_connectors import _owners
from proxyexec_connectors._segments import discard_all
from proxyexec_connectors.errors import UnsafeDirectoryError

__all__ = [
    "SHARED",
    "Session",
    "check_is_ours",
    "close",
    "close_in_children",
    "is_held",
    "is_name",
    "known_roots",
    "new_name",
    "read_lock",
    "remove_directory",
    "secure",
    "session_in_place",
    "sweep",
]

_logger = logging.getLogger("proxyexec.connectors.file")

# How names of sessions start, what the names of their locks end in, and what is added to the
# name of a session that is being removed.
_PREFIX = "session-"
_LOCK = ".lock"
_GOING = "~"

SHARED = b"shared"
"""What the lock of a session says that nobody owns."""

_IS_NAME = re.compile(re.escape(_PREFIX) + "[0-9a-f]{16}").fullmatch
_IS_LOCK = re.compile(re.escape(_PREFIX) + "[0-9a-f]{16}" + re.escape(_LOCK)).fullmatch


class Session:
    """A new session below ``root``, owned by this process.

    Args:
        root: the directory; made when it is missing, and then removed with the session.
        name: the session's id.
        ours: whether nobody but sessions can want ``root``, so that the last one removes it.
        shared: whether other processes may be in the session as well. Then nobody owns it: it lives
            as long as one of them does, and the last one to remove it does so.

    Raises:
        UnsafeDirectoryError: ``root`` belongs to another user, or others may write into it.
        OSError: ``root`` cannot be made or written to.
    """

    def __init__(self, root: str, name: str, *, ours: bool, shared: bool = False) -> None:
        self.root = root
        self.path = os.path.join(root, name)
        self._name = name
        self._removes_root = ours
        self._shared = shared
        self._descriptor = self._create()
        _held.add(self._descriptor)

    def _create(self) -> int:
        # Another session's remove() may take an empty root away between our steps: try again.
        for _ in range(100):
            with contextlib.suppress(FileNotFoundError):
                root, made = _secure(self.root, ours=self._removes_root)
                self._removes_root |= made
                try:
                    sweep(self.root)
                    descriptor = self._lock(root)
                    if descriptor is not None:
                        try:
                            self._make(root)
                            self._sign(descriptor)
                        except BaseException:
                            os.close(descriptor)
                            raise
                        return descriptor
                finally:
                    os.close(root)
        raise UnsafeDirectoryError(self.root, "it vanishes as often as it is made")

    def _make(self, root: int) -> None:
        try:
            os.mkdir(self._name, 0o700, dir_fd=root)
        except FileExistsError:
            if not self._shared:
                raise
            # Made by one of us, or by somebody who could write to the root at some time.
            _check(self.path, os.stat(self._name, dir_fd=root, follow_symlinks=False))

    def _lock(self, root: int) -> int | None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._name + _LOCK, flags, 0o600, dir_fd=root)
        try:
            fcntl.flock(
                descriptor, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
            )
            # Between open and flock a sweeper may have taken the lock, found it to be nobody's,
            # and unlinked the file: then what we hold guards nothing.
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except OSError as error:
            if error.errno in _NO_LOCKS:  # no locks here: nothing is swept here either
                return descriptor
            if error.errno != errno.EWOULDBLOCK:
                os.close(descriptor)
                raise
        os.close(descriptor)
        return None

    def _sign(self, descriptor: int) -> None:
        """Say whose it is. That is for people; what is swept is decided by the lock."""
        owner = SHARED if self._shared else _owners.here().written()
        with contextlib.suppress(OSError):  # there may be no room for it
            os.pwrite(descriptor, owner, 0)

    def remove(self) -> None:
        """Remove the directory and all in it, then the lock, then the root if nobody needs it."""
        if self._shared and not self._is_last():
            close(self._descriptor)
            return
        _remove(self.path)
        close(self._descriptor)
        if self._removes_root:
            with contextlib.suppress(OSError):  # others are in it, or have removed it
                os.rmdir(self.root)

    def _is_last(self) -> bool:
        if self._descriptor not in _held:  # in a forked child
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        # Where it has been removed already, what is there by now is others'.
        return os.fstat(self._descriptor).st_nlink > 0


def session_in_place(usual: str, name: str) -> Session:
    """Open a session in a directory of ours, in a place that everybody may write to.

    Anybody can guess what our directory is called, and take the name. Then another directory is
    used, whose name nobody can know before it is there.

    Args:
        usual: the directory, if it is ours or can be.
        name: the session's id.

    Raises:
        OSError: nothing can be made in that place.
    """
    for root in known_roots(usual):
        try:
            return Session(root, name, ours=True)
        except UnsafeDirectoryError as refusal:
            _logger.info("another directory is used: %s", refusal)
    return Session(f"{usual}-{secrets.token_hex(8)}", name, ours=True)


def known_roots(usual: str) -> Iterator[str]:
    """Return the directories of ours that there are in the place of the usual one, and that."""
    yield usual
    # What others of our processes use: so that what dead ones leave there is swept.
    place, name = os.path.split(usual)
    is_further = re.compile(re.escape(name) + "-[0-9a-f]{16}").fullmatch
    further = []
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        further = [entry for entry in entries if is_further(entry.name)]
    for entry in further:
        with contextlib.suppress(FileNotFoundError):
            if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                yield entry.path


def is_name(name: str) -> bool:
    """Tell whether something is the id of a session, and leads nowhere else."""
    return _IS_NAME(name) is not None


def read_lock(path: str) -> tuple[bytes, float] | None:
    """Return what the lock of the session at ``path`` says, and when that was written."""
    try:
        descriptor = os.open(path + _LOCK, _LOOK)
    except OSError:
        return None
    try:
        return os.pread(descriptor, 1000, 0), os.fstat(descriptor).st_mtime
    except OSError:  # no file
        return None
    finally:
        os.close(descriptor)


def is_held(path: str) -> bool | None:
    """Tell whether somebody holds the lock of the session at ``path``.

    This takes the lock for a moment, shared, if nobody does: a sweeper that comes along just then
    leaves a dead session to the next one. ``None`` where it cannot be known.
    """
    try:
        descriptor = os.open(path + _LOCK, _LOOK)
    except OSError:
        return None
    close_in_children(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here
        return None
    else:
        return False
    finally:
        close(descriptor)


def check_is_ours(path: str) -> None:
    """See to it that a directory that somebody else may have made, if it is there, is ours.

    Raises:
        UnsafeDirectoryError: others may have put there what they like.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        _check(path, os.stat(path, follow_symlinks=False))


def secure(root: str) -> int:
    """Open a directory that only we write to, made if it is missing.

    Raises:
        UnsafeDirectoryError: it belongs to another user, or others may write into it.
    """
    return _secure(root, ours=False)[0]


def remove_directory(path: str) -> None:
    """Remove a session, whoever is in it."""
    _remove(path)


def close_in_children(descriptor: int) -> None:
    """Have a lock's descriptor closed in each forked child, until :func:`close`."""
    _held.add(descriptor)


def close(descriptor: int) -> None:
    """Close such a descriptor, unless this is a child, where it is closed already."""
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def sweep(root: str) -> None:
    """Remove the sessions below ``root`` whose owners are dead."""
    for entry in os.listdir(root):
        # Users keep other things in the directories that they give us, and some end in .lock.
        if _IS_LOCK(entry):
            _sweep_one(os.path.join(root, entry))


def _sweep_one(lock: str) -> None:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # gone already, or not ours to judge
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            _remove(lock.removesuffix(_LOCK))
            _logger.info("removed what a dead process left: %s", lock.removesuffix(_LOCK))
    except OSError:  # its owner lives, or locks do not work here
        pass
    finally:
        os.close(descriptor)


def new_name() -> str:
    """Make up a session id that nobody else has."""
    return _PREFIX + secrets.token_hex(8)


def _remove(path: str) -> None:
    """Remove a session's directory, and then its lock, which the caller holds."""
    # Workers may be writing. Without the name, they fail; with it, they could go on adding
    # files for ever.
    going = path + _GOING
    with contextlib.suppress(OSError):
        os.rename(path, going)
    discard_all(going)
    shutil.rmtree(going, ignore_errors=True)
    # What could not be removed is left to the next sweep, which finds it by its lock.
    if not (os.path.lexists(path) or os.path.lexists(going)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + _LOCK)


def _secure(root: str, *, ours: bool) -> tuple[int, bool]:
    """Open a directory that only we write to; tell also if we made it."""
    made = False
    if not os.path.isdir(root):
        with contextlib.suppress(FileExistsError):
            _make_directory(root)
            made = True
    # A link may be what a user wants, but nobody has a reason to put one in our place.
    descriptor = os.open(root, os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if ours else 0))
    try:
        _check(root, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, made


def _make_directory(path: str) -> None:
    """Make a directory, and those above it that are missing, for nobody else to write to."""
    missing = [path]
    while not os.path.isdir(above := os.path.dirname(missing[-1])):
        missing.append(above)
    for directory in reversed(missing[1:]):
        with contextlib.suppress(FileExistsError):
            # Whatever the umask allows: who may rename what is in it, may replace that.
            os.mkdir(directory, 0o755)
    os.mkdir(path, 0o700)


def _check(path: str, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeDirectoryError(path, "it is not a directory")
    if status.st_uid != os.geteuid():
        raise UnsafeDirectoryError(path, f"it belongs to user {status.st_uid}; choose another one")
    if status.st_mode & 0o022:
        raise UnsafeDirectoryError(path, f"others may write into it; run: chmod go-w {path}")


# Opens nothing that has to be waited for.
_LOOK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

# Descriptors of the locks that this process holds.
_held: set[int] = set()


def _let_go_after_fork() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_after_fork)
