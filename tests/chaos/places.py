"""Places to keep objects in that can be looked into from outside."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

KINDS = ("tmpfs", "disk", "redis")


class Place(Protocol):
    """Where stores of a test keep their objects, and nobody else's."""

    url: str

    def objects(self) -> list[str]:
        """Names of the objects that are there, of whichever session."""
        ...

    def residue(self) -> list[str]:
        """All that is there: objects, sessions, locks, and whatever else."""
        ...

    def size(self) -> int:
        """Bytes that all of it takes."""
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

    def size(self) -> int:
        total = 0
        for name in self.residue():
            try:
                status = os.lstat(self.directory / name)
            except FileNotFoundError:
                continue
            total += status.st_blocks * 512
        return total


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

    def size(self) -> int:
        with self.server.client() as client:
            return sum(client.memory_usage(name) or 0 for name in client.scan_iter(count=1000))


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
        yield DirectoryPlace(Path(directory))
