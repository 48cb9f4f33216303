"""Commands that run calls: how they read, and one that is running.

A command leads a session of its own. So nothing of it is left when it has to end, and nothing that
a terminal does reaches it.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxyexec.errors import CallTimeoutError, CommandError, ending

if TYPE_CHECKING:
    from proxyexec._call_records import Call

__all__ = ["Command", "CommandLine", "command_line", "interpreter_command", "result_files"]

# How long a command may take to end when it is asked to, in seconds: longer than what it runs.
PATIENCE = 6.0

# How much of what a command has written is in an error, in bytes.
_TAIL = 2_000


@dataclass(frozen=True)
class CommandLine:
    """What it takes to run a call: for a batch system, or for :func:`subprocess.run`."""

    executable: str
    """The program, which is the launcher or the Python interpreter."""
    arguments: tuple[str, ...]
    """Its arguments."""
    input_files: tuple[str, ...]
    """What it reads, that is the call's record and its archive."""
    output_files: tuple[str, ...]
    """What it may write, that is the result's record, the files of standard output and standard
    error of each rank, and, if the call asks for outputs, the directory of these."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Environment variables that the call wants; ``None`` for one that is not to be there. The
    runner sees to them if nobody else does."""

    @property
    def argv(self) -> list[str]:
        """The program and its arguments."""
        return [self.executable, *self.arguments]


@dataclass(frozen=True)
class ResultFiles:
    """The files beside a result's record.

    Args:
        stem: what their names begin with.
    """

    stem: str

    def stdout(self, rank: int) -> str:
        """Where what a rank writes to standard output goes."""
        return f"{self.stem}.stdout{f'.{rank}' if rank else ''}"

    def stderr(self, rank: int) -> str:
        """Where what a rank writes to standard error goes."""
        return f"{self.stem}.stderr{f'.{rank}' if rank else ''}"

    @property
    def outputs(self) -> str:
        """The directory of the outputs."""
        return f"{self.stem}.outputs"

    @property
    def work(self) -> str:
        """The directory of a call that has none of its own, while it runs."""
        return f"{self.stem}.work"


def result_files(result: str) -> ResultFiles:
    """Return the files beside a result's record: named as that, without ``.json``."""
    return ResultFiles(result.removesuffix(".json"))


def command_line(
    call: Call,
    record: str | os.PathLike[str],
    result: str | os.PathLike[str] | None = None,
    *,
    launcher: Sequence[str] = (),
    python: str | None = None,
) -> CommandLine:
    """Return the command that runs a call.

    The interpreter gets the options that this one has been given (``-X``, ``-W``, ``-O``, …), and
    runs the call by way of mpi4py if that asks for ranks.

    Args:
        call: the call; it is not written to ``record`` here, see :meth:`Call.write`.
        record: where its record is.
        result: where the record of its result goes. By default, beside ``record``:
            ``job.result.json`` for ``job.json``.
        launcher: comes before that: ``["srun", "-n", "{ranks}"]``, say. ``{ranks}``,
            ``{threads}`` and ``{timeout}`` (in whole seconds) stand for what the call requires.
        python: the interpreter; this one by default.

    Raises:
        ValueError: the launcher is to be told what the call does not say.
    """
    path = os.path.abspath(record)
    if result is None:
        written = f"{path.removesuffix('.json')}.result.json"
    else:
        written = os.path.abspath(result)
    ranks = call.requirements.ranks
    command = [
        *filled(launcher, call.requirements.to_json()),
        *interpreter_command(ranks is not None, python),
        path,
        written,
    ]
    files = result_files(written)
    outputs = [written]
    for rank in range(ranks or 1):
        outputs += [files.stdout(rank), files.stderr(rank)]
    if call.outputs:
        outputs.append(files.outputs)
    return CommandLine(
        command[0],
        tuple(command[1:]),
        (path,) if call.archive is None else (path, call.archive),
        tuple(outputs),
        {**call.requirements.environment(), **call.environment},
    )


