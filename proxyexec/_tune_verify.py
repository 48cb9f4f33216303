"""Runs a program under several policies, in turns, and says what each took.

The program is told by its environment; see :mod:`proxyexec._tune_override`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxyexec_connectors.registry import without_password

from proxyexec._tune_override import POLICY, PROCESS, REPORT, STORE
from proxyexec._tune_result import TuneMeasured
from proxyexec.errors import TuneError

if TYPE_CHECKING:
    from proxyexec._tune_result import TuneCandidate

__all__ = ["Trial", "verify"]

# How long a program that is to end has for that.
_PATIENCE = 10.0

# Of what a program that failed has said, so many lines are told.
_LINES = 15


@dataclass(frozen=True)
class Trial:
    """A candidate that is tried.

    Args:
        candidate: it.
        store: the URL of its store, with the password; ``None`` for the program's own.
    """

    candidate: TuneCandidate
    store: str | None = None


def verify(
    program: Sequence[str],
    trials: Sequence[Trial],
    *,
    rounds: int = 3,
    trace: str = "",
    progress: Callable[[int, int, str], object] | None = None,
) -> tuple[TuneMeasured, ...]:
    """Run a program under several policies, in turns.

    Args:
        program: the command; a file that ends in ``.py`` is run by this Python.
        trials: what is tried.
        rounds: how often each is.
        trace: the path of the trace that they were found with: the part of the program that it is
            of is what is timed. Without such a part, it is all from making an executor to shutting
            it down.
        progress: called with how many runs are done, how many there are, and what is tried.

    Raises:
        TuneError: the program failed, or made no executor.
    """
    command = [sys.executable, *program] if program[0].endswith(".py") else list(program)
    seconds: list[list[float]] = [[] for _ in trials]
    # What measures before it decides does so now, and keeps it.
    first = [index for index, one in enumerate(trials) if _measures(one)]
    turns = [index for number in range(rounds) for index in _rotated(len(trials), number)]
    total = len(first) + len(turns)
    for number, index in enumerate([*first, *turns]):
        trial = trials[index]
        if progress is not None:
            progress(number, total, trial.candidate.policy.name)
        taken = _run(command, _environment(trial), trial.candidate.policy.name, trace)
        if number >= len(first):
            seconds[index].append(taken)
    if progress is not None:
        progress(total, total, "")
    return tuple(
        TuneMeasured(
            trial.candidate.policy,
            trial.candidate.store,
            trial.candidate.is_present,
            trial.candidate.seconds,
            tuple(taken),
        )
        for trial, taken in zip(trials, seconds, strict=True)
    )


def _rotated(number: int, by: int) -> list[int]:
    """Return who comes when in a round: none is always the first."""
    return [(index + by) % number for index in range(number)]


def _measures(trial: Trial) -> bool:
    return not trial.candidate.is_present and "ProxyAdaptive" in trial.candidate.policy.python


def _environment(trial: Trial) -> dict[str, str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in (REPORT, POLICY, STORE, PROCESS)
    }
    if not trial.candidate.is_present:
        environment[POLICY] = json.dumps(trial.candidate.policy.config)
        if trial.store is not None:
            environment[STORE] = trial.store
    return environment


def _run(command: list[str], environment: dict[str, str], name: str, trace: str) -> float:
    """Run the program once; return what its part took."""
    with tempfile.TemporaryDirectory(prefix="proxyexec-tune-") as directory:
        report = Path(directory, "report.jsonl")
        with open(Path(directory, "output"), "w+b") as output:
            status = _status(command, {**environment, REPORT: str(report)}, output)
            if status:
                output.seek(0)
                said = output.read().decode(errors="replace").splitlines()[-_LINES:]
                reason = "\n".join([f"it ended with {status}, and said:", *said])
                raise TuneError(f"{_shown(command)} with {name}", reason)
        try:
            lines = report.read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        return _taken([json.loads(one) for one in lines], trace, command)


def _taken(told: list[dict[str, Any]], trace: str, command: list[str]) -> float:
    traces = [one for one in told if one["trace"]]
    same = [one for one in traces if os.path.basename(one["trace"]) == os.path.basename(trace)]
    executors = [one for one in told if not one["trace"]]
    for some in (same, traces, executors):
        if some:
            return float(max(one["seconds"] for one in some))
    raise TuneError(_shown(command), "it made no executor")


def _shown(command: list[str]) -> str:
    """Return a command, with the URLs in it without their passwords."""
    return " ".join(without_password(one) if "://" in one else one for one in command)


def _status(command: list[str], environment: dict[str, str], output: Any) -> int:
    """Run a command, with all that it starts; return its exit status."""
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own program
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise TuneError(command[0], error.strerror or str(error)) from error
    try:
        return process.wait()
    except BaseException:
        _end(process)
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program, and all that it has started: its session is its own."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        # Who interrupts once more does not want to wait for the next step.
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(_PATIENCE if number != signal.SIGKILL else None)
            return
