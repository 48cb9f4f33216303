"""An executor that runs each call as a command of its own, by way of records in files.

A thread waits for each command that runs. Knows nothing of stores.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
import sysconfig
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from proxyexec._call_records import (
    Call,
    Requirements,
    called_in,
    check_timeout,
    checked_environment,
)
from proxyexec._call_results import CallResult
from proxyexec._commands import Command, CommandLine, command_line
from proxyexec._cores import usable_cores
from proxyexec.serializers import Serializers

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    P = ParamSpec("P")

__all__ = ["CommandExecutor", "CommandFuture", "run"]

R = TypeVar("R")


class CommandFuture(Future[R]):
    """The future of a call that a command runs. Made by :class:`CommandExecutor`, not by hand."""

    _command: Command | None = None
    _claimed_by: str | None = None

    def __init__(self) -> None:
        super().__init__()
        # Set when there is a command, or will be none.
        self._started = threading.Event()

    def cancel(self) -> bool:
        """Cancel the call, also one that is running: its command is ended, and waited for.

        Returns:
            Whether it is cancelled.
        """
        return self._cancel_pending() or self._finish_ending(begun=self._begin_ending())

    # For this module.

    def _cancel_pending(self) -> bool:
        """Cancel the call if it has not started; tell whether it is cancelled."""
        if not super().cancel():
            return False
        with self._condition:
            if self._state == "CANCELLED":
                self.set_running_or_notify_cancel()  # now: its thread may take long to come here
        return True

    def _begin(self) -> bool:
        """Say that the call starts, unless it is cancelled; tell whether it does."""
        with self._condition:
            return not self.cancelled() and self.set_running_or_notify_cancel()

    def _attach(self, command: Command) -> None:
        self._command = command
        self._started.set()

    def _claim(self, who: str) -> bool:
        """Have the right to settle a future that is running; the first one does."""
        with self._condition:
            if self._state != "RUNNING" or self._claimed_by is not None:
                return False
            self._claimed_by = who
            return True

    def _begin_ending(self) -> bool:
        """Have the command begin to end; tell whether that was this call's doing."""
        if not self._claim("cancel"):
            return False
        self._started.wait()
        if self._command is not None:
            self._command.ask_to_end(CancelledError())
        return True

    def _finish_ending(self, *, begun: bool) -> bool:
        """Settle the future when the command has ended; tell whether it is cancelled."""
        if not begun:
            with self._condition:
                if self._claimed_by == "cancel":  # in another thread
                    self._condition.wait_for(self.done)
            return self.cancelled()
        if self._command is not None:
            self._command.end(CancelledError())
        with self._condition:
            self._state = "CANCELLED"
            self._condition.notify_all()
            self.set_running_or_notify_cancel()
        self._invoke_callbacks()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        return True


