"""Several hosts on one machine: namespaces of the kernel, joined by a network of their own.

A host has its own address, its own shared memory and its own process ids; files are common to all
of them. Each is a process that does nothing, first of its namespaces: when it ends, the kernel
ends whatever runs there. One that is called the switch holds the others, and ends with the test
that made it, however that ends. Nothing is set up outside of these namespaces, so that no name,
address or route of the machine can get in the way.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.chaos.census import PATIENCE, eventually
from tests.chaos.programs import Program

_NETWORK = "10.77.0."

# The namespaces that make a host; mounting /proc makes those of mounts, too.
_NAMESPACES = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc")

# Another user is root in a namespace of users that the switch makes, where he is allowed to.
_IS_ROOT = os.geteuid() == 0
_AS_ROOT = ("--user", "--preserve-credentials")

_SLOW = "root tbf rate {rate} burst 64kb latency 500ms"

# Its shared memory is no other host's. It says that it is there, and waits for its end.
_HOLD = (
    "mount -t tmpfs -o mode=1777,size=1g tmpfs /dev/shm && ip link set lo up && echo && exec cat"
)


class NotAllowedError(Exception):
    """The machine does not let us make hosts."""


class Traffic(NamedTuple):
    """Bytes that a host has received and sent since it is there."""

    received: int
    sent: int

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(self.received - earlier.received, self.sent - earlier.sent)


class Host:
    """One host.

    Args:
        name: of at most 15 letters.
        prefix: of the command that makes its namespaces.
    """

    def __init__(self, name: str, prefix: Sequence[str]) -> None:
        self.name = name
        self.address = ""
        self._started: list[subprocess.Popen[bytes]] = []
        self._holder = subprocess.Popen(
            [*prefix, "sh", "-c", _HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if not self._holder.stdout.readline():
            _, said = self._holder.communicate()
            raise NotAllowedError(said.decode(errors="replace").strip())
        self.id = _innermost(self._holder.pid)

    @property
    def enter(self) -> list[str]:
        """What a command starts with that is to run there."""
        entered = ("--net", "--pid", "--mount", *(() if _IS_ROOT else _AS_ROOT))
        return ["nsenter", "--target", str(self.id), *entered]

    @property
    def shared_memory(self) -> Path:
        """Its shared memory, for us to look into."""
        return Path(f"/proc/{self.id}/root/dev/shm")

    def shared_bytes(self) -> int:
        """How much of its shared memory is taken, by files with and without a name."""
        status = os.statvfs(self.shared_memory)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def run(self, command: str) -> None:
        """Run a command there, and wait for its end."""
        done = subprocess.run(
            [*self.enter, *command.split()], stdin=subprocess.DEVNULL, capture_output=True
        )
        if done.returncode:
            raise NotAllowedError(f"{command}: {done.stderr.decode(errors='replace').strip()}")

    def start(self, *command: str, log: Path, **environment: str) -> Process:
        """Start something there that runs until it is ended."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*self.enter, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**_importing_what_we_do(), **environment},
            )
        _wait_for_begin(process)
        self._started.append(process)
        return Process(process, log)

    def traffic(self) -> Traffic:
        """Count the bytes that have gone over its interface."""
        for line in Path(f"/proc/{self.id}/net/dev").read_text().splitlines():
            name, _, counts = line.partition(":")
            if name.strip() == "eth0":
                numbers = counts.split()
                return Traffic(int(numbers[0]), int(numbers[8]))
        raise LookupError(f"{self.name} has no interface")

    def end(self) -> None:
        """End it, and all that runs there."""
        self._holder.communicate(timeout=PATIENCE)
        for process in self._started:
            process.wait(PATIENCE)


class Process:
    """Something that runs on a host."""

    def __init__(self, started: subprocess.Popen[bytes], log: Path) -> None:
        self._started = started
        self.log = log

    def kill(self) -> None:
        """End it as a crash would."""
        os.kill(_innermost(self._started.pid), signal.SIGKILL)
        self._started.wait(PATIENCE)

    def terminate(self) -> None:
        """Ask it to end, and wait until it has."""
        os.kill(_innermost(self._started.pid), signal.SIGTERM)
        self._started.wait(PATIENCE)


