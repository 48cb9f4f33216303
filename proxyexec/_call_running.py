"""Runs one call that has been written down, and writes down what came of it.

The function runs in a child of this process. So a result can be written whatever ends it: an
exception, ``os._exit``, a signal, or a function that takes too long. Of several ranks, each has
such a child, and what comes first is the result: a failure of any, or the value of rank 0 once
all of them have returned.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import mmap
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from proxyexec._call_fields import unfinished
from proxyexec._call_files import Collected, collect, unpack
from proxyexec._call_ranks import Ranks, rank_here
from proxyexec._call_records import Call, called_in
from proxyexec._call_results import CallResult, Streams
from proxyexec._commands import interpreter_command, result_files
from proxyexec._context import deliver_nothing
from proxyexec.errors import CallDiedError, CallRecordError, CallTimeoutError

__all__ = ["run_recorded"]

# How long a function may take to end itself when it is asked to, in seconds.
PATIENCE = 3.0

# How often to look whether those who want the result are still there, in seconds.
_LOOK = 0.5

# How long to wait for a signal at once, in seconds: that is what the system can count.
_LONGEST = 100_000.0

_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_WAITED_FOR = (*_ENDS, signal.SIGCHLD)


def run_recorded(options: argparse.Namespace) -> int:
    """Run what the command line says; return the exit status."""
    try:
        call = Call.read(options.call)
        result = os.path.abspath(options.result)
        if not os.access(os.path.dirname(result), os.W_OK | os.X_OK):
            reason = "it cannot be written: there is no such directory, or it is closed"
            raise CallRecordError(options.result, None, reason)
        if os.path.isdir(result):
            raise CallRecordError(options.result, None, "it is a directory")
    except CallRecordError as error:
        print(f"proxyexec call: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    if not options.settled and _change_environment(call):
        command = interpreter_command(call.requirements.ranks is not None)
        arguments = [os.path.abspath(options.call), result, "--settled"]
        for strategy in options.allow or ():
            arguments += ["--allow", strategy]
        if options.lifeline:
            arguments.append("--lifeline")
        # Some variables mean something to an interpreter that starts only.
        os.execv(command[0], [*command, *arguments])  # noqa: S606 - no shell is wanted
    return _Run(call, result, options.allow, lifeline=options.lifeline).run()


def _change_environment(call: Call) -> bool:
    """Have the environment as the call wants it; tell whether it was not."""
    changed = False
    for name, value in {**call.requirements.environment(), **call.environment}.items():
        if os.environ.get(name) == value:
            continue
        changed = True
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    return changed


class _Run:
    """One run of a call.

    Args:
        call: what is run.
        path: of the result.
        allowed: the strategies by which function and arguments may travel.
        lifeline: whether to give up when standard input ends.
    """

    def __init__(
        self, call: Call, path: str, allowed: Sequence[str] | None, *, lifeline: bool
    ) -> None:
        self._call = call
        self._path = path
        self._allowed = allowed
        self._lifeline = lifeline
        self._files = result_files(path)
        self._rank = rank_here() if call.requirements.ranks is not None else 0
        self._are_all_there = False  # the ranks
        self._started = time.time()
        self._began = time.monotonic()
        # A new directory takes the place of one that is not given, if there is to be anything.
        self._is_new = call.directory is None and bool(call.archive or call.outputs)
        self._directory = call.directory or (self._files.work if self._is_new else os.curdir)

    def run(self) -> int:
        """Run it; return the exit status."""
        if self._rank == 0:
            self._clear()
        _flush()
        said = _Said()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which those who started us may ignore
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            _detach(parent)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask.difference(_WAITED_FOR))
            sys.exit(self._run_here(said))  # by way of what the function wants done at its end
        with contextlib.suppress(OSError):  # who comes first
            os.setpgid(child, child)
        status, why = _Watch(child, self._call, lifeline=self._lifeline).wait()
        try:
            if said.rank is not None:
                self._rank = said.rank
                self._are_all_there = True
            if said.status is not None:
                return said.status
            error = why or CallDiedError(called_in(self._call), status)
            return self._fail(error)
        finally:
            if self._is_new and self._rank == 0:
                shutil.rmtree(self._files.work, ignore_errors=True)

    def _clear(self) -> None:
        """Remove what is left of another run with this result."""
        files = [self._path, self._files.stdout(0), self._files.stderr(0)]
        if self._call.requirements.ranks is None:  # or another rank may be writing already
            files += glob.glob(glob.escape(unfinished(self._path)) + "*")
        for one in files:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(one)
        for one in (self._files.work, self._files.outputs):
            shutil.rmtree(one, ignore_errors=True)

    # --- in the child -------------------------------------------------------------------

    def _run_here(self, said: _Said) -> int:
        """Call the function; return the exit status."""
        process = os.getpid()
        ranks: Ranks | None = None
        try:
            if self._call.requirements.ranks is not None:
                ranks = Ranks(self._call.requirements.ranks)
                self._rank = said.rank = ranks.rank
                self._are_all_there = True
                if self._rank != 0:
                    deliver_nothing()  # rank 0 has a store's key for it, if there is one
            if self._rank == 0:
                self._prepare()
            if ranks is not None:
                ranks.wait()  # until there is the directory
            os.chdir(self._directory)
            self._capture()
            value = self._called()
            _check_process(process)
            if ranks is not None:
                ranks.wait()  # until all of them have returned
        except BaseException as error:  # noqa: BLE001 - it is the result
            _check_process(process)
            said.status = status = self._fail(error)
            if ranks is not None and ranks.size > 1:
                _flush()
                ranks.abort()
            return status
        said.status = status = self._return(value) if self._rank == 0 else 0
        return status

    def _prepare(self) -> None:
        """Have the directory as the call wants it."""
        if self._is_new:
            os.mkdir(self._directory, 0o700)
        else:
            os.makedirs(self._directory, exist_ok=True)
        if self._call.archive is not None:
            unpack(self._call.archive, self._directory)

    def _capture(self) -> None:
        """Have files in place of the standard streams, for processes of the function as well."""
        _flush()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        for number, path in (
            (1, self._files.stdout(self._rank)),
            (2, self._files.stderr(self._rank)),
        ):
            # Appended to: others may open it again.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            file = os.open(path, flags, 0o600)
            os.dup2(file, number)
            os.close(file)

    def _called(self) -> Any:
        """Call the function, which is loaded here."""
        path = [*self._call.path, *(one for one in sys.path if one not in self._call.path)]
        sys.path[:] = path
        function, args, kwargs = self._call.load(self._allowed)
        return function(*args, **kwargs)

    def _return(self, value: Any) -> int:
        """Write down what the function returned; return the exit status."""
        try:
            result = self._result(self._collected(), value, None)
            _flush()
            result.write(self._path)
        except BaseException as error:  # noqa: BLE001 - what is returned can raise anything
            return self._fail(error, collected=Collected((), ()))
        return 0

    # --- in both ------------------------------------------------------------------------

    def _fail(self, error: BaseException, collected: Collected | None = None) -> int:
        """Write down what was raised, unless there is something; return the exit status."""
        if self._rank != 0:
            collected = Collected((), ())  # others may be writing them still
        if collected is None:
            try:
                collected = self._collected()
            except (OSError, shutil.Error):  # there is worse to tell
                collected = Collected((), ())
        # What is of this module says nothing to those who read it.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        result = self._result(collected, None, error.with_traceback(trace))
        _flush()
        result.write(self._path, replace=False)
        return 1

    def _result(self, collected: Collected, value: Any, error: BaseException | None) -> CallResult:
        size = self._call.requirements.ranks if self._are_all_there else 0
        streams = [
            Streams(self._files.stdout(rank), self._files.stderr(rank)) for rank in range(size or 0)
        ]
        return CallResult(
            value,
            error,
            call=self._call.id,
            name=self._call.name,
            stdout=self._files.stdout(0),
            stderr=self._files.stderr(0),
            ranks=streams,
            directory=self._files.outputs if os.path.isdir(self._files.outputs) else None,
            outputs=collected.outputs,
            missing=collected.missing,
            started=self._started,
            seconds=time.monotonic() - self._began,
            results=self._call.serializers.results,
        )

    def _collected(self) -> Collected:
        """Take the outputs that the call asks for."""
        patterns = self._call.outputs
        if not patterns:
            return Collected((), ())
        if not os.path.isdir(self._directory):
            return Collected((), patterns)
        shutil.rmtree(self._files.outputs, ignore_errors=True)
        return collect(patterns, self._directory, self._files.outputs, move=self._is_new)


class _Said:
    """What the child tells the parent, in memory that both have: functions may close all files."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)

    @property
    def rank(self) -> int | None:
        """The child's rank, once it knows."""
        return self._get(0)

    @rank.setter
    def rank(self, value: int) -> None:
        self._set(0, value)

    @property
    def status(self) -> int | None:
        """The exit status, once there is a result."""
        return self._get(8)

    @status.setter
    def status(self, value: int) -> None:
        self._set(8, value)

    def _get(self, place: int) -> int | None:
        number = int.from_bytes(self._memory[place : place + 8], "little")
        return number - 1 if number else None

    def _set(self, place: int, value: int) -> None:
        self._memory[place : place + 8] = (value + 1).to_bytes(8, "little")