class CommandExecutor(Executor):
    """Runs each call as a command: in a new process, on whatever machine a launcher chooses.

    Calls go through files that only their user can read. A call is not started before one of
    ``max_workers`` threads has nothing else to wait for. What a function prints, processes that it
    starts included, is printed by this process when the call has ended.

    A future's ``cancel()`` ends a call that is running, too. ``Ctrl-C`` ends them all, as it does
    with pools of processes; so does the end of this process, however it ends.

    Args:
        launcher: what starts the interpreter: ``["srun", "-n", "{ranks}"]``,
            ``["mpiexec", "-n", "{ranks}"]``, or nothing, for a process on this machine. See
            :func:`command_line`.
        max_workers: how many commands there are at a time; as many as there are processors by
            default.
        timeout: how long a command may take, in seconds: it is ended then, and the future's
            exception is a :class:`~proxyexec.errors.CallTimeoutError`.
        requirements: of each call.
        environment: environment variables of each call; ``None`` for one that is not to be there.
        serializers: the strategies by which functions, arguments and results travel. By default,
            whatever works, and what is in ``__main__`` by value.
        directory: where the files of calls are while these run. Where a launcher goes to other
            machines, these must see it. The system's place for temporary files by default.
        python: the interpreter; this one by default.

    Raises:
        ValueError: ``max_workers`` is below 1, or ``timeout`` is not above 0.
        TypeError: ``launcher`` is no sequence of texts, or something else is not what it has to be.
        OSError: nothing can be written in ``directory``.
    """

    def __init__(
        self,
        launcher: Sequence[str] = (),
        max_workers: int | None = None,
        timeout: float | None = None,
        *,
        requirements: Requirements | None = None,
        environment: Mapping[str, str | None] | None = None,
        serializers: Serializers | None = None,
        directory: str | os.PathLike[str] | None = None,
        python: str | None = None,
    ) -> None:
        if isinstance(launcher, str) or not all(isinstance(word, str) for word in launcher):
            raise TypeError(f"launcher must be a sequence of texts, not {launcher!r}")
        check_timeout(timeout)
        self._requirements = Requirements() if requirements is None else requirements
        self._launcher = tuple(launcher)
        self._timeout = timeout
        self._environment = checked_environment(environment or {})
        self._serializers = _BY_VALUE if serializers is None else serializers
        self._python = python
        workers = usable_cores() if max_workers is None else max_workers
        self._max_workers = workers
        self._threads = ThreadPoolExecutor(workers, "proxyexec-command")
        place = _Place(None if directory is None else os.fspath(directory))
        self._place: _Place | None = place
        self._lock = threading.Lock()
        self._futures: weakref.WeakSet[CommandFuture[Any]] = weakref.WeakSet()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> CommandFuture[R]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        What is wrong with the call's data reaches the caller through the future.

        Raises:
            RuntimeError: the executor is shut down.
        """
        future: CommandFuture[R] = CommandFuture()
        place = self._checked_place()
        directory: str | None = None
        try:
            call = Call(
                fn,
                args,
                kwargs,
                environment=self._environment,
                requirements=self._requirements,
                serializers=self._serializers,
                path=_search_path(),
            )
            directory = place.new()
            record = os.path.join(directory, "call.json")
            call.write(record, durable=False)
            job = _Job(future, called_in(call), self._line(call, record), directory, place)
        except Exception as error:  # noqa: BLE001 - objects raise what they like
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
            future.set_exception(error)
            return future
        try:
            self._start(job)
        except RuntimeError:  # shut down just now
            job.remove()
            raise
        return future

    def submit_call(
        self, call: Call, directory: str | os.PathLike[str]
    ) -> CommandFuture[CallResult]:
        """Schedule a call that may have a directory, an archive, outputs and needs of its own.

        Args:
            call: the call. What it does not say of environment and requirements, this executor
                does not add.
            directory: where ``call.json``, ``result.json``, and what is beside that go; made if it
                is not there, and kept.

        Returns:
            A future of the result, which says whether the function returned, and which files it
            has left.

        Raises:
            RuntimeError: the executor is shut down.
            ValueError: the launcher is to be told what the call does not say.
            NoStrategyError: no strategy can do a part of the call.
            OSError: the record cannot be written.
        """
        self._checked_place()
        place = os.path.abspath(directory)
        os.makedirs(place, mode=0o700, exist_ok=True)
        record = os.path.join(place, "call.json")
        line = self._line(call, record)
        call.write(record)
        future: CommandFuture[CallResult] = CommandFuture()
        self._start(_Job(future, called_in(call), line, place, None))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, as :meth:`concurrent.futures.Executor.shutdown` says.

        While a ``KeyboardInterrupt`` is handled, as by a ``with`` block that it leaves, calls that
        are running are ended.
        """
        with self._lock:
            self._place = None  # which calls under way have as well
        self.end_if_interrupted()
        if cancel_futures:
            for future in list(self._futures):
                future._cancel_pending()
        try:
            self._threads.shutdown(wait=wait)
        except KeyboardInterrupt:
            _end_all(self._futures)
            raise

    def end_if_interrupted(self) -> None:
        """End all calls if a ``KeyboardInterrupt`` is being handled."""
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):
            _end_all(self._futures)

    def _checked_place(self) -> _Place:
        """Return where files of calls go, unless there are to be no more calls."""
        place = self._place
        if place is None:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return place

    def _line(self, call: Call, record: str) -> CommandLine:
        result = os.path.join(os.path.dirname(record), _RESULT)
        return command_line(call, record, result, launcher=self._launcher, python=self._python)

    def _start(self, job: _Job) -> None:
        with self._lock:
            self._checked_place()
            self._futures.add(job.future)
            _unfinished.add(job.future)
            self._threads.submit(_work, job, self._timeout)