def interpreter_command(with_mpi: bool, python: str | None = None) -> list[str]:
    """Return what runs a record: an interpreter with the options of this one."""
    # What subprocess knows of is a part of what -X takes.
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    for name, value in sys._xoptions.items():
        option = name if value is True else f"{name}={value}"
        if option not in options:
            options += ["-X", option]
    mpi = ["-m", "mpi4py"] if with_mpi else []
    return [python or sys.executable, *options, *mpi, "-m", "proxyexec.call"]


def filled(launcher: Sequence[str], facts: Mapping[str, Any]) -> list[str]:
    """Return the words of a launcher, with what a call requires in its places.

    Raises:
        ValueError: it does not say.
    """
    words = list(launcher)
    for name in ("ranks", "threads", "timeout"):
        place = f"{{{name}}}"
        if not any(place in word for word in words):
            continue
        if name not in facts:
            raise ValueError(f"the launcher wants {name}, and the call does not say how many")
        words = [word.replace(place, str(math.ceil(facts[name]))) for word in words]
    return words


class Command:
    """A command that is running.

    Args:
        called: what it runs, for messages.
        line: the command.
        log: a file that takes what it writes.

    Raises:
        CommandError: it cannot be started.
    """

    def __init__(self, called: str, line: CommandLine, log: str) -> None:
        self._called = called
        self._argv = [*line.argv, "--lifeline"]
        self._log = log
        # Guards what follows.
        self._lock = threading.Lock()
        self._is_reaped = False
        self._why: BaseException | None = None
        self._ended = threading.Event()
        environment = dict(os.environ)
        for name, value in line.environment.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - it is what is asked for
                    self._argv,
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                reason = f"cannot be started: {error}"
                raise CommandError(called, self._argv, reason, "") from error
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        with contextlib.suppress(OSError):  # it has ended
            # Who reads that, and then nothing more, knows that we are gone.
            self._process.stdin.write(b".")
            self._process.stdin.flush()

    def wait(self, timeout: float | None) -> int:
        """Wait until it has ended; return its exit status.

        Args:
            timeout: seconds after which it is ended.

        Raises:
            CallTimeoutError: it was ended for that.
        """
        timer = None
        if timeout is not None:
            error = CallTimeoutError(self._called, timeout)
            timer = threading.Timer(min(timeout, threading.TIMEOUT_MAX), self.end, [error])
            timer.daemon = True
            timer.start()
        try:
            with contextlib.suppress(ChildProcessError):  # a program may want none to be waited for
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            if timer is not None:
                timer.cancel()
            self._reap()
        if isinstance(self._why, CallTimeoutError):
            raise self._why
        return self._process.returncode

    def ask_to_end(self, why: BaseException) -> None:
        """Have it begin to end; whoever asked first has said why."""
        with self._lock:
            if not self._is_reaped:
                self._why = self._why or why
                self._signal(signal.SIGTERM)

    def end(self, why: BaseException) -> None:
        """End it, and wait until it has."""
        self.ask_to_end(why)
        if not self._ended.wait(PATIENCE):
            with self._lock:
                self._signal(signal.SIGKILL)
            self._ended.wait()

    def failure(self) -> CommandError:
        """Return the error for a command that has ended, and has given no result."""
        with open(self._log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            tail = file.read().decode(errors="replace").strip()
        return CommandError(self._called, self._argv, ending(self._process.returncode), tail)

    def _signal(self, number: int) -> None:
        if not self._is_reaped:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _reap(self) -> None:
        """Have nothing left of it that runs."""
        process = self._process
        if self._why is not None:
            # A launcher may be gone before what it has launched is, which cleans up.
            until = time.monotonic() + PATIENCE
            while any(True for _ in _members(process.pid)) and time.monotonic() < until:
                time.sleep(0.005)
        with self._lock:
            # While it can be waited for, its number is nobody else's.
            self._signal(signal.SIGKILL)
            process.wait()
            self._is_reaped = True
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        self._ended.set()


def _members(group: int) -> Iterator[int]:
    """Return the processes of a group that run."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # After the name of the program, which may hold anything.
                state, _, its_group = file.read().rpartition(b")")[2].split()[:3]
        except (OSError, ValueError):
            continue  # it is gone
        if int(its_group) == group and state not in (b"Z", b"X"):
            yield int(name)