class _Watch:
    """Waits for the child, and ends it when it is to end.

    The child leads a process group, so that what it has started ends with it, and so that signals
    of a terminal reach it once: from here.

    Args:
        child: its process id.
        call: what it runs.
        lifeline: whether standard input ends with those who want the result.
    """

    def __init__(self, child: int, call: Call, *, lifeline: bool) -> None:
        self._child = child
        self._call = call
        self._lifeline = lifeline
        self._is_held = False  # whether there has been anything on it
        self._kill_at: float | None = None
        self._why: BaseException | None = None
        timeout = call.requirements.timeout
        self._until = None if timeout is None else time.monotonic() + timeout

    def wait(self) -> tuple[int, BaseException | None]:
        """Return the exit status, and why it was ended where that was here."""
        while not os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            moments = [one for one in (self._until, self._kill_at) if one is not None]
            if self._lifeline:
                moments.append(time.monotonic() + _LOOK)
            now = time.monotonic()
            self._look_at(now)
            if moments:
                left = min(max(0.0, min(moments) - now), _LONGEST)
                info = signal.sigtimedwait(_WAITED_FOR, left)
            else:
                info = signal.sigwaitinfo(_WAITED_FOR)
            if info is not None and info.si_signo in _ENDS:
                self._pass_on(info.si_signo)
        # While it can be waited for, its number is nobody else's.
        self._signal(signal.SIGKILL)
        _, status = os.waitpid(self._child, 0)
        return os.waitstatus_to_exitcode(status), self._why

    def _look_at(self, now: float) -> None:
        if self._until is not None and now >= self._until:
            assert self._call.requirements.timeout is not None  # noqa: S101 - or there is no end
            seconds = self._call.requirements.timeout
            self._why = CallTimeoutError(called_in(self._call), seconds)
            self._until = None
            self._kill_at = now
        if self._kill_at is not None and now >= self._kill_at:
            self._signal(signal.SIGKILL)
            self._kill_at = None
        if self._lifeline and self._has_ended():
            self._lifeline = False
            self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: int) -> None:
        self._signal(number)
        if number != signal.SIGINT and self._kill_at is None:
            self._kill_at = time.monotonic() + PATIENCE

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child, number)

    def _has_ended(self) -> bool:
        """Tell that there was somebody who wants the result, and is no more."""
        if not select.select([0], [], [], 0)[0]:
            return False
        if os.read(0, 64):
            self._is_held = True
            return False
        if not self._is_held:  # some launcher has put something else in its place
            self._lifeline = False
        return self._is_held


def _detach(parent: int) -> None:
    """Lead a group of processes, and end with the parent whatever becomes of that."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    try:
        import ctypes  # noqa: PLC0415 - for this alone

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    except (ImportError, AttributeError, OSError):
        return  # there is no such thing on this system
    if os.getppid() != parent:
        os._exit(1)


def _check_process(process: int) -> None:
    """End a process that the function has forked, and that has returned from it as well."""
    if os.getpid() != process:
        os._exit(0)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the function may have put anything there
            stream.flush()


# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