class _Job:
    """A call on its way.

    Args:
        future: its future.
        called: what it is, for messages.
        line: the command.
        directory: where its files are.
        place: has that removed; ``None`` if it is kept, and the result is wanted as a record.
    """

    def __init__(
        self,
        future: CommandFuture[Any],
        called: str,
        line: CommandLine,
        directory: str,
        place: _Place | None,
    ) -> None:
        self.future = future
        self.called = called
        self.line = line
        self.directory = directory
        self.place = place

    def start(self) -> Command:
        """Start the command."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._result)  # of a run before this one
        return Command(self.called, self.line, os.path.join(self.directory, "command.log"))

    def outcome(self, command: Command) -> Any:
        """Return what came of a command that has ended, or raise that."""
        if not os.path.exists(self._result):
            raise command.failure()
        result = CallResult.read(self._result)
        if self.place is None:
            return result
        _relay(result)
        return result.value()

    @property
    def _result(self) -> str:
        return os.path.join(self.directory, _RESULT)

    def remove(self) -> None:
        """Remove its files, unless they are kept."""
        if self.place is not None:
            shutil.rmtree(self.directory, ignore_errors=True)


def run(
    call: Call,
    directory: str | os.PathLike[str],
    *,
    launcher: Sequence[str] = (),
    timeout: float | None = None,
) -> CallResult:
    """Run a call in a process of its own, and return what came of it.

    Args:
        call: the call.
        directory: where ``call.json``, ``result.json``, and what is beside that go; made if it is
            not there, and kept.
        launcher: what starts the interpreter; see :func:`command_line`.
        timeout: how long that may take, in seconds; it is ended then.

    Raises:
        CallTimeoutError: it took longer than ``timeout``.
        CommandError: the command gave no result.
        NoStrategyError: no strategy can do a part of the call.
    """
    with CommandExecutor(launcher, 1, timeout) as executor:
        return executor.submit_call(call, directory).result()


class _Place:
    """A directory for the files of calls; removed when nobody has anything to do with it.

    Args:
        directory: where it is made.
    """

    def __init__(self, directory: str | None) -> None:
        self._path = tempfile.mkdtemp(prefix="proxyexec-calls-", dir=directory)  # for us alone
        self._numbers = itertools.count()
        weakref.finalize(self, _remove, self._path, os.getpid())

    def new(self) -> str:
        """Make a directory for the files of one call."""
        path = os.path.join(self._path, str(next(self._numbers)))
        os.mkdir(path, 0o700)
        return path


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # and not in a process that this one has forked
        shutil.rmtree(path, ignore_errors=True)


def _work(job: _Job, timeout: float | None) -> None:
    """Run a call, and settle its future."""
    future = job.future
    value: Any = None
    error: BaseException | None = None
    try:
        if not future._begin():
            return
        try:
            command = job.start()
        except BaseException:
            future._started.set()
            raise
        future._attach(command)
        command.wait(timeout)
        if not future._claim("command"):
            return  # it is cancelled
        value = job.outcome(command)
    except BaseException as raised:  # noqa: BLE001 - it is the future's
        error = raised
    finally:
        job.remove()
        job.place = None
    if future._claimed_by != "command" and not future._claim("command"):
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
    del error, future, value  # an error's traceback refers to this frame


def _relay(result: CallResult) -> None:
    """Print what a call has printed."""
    streams = result.ranks or [result]
    for stream, paths in (
        (sys.stdout, [one.stdout for one in streams]),
        (sys.stderr, [one.stderr for one in streams]),
    ):
        for path in paths:
            with contextlib.suppress(
                OSError, ValueError, AttributeError
            ):  # there is no such stream
                assert path is not None  # noqa: S101 - it is our own command's
                with open(path, errors="replace") as file:
                    shutil.copyfileobj(file, stream)
                    stream.flush()


def _end_all(futures: Iterable[CommandFuture[Any]]) -> None:
    """Cancel all calls, also those that are running."""
    chosen = [one for one in list(futures) if not one._cancel_pending()]
    for future, begun in [(one, one._begin_ending()) for one in chosen]:  # all at the same time
        future._finish_ending(begun=begun)


def _search_path() -> list[str]:
    """Return where this process looks for modules, but for what comes with an interpreter."""
    standard = sysconfig.get_paths()
    own = {standard[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    own |= {os.path.join(one, "lib-dynload") for one in own}
    return [os.path.abspath(one) for one in sys.path if one not in own and one[-4:] != ".zip"]


def _end_interrupted() -> None:
    """End what is running if the program is ending because of Ctrl-C. Otherwise, wait for it."""
    interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    if interrupted and not hasattr(sys, "ps1"):  # in a session, that may have been long ago
        _end_all(_unfinished)


_RESULT = "result.json"

# Functions that are found by name travel so; data are looked at for what is in __main__.
_BY_VALUE = Serializers(data="cloudpickle", results=("pickle", "cloudpickle"))

_unfinished: weakref.WeakSet[CommandFuture[Any]] = weakref.WeakSet()

# They belong to the process that has submitted them.
os.register_at_fork(after_in_child=_unfinished.clear)

# Before the threads are waited for, which the standard library's module sees to.
threading._register_atexit(_end_interrupted)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
