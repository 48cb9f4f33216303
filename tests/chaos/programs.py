"""Programs that are to suffer: functions of test modules, each run by an interpreter of its own.

A program is a function of a test module. It talks to its test in lines of JSON: what it says with
:func:`say` is heard by :meth:`Program.hear`, and what the test says with :meth:`Program.tell` by
:func:`hear`. So both can be held at any step, with nobody sleeping.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.chaos.census import PATIENCE, Family


def say(value: Any) -> None:
    """Tell the test something; called by a program, or by a worker of it."""
    os.write(1, json.dumps(value).encode() + b"\n")


def hear() -> Any:
    """Wait for what the test tells; called by a program."""
    return json.loads(sys.stdin.readline())


class Program:
    """A program that runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._ahead = b""

    @property
    def id(self) -> int:
        return self.process.pid

    def hear(self) -> Any:
        """Return the next thing that it says."""
        deadline = time.monotonic() + PATIENCE
        assert self.process.stdout is not None
        while b"\n" not in self._ahead:
            ready, _, _ = select.select([self.process.stdout], [], [], deadline - time.monotonic())
            assert ready, "the program says nothing"
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            assert more, f"the program has ended:\n{self.ended()[1]}"
            self._ahead += more
        line, _, self._ahead = self._ahead.partition(b"\n")
        return json.loads(line)

    def tell(self, value: Any = None) -> None:
        """Tell it something."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value).encode() + b"\n")
        self.process.stdin.flush()

    def kill(self, how: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        self.process.send_signal(how)

    def ended(self) -> tuple[int, str]:
        """Wait for its end; return its exit code, and what it wrote to standard error."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors.decode(errors="replace")


@contextmanager
def program(function: Callable[..., Any], *arguments: Any, family: Family) -> Iterator[Program]:
    """Run a function of a test module in an interpreter of its own.

    Args:
        function: importable by its name.
        arguments: for it; what JSON can say.
        family: which it is of.
    """
    command = [
        *(sys.executable, "-m", "tests.chaos.programs"),
        *(function.__module__, function.__qualname__, json.dumps(arguments)),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=family.environment,
    )
    try:
        yield Program(process)
    finally:
        # Workers may hold its output open: end them first.
        if process.poll() is None:
            process.kill()
        process.wait()
        family.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


if __name__ == "__main__":
    module, name, given = sys.argv[1:]
    getattr(importlib.import_module(module), name)(*json.loads(given))
