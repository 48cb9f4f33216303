"""What somebody does to an object in the place where it is stored, behind the connector's back.

An object is one run of bytes there, in whichever form; see ``proxyexec_connectors._layout``.
"""

from __future__ import annotations

import os
from pathlib import Path

from proxyexec import PickleSerializer
from proxyexec_connectors._layout import pieces
from proxyexec_connectors._segment import HEADER_BYTES, header, object_in
from tests.chaos.places import DirectoryPlace, Place


def run_in(place: Place, key: str) -> bytes:
    """The bytes of an object."""
    return (
        _in_file(_path(place, key)) if isinstance(place, DirectoryPlace) else _in_redis(place, key)
    )


def put_run(place: Place, key: str, run: bytes) -> None:
    """Put other bytes into its place."""
    if isinstance(place, DirectoryPlace):
        _put_into_file(_path(place, key), run)
    else:
        _put_into_redis(place, key, run)


def flip(place: Place, key: str, position: int) -> None:
    """Change one bit of it."""
    run = bytearray(run_in(place, key))
    run[position] ^= 1 << 3
    put_run(place, key, bytes(run))


def swap(place: Place, one: str, other: str) -> None:
    """Let two objects change their places."""
    runs = run_in(place, one), run_in(place, other)
    put_run(place, one, runs[1])
    put_run(place, other, runs[0])


def truncate(place: Place, key: str) -> None:
    """Take the second half of it away, and leave what is said of its length."""
    if isinstance(place, DirectoryPlace):
        path = _path(place, key)
        os.truncate(path, os.path.getsize(path) // 2)
        return
    name = _name(place, key)
    with place.server.client() as client:
        if client.type(name) == b"string":
            value = client.get(name)
            client.set(name, value[: len(value) // 2], keepttl=True)
        else:
            client.hdel(name, str(client.hlen(name) - 2))


def run_of(obj: object) -> bytes:
    """The bytes that a store would make of an object."""
    return b"".join(pieces(PickleSerializer().dumps(obj))[0])


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self):
        return open, (self.trace, "x")


def everything_in(place: Place) -> bytes:
    """All bytes that are there, and all names."""
    if isinstance(place, DirectoryPlace):
        paths = [place.directory / name for name in place.residue()]
        contents = [path.read_bytes() for path in paths if path.is_file()]
        return b"\n".join([*(str(path).encode() for path in paths), *contents])
    found: list[bytes] = []
    with place.server.client() as client:
        for name in client.scan_iter(count=1000):
            found.append(name)
            kind = client.type(name)
            if kind == b"string":
                found.append(client.get(name))
            elif kind == b"hash":
                found += [part for item in client.hgetall(name).items() for part in item]
            elif kind == b"set":
                found += client.smembers(name)
    return b"\n".join(found)


def _path(place: DirectoryPlace, key: str) -> Path:
    [path] = place.directory.glob(f"*/{key}")
    return path


def _in_file(path: Path) -> bytes:
    content = path.read_bytes()
    found = object_in(content[:HEADER_BYTES])
    return content if found is None else content[HEADER_BYTES : HEADER_BYTES + found[1]]


def _put_into_file(path: Path, run: bytes) -> None:
    is_segment = object_in(path.read_bytes()[:HEADER_BYTES]) is not None
    with path.open("r+b") as file:
        if is_segment:
            # The file keeps its length: it may be that of a larger object that was there before.
            file.write(header(path.name, len(run)) + run)
        else:
            file.write(run)
            file.truncate()


def _name(place, key: str) -> str:
    [name] = [name for name in place.objects() if name.endswith(f":o:{key}")]
    return name


def _in_redis(place, key: str) -> bytes:
    name = _name(place, key)
    with place.server.client() as client:
        if client.type(name) == b"string":
            return client.get(name)
        return b"".join(client.hget(name, str(n)) for n in range(client.hlen(name) - 1))


def _put_into_redis(place, key: str, run: bytes) -> None:
    from proxyexec_connectors._redis_format import HEAD, Head, cut

    name = _name(place, key)
    with place.server.client() as client:
        if client.type(name) == b"string":
            client.set(name, run, keepttl=True)
            return
        former = Head.read(client.hget(name, HEAD))
        head = former._replace(size=len(run), first=min(former.first, len(run)))
        fields = {HEAD: head.written()}
        for number, piece in enumerate(cut([run], head)):
            fields[b"%d" % number] = b"".join(piece.buffers)
        ttl = client.pttl(name)
        client.delete(name)
        client.hset(name, mapping=fields)
        client.pexpire(name, ttl)
