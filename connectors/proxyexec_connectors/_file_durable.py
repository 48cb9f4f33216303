"""Durable sessions of the file connector: directories that outlive processes, and claims in them.

A durable session is a directory ``<root>/durable-<name>``, of mode 0700, with files beside those
of its objects:

- ``~about`` says in JSON when it was made, and its age; it was last touched when the session was.
- ``~claim-<name>`` is a claim: its holder has an exclusive ``flock`` on it, which the kernel drops
  when he dies. Forked children close their copy of it (see ``_sessions``). What is in the file
  says on which machine the holder is. Where a directory is shared by machines whose locks do not
  know of each other, the lock of a claim from another machine tells nothing; so holders touch the
  file, and it counts as held until it has not changed for a while by the watch of who looks.

Nobody sweeps a durable session. Who removes one takes its name away first, so that nobody can add
to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator

from proxyexec_connectors import _beats, _sessions
from proxyexec_connectors._segments import discard_all
from proxyexec_connectors.durable import DEFAULT_MAX_AGE, DurableSession, check_name
from proxyexec_connectors.errors import SessionMissingError

__all__ = [
    "FileClaim",
    "about",
    "claim",
    "directory_name",
    "is_claimed",
    "is_directory_name",
    "make",
    "names",
    "remove",
    "touch",
]

_PREFIX = "durable-"
_ABOUT = "~about"
_CLAIM = "~claim-"
_GOING = "~going-"

# How often the holder of a claim touches it, and for how long it counts as held unchanged, where
# the holder is on another machine.
_BEAT_SECONDS = 5.0
_FOREIGN_SECONDS = 60.0


def directory_name(name: str) -> str:
    """Return what the directory of a durable session is called."""
    return _PREFIX + name


def is_directory_name(directory: str) -> bool:
    """Tell whether something is the name of a durable session's directory."""
    if not directory.startswith(_PREFIX):
        return False
    try:
        check_name(directory.removeprefix(_PREFIX))
    except ValueError:
        return False
    return True


def names(root: str) -> Iterator[str]:
    """Return the names of the durable sessions below a directory."""
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(os.listdir(root)):
            if is_directory_name(entry):
                yield entry.removeprefix(_PREFIX)


def make(root: str, name: str, max_age: float | None, *, create: bool, url: str) -> None:
    """Make a durable session if it is not there, and touch it.

    Raises:
        SessionMissingError: it is not there, and is not to be made.
        UnsafeDirectoryError: somebody else may write to it.
    """
    place = os.path.join(root, directory_name(name))
    if create or os.path.isdir(root):
        os.close(_sessions.secure(root))
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(place, 0o700)
    _sessions.check_is_ours(place)
    if not os.path.isdir(place):
        raise SessionMissingError(url, name)
    found = _read_about(place)
    if found is None:
        facts = {"created": time.time(), "max_age": max_age or DEFAULT_MAX_AGE}
        _write_about(place, facts, anew=False)
    elif max_age is not None and max_age != found["max_age"]:
        _write_about(place, {**found, "max_age": max_age}, anew=True)
    touch(place)


def touch(place: str) -> None:
    """Say that a session is used."""
    os.utime(f"{place}/{_ABOUT}")


def about(root: str, name: str, objects: int, size: int) -> DurableSession | None:
    """Return what is known of a session; ``None`` if it is going."""
    place = os.path.join(root, directory_name(name))
    facts = _read_about(place)
    try:
        used = os.stat(place if facts is None else f"{place}/{_ABOUT}").st_mtime
    except FileNotFoundError:
        return None
    facts = facts or {"created": used, "max_age": DEFAULT_MAX_AGE}
    return DurableSession(name, facts["created"], used, facts["max_age"], objects, size)


def remove(root: str, name: str, *, only_expired: bool) -> bool:
    """Remove a session; tell whether there was one, and it was to be removed."""
    place = os.path.join(root, directory_name(name))
    if only_expired:
        known = about(root, name, 0, 0)
        if known is None or not known.is_expired() or _has_claims(place):
            return False
    going = f"{place}{_GOING}{secrets.token_hex(4)}"
    try:
        # Without the name, whoever is still writing there fails.
        os.rename(place, going)
    except FileNotFoundError:
        _remove_remains(root, name)
        return False
    _clear(going)
    _remove_remains(root, name)
    return True


