"""Places to keep objects in that can be looked into from outside."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

KINDS = ("tmpfs", "disk", "redis")

# A tmpfs of its own, which can be filled; takes a user who may mount.
MOUNTED = "mounted tmpfs"


class Place(Protocol):
    """Where stores of a test keep their objects, and nobody else's."""

    url: str

    def objects(self) -> list[str]:
        """Names of the objects that are there, of whichever session."""
        ...

    def residue(self) -> list[str]:
        """All that is there: objects, sessions, locks, and whatever else."""
        ...


class DirectoryPlace:
    """A directory, on tmpfs or on disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = f"file://{directory}"

    def objects(self) -> list[str]:
        return [
            name
            for name in self.residue()
            if "/" in name and not any(part.startswith("~") for part in name.split("/")[1:])
        ]

    def residue(self) -> list[str]:
        found = []
        for folder, folders, files in os.walk(self.directory):
            relative = os.path.relpath(folder, self.directory)
            found += [os.path.normpath(f"{relative}/{name}") for name in (*folders, *files)]
        return found


class MountedPlace(DirectoryPlace):
    """A file system of its own, that can be filled by somebody else."""

    def __init__(self, directory: Path) -> None:
        self._filler = directory / "filler"
        directory = directory / "objects"
        directory.mkdir(mode=0o700)
        super().__init__(directory)

    def residue(self) -> list[str]:
        names = super().residue()
        status = os.statvfs(self.directory)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        # Memory of files that have no name any more, but are open or mapped somewhere.
        return names if names or used < 1 << 16 else [f"{used} bytes without a name"]

    def fill(self, left: int) -> None:
        """Take all the room, but for some bytes."""
        with self._filler.open("wb", buffering=0) as file:
            size, some = 0, bytes(1 << 20)
            try:
                while written := file.write(some):
                    size += written
            except OSError as error:
                assert error.errno == errno.ENOSPC
            file.truncate(max(size - left, 0))

    def make_room(self) -> None:
        """Give it back."""
        self._filler.unlink()


class RedisPlace:
    """A Redis server of one's own."""

    def __init__(self, server) -> None:
        self.server = server
        self.url = server.url

    def objects(self) -> list[str]:
        # proxyexec:SESSION:o:KEY
        return [name for name in self.residue() if name.split(":")[2:3] == ["o"]]

    def residue(self) -> list[str]:
        with self.server.client() as client:
            return sorted(name.decode(errors="replace") for name in client.scan_iter(count=1000))


@contextmanager
def place_of(kind: str) -> Iterator[Place]:
    """Make a place of one of :data:`KINDS`."""
    if kind == "redis":
        pytest.importorskip("redis")
        from tests.redis_server import redis_server

        with redis_server() as server:
            yield RedisPlace(server)
        return
    # Not pytest's directory: the path stands in every reference.
    parent = "/dev/shm" if kind == "tmpfs" else "/var/tmp"
    with tempfile.TemporaryDirectory(prefix="pxc-", dir=parent) as directory:
        if kind != MOUNTED:
            yield DirectoryPlace(Path(directory))
            return
        mount = ["mount", "-t", "tmpfs", "-o", "size=512m,mode=700", "tmpfs", directory]
        if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting takes a user who may")
        try:
            yield MountedPlace(Path(directory))
        finally:
            subprocess.run(["umount", "-l", directory], check=True)
