"""Directories that live as long as the process that made them.

A session is a directory ``<root>/<id>`` of mode 0700 beside a lock file ``<root>/<id>.lock``.
Its owner holds an exclusive ``flock`` on the lock file; the kernel lets go of it when the owner
dies, however it dies. Whoever opens a session in the same root first *sweeps*: a lock that can
be taken belongs to nobody alive, so its session is removed.

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
import os
import re
import secrets
import shutil
import stat

from proxyexec_connectors._segments import discard_all
from proxyexec_connectors.errors import UnsafeDirectoryError

__all__ = ["Session", "close", "close_in_children", "remove_directory", "sweep"]

# How names of sessions start, what the names of their locks end in, and what is added to the
# name of a session that is being removed.
_PREFIX = "session-"
_LOCK = ".lock"
_GOING = "~"

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
        self._removes_root = ours
        self._shared = shared
        self._descriptor = self._create()
        _held.add(self._descriptor)

    def _create(self) -> int:
        # Another session's remove() may take an empty root away between our steps: try again.
        for _ in range(100):
            with contextlib.suppress(FileNotFoundError):
                self._removes_root |= _secure(self.root, ours=self._removes_root)
                sweep(self.root)
                descriptor = self._lock()
                if descriptor is not None:
                    try:
                        with contextlib.suppress(*((FileExistsError,) if self._shared else ())):
                            os.mkdir(self.path, 0o700)
                    except BaseException:
                        os.close(descriptor)
                        raise
                    return descriptor
        raise UnsafeDirectoryError(self.root, "it vanishes as often as it is made")

    def _lock(self) -> int | None:
        lock = self.path + _LOCK
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
        return True


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


def _secure(root: str, *, ours: bool) -> bool:
    """See to it that ``root`` is a directory that only we write to; tell if we made it."""
    made = False
    if not os.path.isdir(root):
        with contextlib.suppress(FileExistsError):
            os.makedirs(root, 0o700)
            made = True
    # A link may be what a user wants, but nobody has a reason to put one in our place.
    status = os.stat(root, follow_symlinks=not ours)
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeDirectoryError(root, "it is not a directory")
    if status.st_uid != os.geteuid():
        raise UnsafeDirectoryError(root, f"it belongs to user {status.st_uid}; choose another one")
    if status.st_mode & 0o022:
        raise UnsafeDirectoryError(root, f"others may write into it; run: chmod go-w {root}")
    return made


_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

# Descriptors of the locks that this process holds.
_held: set[int] = set()


def _let_go_after_fork() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_after_fork)