class FileClaim:
    """A claim that this process has; see :class:`proxyexec_connectors.durable.Claim`."""

    interval = _BEAT_SECONDS

    def __init__(self, place: str, name: str, descriptor: int) -> None:
        self.name = name
        self._place = place
        self._descriptor = descriptor
        self._process = os.getpid()
        self._held = True
        _beats.hold(self)

    def beat(self) -> None:
        if self._held:
            with contextlib.suppress(FileNotFoundError):  # the session was removed
                os.utime(f"{self._place}/{_CLAIM}{self.name}")
                touch(self._place)

    def release(self) -> None:
        if not self._held or self._process != os.getpid():
            return
        self._held = False
        _beats.let_go(self)
        # Whoever opened it before this finds that it has no name any more.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._place}/{_CLAIM}{self.name}")
        # A child that was forked by other means than Python's may have a copy of the descriptor.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        _sessions.close(self._descriptor)


def claim(place: str, name: str) -> FileClaim | None:
    """Take a claim, unless somebody has it."""
    path = f"{place}/{_CLAIM}{name}"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        _sessions.close_in_children(descriptor)
        taken = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two, its holder may have let go of it, and the name gone.
            if not os.fstat(descriptor).st_nlink:
                continue
            if _is_held_elsewhere(descriptor):
                return None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _machine().encode(), 0)
            taken = True
            return FileClaim(place, name, descriptor)
        except BlockingIOError:
            return None
        finally:
            if not taken:
                _sessions.close(descriptor)


def is_claimed(place: str, name: str) -> bool:
    """Tell whether somebody who lives has a claim."""
    try:
        descriptor = os.open(f"{place}/{_CLAIM}{name}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
    _sessions.close_in_children(descriptor)
    try:
        # Shared, so that several who look do not take each other for holders.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return _is_held_elsewhere(descriptor)
    except BlockingIOError:
        return True
    finally:
        _sessions.close(descriptor)


def _is_held_elsewhere(descriptor: int) -> bool:
    """Tell whether a claim whose lock we have is held on a machine whose locks we do not see."""
    holder = os.pread(descriptor, 100, 0).decode(errors="replace")
    if holder in ("", _machine()):
        return False
    status = os.fstat(descriptor)
    file = status.st_dev, status.st_ino
    beat, seen = _seen.get(file, (0, 0.0))
    now = time.monotonic()
    if beat != status.st_mtime_ns:
        _seen[file] = status.st_mtime_ns, now
        return True
    if now - seen < _FOREIGN_SECONDS:
        return True
    _seen.pop(file, None)
    return False


def _has_claims(place: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        for entry in os.listdir(place):
            if entry.startswith(_CLAIM) and is_claimed(place, entry.removeprefix(_CLAIM)):
                return True
    return False


def _machine() -> str:
    """What the machines whose processes see each other's locks have in common."""
    global _machine_name
    if _machine_name is None:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            _machine_name = boot.read().strip()
    return _machine_name


def _read_about(place: str) -> dict[str, float] | None:
    try:
        with open(f"{place}/{_ABOUT}", encoding="utf-8") as file:
            facts = json.load(file)
        return {name: float(facts[name]) for name in ("created", "max_age")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_about(place: str, facts: dict[str, float], *, anew: bool) -> None:
    unfinished = f"{place}/{_ABOUT}-{secrets.token_hex(4)}"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(facts, file)
    if anew:
        os.rename(unfinished, f"{place}/{_ABOUT}")
        return
    try:
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, f"{place}/{_ABOUT}")
    finally:
        os.unlink(unfinished)


def _remove_remains(root: str, name: str) -> None:
    """Remove what somebody was removing when he died."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.listdir(root):
            if entry.startswith(f"{directory_name(name)}{_GOING}"):
                _clear(os.path.join(root, entry))


def _clear(going: str) -> None:
    discard_all(going)
    shutil.rmtree(going, ignore_errors=True)


_machine_name: str | None = None

# By the files of claims from other machines: when they last changed, and since when we know.
_seen: dict[tuple[int, int], tuple[int, float]] = {}
