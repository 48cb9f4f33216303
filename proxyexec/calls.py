"""Calls as records: written down, run by a command, and their results read back.

::

    call = Call(function, args, kwargs, outputs=["*.csv"])
    call.write("call.json")
    # python -m proxyexec.call call.json result.json
    result = CallResult.read("result.json")

:func:`run` does all of it, :func:`command_line` says what a batch system needs to know, and a
:class:`CommandExecutor` runs each call of a program in this way.
"""

from __future__ import annotations

from proxyexec._call_records import Call, Requirements
from proxyexec._call_results import CallResult, Streams
from proxyexec._command_executor import CommandExecutor, CommandFuture, run
from proxyexec._commands import CommandLine, command_line

__all__ = [
    "Call",
    "CallResult",
    "CommandExecutor",
    "CommandFuture",
    "CommandLine",
    "Requirements",
    "Streams",
    "command_line",
    "run",
]
