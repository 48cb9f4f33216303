"""Putting a call through its strategies, there and back, to see what would arrive.

In this process, or by way of a fresh interpreter, which is a real one: nothing of this process is
in it. See :mod:`proxyexec._fresh` for its side.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle

from proxyexec._carried import callable_name
from proxyexec._payloads import Payload, Serializers, decode, encode
from proxyexec._strategies import carried
from proxyexec.errors import DeserializationError, NoStrategyError

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

__all__ = ["Arrived", "Part", "check"]


class Arrived(NamedTuple):
    """What of a call has arrived."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Part(NamedTuple):
    """A part of a call on its way to a fresh interpreter."""

    what: str
    """What it is to the caller, for messages."""
    strategies: tuple[str, ...]
    """Those to send it back by; functions are read if one of these wrote them."""
    allowed: tuple[str, ...] | None
    """Those to read it by."""
    code: bool
    """Whether it is the function."""
    frames: Frames
    """Its payload."""


def check(
    fn: Callable[..., Any],
    /,
    *args: Any,
    isolated: bool = False,
    serializers: Serializers | None = None,
    **kwargs: Any,
) -> Arrived:
    """Put a call through its strategies there and back, and return what arrived.

    The function is not called. An argument of it that is itself named ``isolated`` or
    ``serializers`` is given by position here.

    Args:
        fn: the function.
        args: its arguments by position.
        isolated: whether it goes by way of a fresh interpreter, started for this: with the same
            ``sys.path``, but nothing imported, and another ``__main__``.
        serializers: which strategies; the usual ones by default.
        kwargs: its arguments by keyword.

    Raises:
        NoStrategyError: a part cannot be sent; the error says which one, and why.
        DeserializationError: a part does not arrive, or does not come back.
        MissingExtraError: a strategy needs a library that is not installed.
    """
    chosen = Serializers() if serializers is None else serializers
    parts = list(_parts(chosen, fn, args, kwargs))
    if isolated:
        came_back = _by_way_of_another(parts, chosen)
    else:
        came_back = [Payload.from_frames(part.frames) for part in parts]
    function, *arrived = (
        decode(payload, allowed=part.allowed, what=part.what)
        for part, payload in zip(parts, came_back, strict=True)
    )
    by_position, by_keyword = arrived[: len(args)], arrived[len(args) :]
    return Arrived(function, tuple(by_position), dict(zip(kwargs, by_keyword, strict=True)))


def _parts(
    serializers: Serializers, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Iterator[Part]:
    called = callable_name(fn)
    what = f"the function {called}"
    by = tuple(serializers.code)
    frames = encode(fn, by, what=what, code=True).to_frames()
    yield Part(what, by, by, code=True, frames=[bytes(frame) for frame in frames])
    by = tuple(serializers.data)
    allowed = None if serializers.allowed is None else tuple(serializers.allowed)
    names = [*range(len(args)), *kwargs]
    for name, value in zip(names, (*args, *kwargs.values()), strict=True):
        what = f"argument {name!r} of {called}"
        frames = encode(value, by, what=what).to_frames()
        yield Part(what, by, allowed, code=False, frames=[bytes(frame) for frame in frames])


def _by_way_of_another(parts: Sequence[Part], serializers: Serializers) -> list[Payload]:
    """Have a fresh interpreter load all parts, and send them back."""
    strategies = cloudpickle.dumps(carried(serializers.names()))
    with tempfile.TemporaryDirectory(prefix="proxyexec-check-") as directory:
        with open(os.path.join(directory, "there"), "wb") as file:
            pickle.dump((strategies, [tuple(part) for part in parts]), file)
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            "from proxyexec._fresh import main; main(sys.argv[1])"
        )
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        ended = subprocess.run(  # noqa: S603 - it is this interpreter
            [sys.executable, *flags, "-c", program, directory],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        answers = iter(list(_answers(os.path.join(directory, "back"))))
    came_back: list[Payload] = []
    for part in parts:
        try:
            error, answer = next(answers)
        except StopIteration:
            # It died of this part, or before any of them.
            said = ended.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
            reason = f"a fresh interpreter that loaded it ended with status {ended.returncode}"
            reason += f": {said}" if said else ""
            raise DeserializationError(part.what, reason) from None
        if error == "loads":
            raise DeserializationError(part.what, f"in a fresh interpreter, {answer}")
        if error == "dumps":
            kind, reasons = answer
            raise NoStrategyError(f"{part.what}, back from a fresh interpreter", kind, reasons)
        came_back.append(Payload.from_frames(answer, what=part.what))
    return came_back


def _answers(path: str) -> Iterator[tuple[str, Any]]:
    """Yield what the other interpreter has answered, about one part after the other."""
    if os.path.exists(path):
        with open(path, "rb") as file:
            while True:
                try:
                    yield pickle.load(file)
                except (EOFError, pickle.UnpicklingError):  # the last one may not be all there
                    return
