"""What goes into the directory of a call before it runs, and what comes out of it.

An archive is unpacked so that nothing of it ends up anywhere else. Outputs are taken by name.
"""

from __future__ import annotations

import glob
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from proxyexec.errors import ArchiveError

__all__ = ["Collected", "collect", "unpack"]


class Collected(NamedTuple):
    """Outputs of a call."""

    outputs: tuple[str, ...]
    """Paths of what there is, relative to the directory."""
    missing: tuple[str, ...]
    """The patterns that stand for nothing there is."""


class _Member(NamedTuple):
    name: str
    kind: str
    """``file``, ``directory``, ``link`` (a symbolic one), or what else it is."""
    mode: int
    open: Callable[[], IO[bytes] | None]
    target: str = ""
    """Where a link leads to."""


def unpack(archive: str, directory: str) -> None:
    """Unpack an archive, of the tar or zip format, in a directory.

    Symbolic links are made after everything else, and none leads out of the directory; neither
    owners nor special bits of modes are taken over.

    Raises:
        ArchiveError: it is no such archive, or a member is not to be in the directory. What comes
            before that one may have been unpacked.
        OSError: something cannot be written.
    """
    import tarfile  # noqa: PLC0415 - most calls have no archive
    import zipfile  # noqa: PLC0415 - as above
    import zlib  # noqa: PLC0415 - as above

    root = os.path.realpath(directory)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                _unpack(archive, _zipped(zipped), root)
            return
        with tarfile.open(archive) as tarred:
            _unpack(archive, _tarred(tarred), root)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ArchiveError(archive, None, f"it cannot be read: {error}") from error
    except (NotImplementedError, RuntimeError) as error:  # encrypted, or packed in some new way
        raise ArchiveError(archive, None, f"it cannot be unpacked: {error}") from error


def _unpack(archive: str, members: Iterator[_Member], root: str) -> None:
    links: list[tuple[_Member, str]] = []
    for member in members:
        path = _place(archive, member.name, root)
        if member.kind == "link":
            links.append((member, path))
        elif member.kind == "directory":
            os.makedirs(path, exist_ok=True)
        elif member.kind == "file":
            _write(archive, member, path)
        else:
            raise ArchiveError(archive, member.name, f"it is a {member.kind}")
    made: list[str] = []
    try:
        for member, path in links:
            _make_room(archive, member.name, path)
            os.symlink(member.target, path)
            made.append(path)
        # Only now is it known where each leads: by way of the others, that is.
        for member, path in links:
            if not _is_within(os.path.realpath(path), root):
                raise ArchiveError(archive, member.name, f"a link to {member.target!r}, outside")
    except BaseException:
        for path in made:
            os.unlink(path)
        raise


def _place(archive: str, name: str, root: str) -> str:
    """Return where a member is to be."""
    parts = name.split("/")
    if os.path.isabs(name) or os.pardir in parts or "\0" in name:
        raise ArchiveError(archive, name, "it is not to be in the directory")
    path = os.path.normpath(os.path.join(root, name))
    # There may be links that lead out of it, from before.
    if path != root and not _is_within(os.path.realpath(os.path.dirname(path)), root):
        raise ArchiveError(archive, name, "the way to it leads out of the directory")
    return path


def _write(archive: str, member: _Member, path: str) -> None:
    _make_room(archive, member.name, path)
    source = member.open()
    if source is None:
        raise ArchiveError(archive, member.name, "it has no contents")
    mode = member.mode & 0o777 | 0o600
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with source, open(os.open(path, flags, mode), "wb") as file:
        shutil.copyfileobj(source, file)


def _make_room(archive: str, name: str, path: str) -> None:
    """Have a file's directory there, and nothing in its place."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ArchiveError(archive, name, f"there is a directory in its place: {error}") from error


def _is_within(path: str, root: str) -> bool:
    return path == root or path.startswith(os.path.join(root, ""))


def _tarred(archive: Any) -> Iterator[_Member]:
    for one in archive:
        if one.issym():
            kind = "link"
        elif one.isdir():
            kind = "directory"
        elif one.isfile() or one.islnk():  # a hard link is written as the file that it is
            kind = "file"
        else:
            kind = "device, or a pipe"

        def contents(member: Any = one) -> Any:
            try:
                return archive.extractfile(member)
            except KeyError:  # of a hard link
                return None

        yield _Member(one.name, kind, one.mode, contents, one.linkname)


def _zipped(archive: Any) -> Iterator[_Member]:
    for one in archive.infolist():
        mode = one.external_attr >> 16
        kind, target = "file", ""
        if one.is_dir():
            kind = "directory"
        elif stat.S_ISLNK(mode):
            kind, target = "link", os.fsdecode(archive.read(one))
        elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            kind = "device, or a pipe"

        def contents(member: Any = one) -> Any:
            return archive.open(member)

        # Archives of other systems say nothing of modes.
        yield _Member(one.filename, kind, mode or 0o644, contents, target)


def collect(patterns: Sequence[str], directory: str, into: str, *, move: bool) -> Collected:
    """Take outputs out of a directory, into another one, which is made.

    What a pattern stands for is taken with all that is in it, but for what lies elsewhere, behind
    a symbolic link: that counts as missing.

    Args:
        patterns: as in :func:`glob.glob`, relative to the directory.
        directory: of the call.
        into: where they go.
        move: whether the directory can do without them.
    """
    root = os.path.realpath(directory)
    os.mkdir(into, 0o700)
    outputs: dict[str, None] = {}
    missing: list[str] = []
    for pattern in patterns:
        found = [
            os.path.normpath(one)
            for one in sorted(glob.glob(pattern, root_dir=root, recursive=True))
            if _is_within(os.path.realpath(os.path.join(root, one)), root)
        ]
        if not found:
            missing.append(pattern)
        for one in found:
            outputs.update(dict.fromkeys(_files_at(root, one)))
    # Links first, while there is what they lead to.
    for one in sorted(outputs, key=lambda one: not os.path.islink(os.path.join(root, one))):
        place = os.path.join(into, one)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        source = os.path.join(root, one)
        if move and not os.path.islink(source):
            shutil.move(source, place)
        else:
            shutil.copy2(source, place)
    return Collected(tuple(outputs), tuple(missing))


def _files_at(root: str, path: str) -> Iterator[str]:
    """Return the files that there are at a path, relative to a root."""
    whole = os.path.join(root, path)
    if os.path.isfile(whole):
        yield path
    elif os.path.isdir(whole):
        for folder, folders, files in os.walk(whole):
            folders.sort()
            for name in sorted(files):
                file = os.path.join(folder, name)
                if os.path.isfile(file) and _is_within(os.path.realpath(file), root):
                    yield os.path.relpath(file, root)