class Network:
    """Hosts that reach each other, and nothing else."""

    def __init__(self) -> None:
        as_root = () if _IS_ROOT else ("--user", "--map-root-user")
        self._switch = Host("switch", ["unshare", *as_root, *_NAMESPACES])
        self.hosts: list[Host] = []

    def set_up(self) -> None:
        """Make what hosts are joined by, and try out what they need."""
        self._switch.run("ip link add name bridge type bridge")
        self._switch.run("ip link set dev bridge up")
        self._switch.run("ip link add name trial type veth peer name other")
        self._switch.run(f"tc qdisc add dev trial {_SLOW.format(rate='8mbit')}")
        self._switch.run("ip route add blackhole 10.78.0.1")
        self._switch.run("ip link del dev trial")

    def add(self, name: str) -> Host:
        """Make a host."""
        host = Host(name, [*self._switch.enter, "unshare", *_NAMESPACES])
        self.hosts.append(host)
        host.address = f"{_NETWORK}{len(self.hosts)}"
        # Its process id, as the switch sees it.
        inside = Path(f"/proc/{host.id}/status").read_text().partition("NSpid:")[2].split("\n")[0]
        seen = inside.split()[-2]
        self._switch.run(f"ip link add name {name} type veth peer name eth0 netns {seen}")
        self._switch.run(f"ip link set dev {name} master bridge up")
        host.run(f"ip address add {host.address}/24 dev eth0")
        host.run("ip link set eth0 up")
        return host

    def end(self) -> None:
        """End all hosts."""
        self._switch.end()
        for host in self.hosts:
            host.end()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network without hosts; skips the test where the machine does not allow any."""
    for program in ("ip", "tc", "mount", "nsenter", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"making hosts takes the program {program}")
    try:
        made = Network()
    except NotAllowedError as error:
        pytest.skip(f"making hosts takes namespaces, which are refused: {error}")
    try:
        try:
            made.set_up()
        except NotAllowedError as error:
            pytest.skip(f"joining hosts takes what is refused: {error}")
        yield made
    finally:
        made.end()


@contextlib.contextmanager
def cut(one: Host, other: Host, how: str) -> Iterator[None]:
    """Keep one host from another.

    Args:
        one: who is told, or not told.
        other: who cannot be reached.
        how: ``"unreachable"`` tells ``one`` so; ``"silent"`` tells nobody, and what comes from
            ``one`` is just not answered.
    """
    host, route = (
        (one, f"unreachable {other.address}")
        if how == "unreachable"
        else (other, f"blackhole {one.address}")
    )
    host.run(f"ip route add {route}")
    try:
        yield
    finally:
        host.run(f"ip route del {route}")


@contextlib.contextmanager
def slowed(host: Host, rate: str) -> Iterator[None]:
    """Let a host send only so much in a second, as ``"8mbit"``."""
    host.run(f"tc qdisc add dev eth0 {_SLOW.format(rate=rate)}")
    try:
        yield
    finally:
        host.run("tc qdisc del dev eth0 root")


def _wait_for_begin(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has its command; tests are looked at for processes, by those."""
    eventually(Path(f"/proc/{process.pid}/cmdline").read_bytes, "it has begun")


def _innermost(process: int) -> int:
    """The process that commands which enter namespaces have led to."""
    while True:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        if not children:
            return process
        process = int(children[0])


def _importing_what_we_do() -> dict[str, str]:
    """The environment for processes that import our modules, wherever they are started."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


# --- a Dask cluster and a Redis server ------------------------------------------------------

# What they tell each other by the clock would be counted as well.

_QUIET = {
    "DASK_DISTRIBUTED__CLIENT__HEARTBEAT": "120s",
    "DASK_DISTRIBUTED__CLIENT__SCHEDULER_INFO_INTERVAL": "120s",
}
_QUIET_SCHEDULER = """
from distributed import scheduler
scheduler.heartbeat_interval = lambda workers: 120
"""


class Cluster:
    """Hosts for a Dask scheduler, a Redis server, a client, and two with two workers each."""

    def __init__(self, network: Network, redis_server: str, directory: Path) -> None:
        self._directory = directory
        self.scheduler = network.add("scheduler")
        self.store = network.add("store")
        self.client = network.add("client")
        self.left = network.add("left")
        self.right = network.add("right")
        self.password = secrets.token_hex(8)
        self.redis_url = f"redis://:{self.password}@{self.store.address}:6379/0"
        self.scheduler_url = f"tcp://{self.scheduler.address}:8786"
        self.workers: dict[str, Process] = {}
        settings = ("--bind", self.store.address, "--requirepass", self.password, "--save", "")
        self.store.start(
            *(redis_server, *settings, "--dir", str(directory)), log=directory / "redis.log"
        )
        preload = directory / "quiet.py"
        preload.write_text(_QUIET_SCHEDULER)
        self._dask(
            *(self.scheduler, "scheduler", "distributed.cli.dask_scheduler"),
            *("--port", "8786", "--no-dashboard", "--preload", str(preload)),
        )
        for host in (self.left, self.right):
            for number in range(2):
                self.start_worker(host, number)

    def start_worker(self, host: Host, number: int) -> None:
        """Start one, or one again that has been killed: at its address, which tasks may wait for."""
        name = f"{host.name}-{number}"
        self.workers[name] = self._dask(
            *(host, name, "distributed.cli.dask_worker", self.scheduler_url),
            *("--name", name, "--worker-port", str(9000 + number), "--no-dashboard"),
            *("--no-nanny", "--nthreads", "1", "--memory-limit", "0"),
            *("--local-directory", str(self._directory)),
        )

    def _dask(self, host: Host, name: str, module: str, *options: str) -> Process:
        return host.start(
            *(sys.executable, "-m", module, "--host", host.address, *options),
            log=self._directory / f"{name}.log",
            **_QUIET,
        )

    @contextlib.contextmanager
    def program(self, function, *arguments) -> Iterator[Program]:
        """Run a function of a test module on the client's host."""
        program = (function.__module__, function.__qualname__, json.dumps(arguments))
        started = subprocess.Popen(
            [*self.client.enter, sys.executable, "-m", "tests.chaos.programs", *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**_importing_what_we_do(), **_QUIET},
        )
        _wait_for_begin(started)
        try:
            yield Program(started)
        finally:
            if started.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(_innermost(started.pid), signal.SIGKILL)
            started.communicate(timeout=PATIENCE)

    def run(self, script: Path) -> subprocess.CompletedProcess[str]:
        """Run a script on the client's host that finds the cluster by its environment."""
        where = {"DASK_SCHEDULER_ADDRESS": self.scheduler_url, "REDIS_URL": self.redis_url}
        return subprocess.run(
            [*self.client.enter, sys.executable, str(script)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            env={**_importing_what_we_do(), **_QUIET, **where},
        )

    def cached(self, host: Host) -> dict[str, int]:
        """What the workers of a host share: files and their sizes, by their paths."""
        found = {}
        for folder, _, files in os.walk(host.shared_memory):
            for file in files:
                path = Path(folder, file)
                with contextlib.suppress(FileNotFoundError):
                    found[str(path.relative_to(host.shared_memory))] = path.stat().st_blocks * 512
        return found
