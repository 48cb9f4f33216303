"""A scheduler and workers of Dask, each a process of its own, started by their own commands."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.census import eventually


class Meter:
    """Passes connections on to a port of this machine, and counts their bytes, both ways."""

    def __init__(self, port: int) -> None:
        self.bytes = 0
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listening]
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listening.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._port))
            self._sockets += [here, there]
            for source, target in ((here, there), (there, here)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self.bytes += len(data)
                target.sendall(data)
        except OSError:  # one end was killed
            pass
        finally:
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)


class Cluster:
    """A scheduler, and workers by their names."""

    def __init__(self, directory: str, scheduler: subprocess.Popen[bytes], port: int) -> None:
        self.meter = Meter(port)
        self.address = f"tcp://127.0.0.1:{self.meter.port}"
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._directory = directory
        self.processes = [scheduler]

    def start_worker(self, name: str, *options: str) -> None:
        """Start a worker of one thread, with nobody who would start it again."""
        command = ["worker", self.address, "--no-nanny", "--nthreads=1", f"--name={name}"]
        common = ["--no-dashboard", "--host=127.0.0.1", f"--local-directory={self._directory}"]
        self.workers[name] = _start(*command, *common, *options)
        self.processes.append(self.workers[name])

    def kill_worker(self, name: str) -> None:
        self.workers[name].kill()
        self.workers[name].wait()

    def end(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        self.meter.close()


def bytes_of(action: Callable[[], object], count: Callable[[], int]) -> int:
    """Count bytes while something is done, less what heartbeats send in as long a time.

    Args:
        action: does it.
        count: returns how many bytes there have been so far.
    """
    before, start = count(), time.monotonic()
    action()
    during, seconds = count() - before, time.monotonic() - start
    before = count()
    time.sleep(seconds)
    return during - (count() - before)


def _start(*arguments: str, **options) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=options.get("stderr", subprocess.DEVNULL),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


@contextmanager
def cluster(*workers: str) -> Iterator[Cluster]:
    """A scheduler with workers of these names."""
    with tempfile.TemporaryDirectory() as directory:
        log = os.path.join(directory, "log")
        with open(log, "wb") as stderr:
            command = ["scheduler", "--host=127.0.0.1", "--port=0", "--no-dashboard"]
            scheduler = _start(*command, stderr=stderr)
        found: list[str] = []

        def address_is_told() -> bool:
            text = Path(log).read_text()
            assert scheduler.poll() is None, text
            found.extend(re.findall(r"Scheduler at:\s+tcp://127.0.0.1:(\d+)", text))
            return bool(found)

        try:
            eventually(address_is_told, "the scheduler says where it listens")
        except BaseException:
            scheduler.kill()
            scheduler.wait()
            raise
        one = Cluster(directory, scheduler, int(found[0]))
        try:
            for name in workers:
                one.start_worker(name)
            yield one
        finally:
            one.end()
