"""Calls as records: small, written down, and read again. Knows nothing of processes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxyexec._call_fields import Fields, absolute, read_json, write_json
from proxyexec._call_payloads import CallPayloads
from proxyexec._carried import callable_name
from proxyexec._proxy import is_proxy
from proxyexec.serializers import Serializers

__all__ = ["Call", "Requirements", "called_in", "check_timeout", "checked_environment"]

CALL_FORMAT = "proxyexec.call"
VERSION = 1

# Libraries that start threads of their own look here for how many.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Requirements:
    """What a call needs to be run.

    Args:
        ranks: in how many processes of one MPI job the function is called, in each with the same
            arguments. They are started by a launcher such as ``mpiexec``. ``None`` is without MPI.
        threads: how many threads libraries for arrays may use; they are told so by environment
            variables, unless the call's environment says otherwise.
        timeout: seconds that the function may take; its process is ended then.

    Raises:
        ValueError: one of them is below 1, or ``timeout`` is not above 0.
        TypeError: one of them is no number.
    """

    ranks: int | None = None
    threads: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        for name in ("ranks", "threads"):
            value = getattr(self, name)
            if value is None:
                continue
            if type(value) is not int:
                raise TypeError(f"{name} must be an integer, not {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")
        check_timeout(self.timeout)

    def environment(self) -> dict[str, str]:
        """Return the environment variables that say how many threads there may be."""
        return {} if self.threads is None else dict.fromkeys(_THREADS, str(self.threads))

    def to_json(self) -> dict[str, Any]:
        """Return what there is of it, for :func:`json.dumps`."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Call:
    """A function and what to call it with, and what that takes.

    Args:
        function: what is called.
        args: its arguments.
        kwargs: its keyword arguments.
        environment: environment variables of its process; ``None`` for one that is not to be
            there.
        directory: where it is called; made if it is not there, and kept. Without, that is where
            the runner was started; but a call with an archive, or with outputs, gets a new
            directory, which is removed.
        archive: of the tar or zip format; unpacked in the directory before the call.
        outputs: which files are returned: paths relative to the directory, in which ``*``, ``?``,
            ``[…]`` and ``**`` stand for others, as in :func:`glob.glob`.
        requirements: what it needs to be run.
        serializers: the strategies by which function, arguments and result travel.
        path: directories that modules are looked for in, before the runner's own
            (``sys.path``).
        id: names the call in its result; made up if not given.

    Raises:
        TypeError: what is given is not of the type that it has to be.
        ValueError: an output is not in the directory, or a name of a variable is none.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        environment: Mapping[str, str | None] | None = None,
        directory: str | os.PathLike[str] | None = None,
        archive: str | os.PathLike[str] | None = None,
        outputs: Sequence[str] = (),
        requirements: Requirements | None = None,
        serializers: Serializers | None = None,
        path: Sequence[str] = (),
        id: str | None = None,  # noqa: A002 - what it is
    ) -> None:
        if not callable(function):
            raise TypeError(f"a call needs a function, not an object of type {type(function)}")
        self._loaded: tuple[Any, tuple[Any, ...], dict[str, Any]] | None = (
            function,
            tuple(args),
            dict(kwargs or {}),
        )
        self._payloads: CallPayloads | None = None
        self.name = name_of_function(function)
        """What the function is called, for messages."""
        self._set(
            environment=dict(environment or {}),
            directory=None if directory is None else os.path.abspath(directory),
            archive=None if archive is None else os.path.abspath(archive),
            outputs=_texts("outputs", outputs),
            requirements=Requirements() if requirements is None else requirements,
            serializers=Serializers() if serializers is None else serializers,
            path=_texts("path", path),
            id=os.urandom(16).hex() if id is None else id,
        )

    def _set(
        self,
        *,
        environment: dict[str, str | None],
        directory: str | None,
        archive: str | None,
        outputs: tuple[str, ...],
        requirements: Requirements,
        serializers: Serializers,
        path: tuple[str, ...],
        id: str,  # noqa: A002 - what it is
    ) -> None:
        self.environment = checked_environment(environment)
        self.directory = directory
        self.archive = archive
        self.outputs = outputs
        for pattern in outputs:
            check_output(pattern)
        self.requirements = requirements
        self.serializers = serializers
        self.path = path
        self.id = id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {self.name}>"

    @property
    def function(self) -> Any:
        """What is called; loaded now, if the call was read from a record."""
        return self.load()[0]

    @property
    def args(self) -> tuple[Any, ...]:
        """Its arguments; loaded now, if the call was read from a record."""
        return self.load()[1]

    @property
    def kwargs(self) -> dict[str, Any]:
        """Its keyword arguments; loaded now, if the call was read from a record."""
        return self.load()[2]

    def load(
        self, allowed: Sequence[str] | None = None
    ) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Return function, arguments and keyword arguments.

        Args:
            allowed: the strategies by which these may travel, where they are not loaded yet; any
                if ``None``.

        Raises:
            ForeignPayloadError: one of them is not allowed, or cannot be read by this Python:
                nothing is loaded then.
            DeserializationError: loading raised.
        """
        if self._loaded is None:
            assert self._payloads is not None  # noqa: S101 - it is the one or the other
            self._loaded = self._payloads.load(self.name, allowed)
        return self._loaded

    def to_json(self) -> dict[str, Any]:
        """Return the record, for :func:`json.dumps`; docs/calls.md says what is in it.

        Raises:
            NoStrategyError: no strategy can do a part of the call; the error says which.
        """
        payloads = self._payloads
        if payloads is None:
            payloads = CallPayloads.of(self.name, self.load(), self.serializers)
        record: dict[str, Any] = {
            "format": CALL_FORMAT,
            "version": VERSION,
            "id": self.id,
            "name": self.name,
            **payloads.to_json(),
            "environment": self.environment,
            "directory": self.directory,
            "archive": self.archive,
            "outputs": list(self.outputs),
            "requirements": self.requirements.to_json(),
            "results": list(self.serializers.results or ()),
            "path": list(self.path),
        }
        return record

    @classmethod
    def from_json(cls, record: Any, *, name: str = "the record", base: str | None = None) -> Call:
        """Return the call that a record is of; nothing of it is loaded yet.

        Args:
            record: what :func:`json.load` returned.
            name: what it is, for messages.
            base: the directory that paths in it are relative to; the current one if ``None``.

        Raises:
            CallRecordError: it is no record of a call; the error says which field is wrong.
        """
        fields = Fields(name, record, _CALL_FIELDS)
        fields.format(CALL_FORMAT, VERSION)
        environment = fields.entries("environment")
        results = fields.texts("results")
        needs = Fields(
            name, fields.entries("requirements"), ("ranks", "threads", "timeout"), "requirements"
        )
        call = cls.__new__(cls)
        call._loaded = None
        call._payloads = CallPayloads.from_fields(fields)
        call.name = fields.text("name", call._payloads.name)
        chosen = fields.made("results", Serializers, results=results or None)
        requirements = fields.made(
            "requirements",
            Requirements,
            needs.integer("ranks", None),
            needs.integer("threads", None),
            needs.number("timeout", None),
        )
        fields.made("environment", checked_environment, environment)
        outputs = fields.texts("outputs")
        for number, pattern in enumerate(outputs):
            fields.made(f"outputs[{number}]", check_output, pattern)
        call._set(
            environment=environment,
            directory=absolute(fields.text("directory", None), base),
            archive=absolute(fields.text("archive", None), base),
            outputs=outputs,
            requirements=requirements,
            serializers=chosen,
            path=fields.texts("path"),
            id=fields.text("id", None) or os.urandom(16).hex(),
        )
        return call

    def write(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        """Write the record to a file that only its owner can read; it is whole, or not there.

        Args:
            path: of the file.
            durable: whether that is so after a failure of the machine, too.

        Raises:
            NoStrategyError: no strategy can do a part of the call; the error says which.
            OSError: the file cannot be written.
        """
        write_json(os.fspath(path), self.to_json(), durable=durable)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Call:
        """Return the call that a file is the record of; nothing of it is loaded yet.

        Raises:
            CallRecordError: it cannot be read, or is no record of a call.
        """
        name = os.fspath(path)
        return cls.from_json(
            read_json(name), name=name, base=os.path.dirname(os.path.abspath(name))
        )


def checked_environment(environment: Mapping[str, Any]) -> dict[str, str | None]:
    """Return environment variables that can be set.

    Raises:
        TypeError: a name or a value is no text.
        ValueError: one cannot be set.
    """
    for name, value in environment.items():
        if not isinstance(name, str) or not (value is None or isinstance(value, str)):
            raise TypeError(f"environment variables are texts, or None: {name!r}: {value!r}")
        if not name or "=" in name or "\0" in name or "\0" in (value or ""):
            raise ValueError(f"there is no environment variable {name!r} with such a value")
    return dict(environment)


def check_output(pattern: str) -> None:
    """Check that what a pattern stands for is in the directory of a call.

    Raises:
        ValueError: it is not.
    """
    parts = pattern.split("/")
    if not pattern or os.path.isabs(pattern) or os.pardir in parts or "\0" in pattern:
        raise ValueError(f"outputs are paths within the directory of the call, not {pattern!r}")


def check_timeout(timeout: Any) -> None:
    """Check that a call may take so many seconds.

    Raises:
        TypeError: it is no number.
        ValueError: it is not above 0, or has no end.
    """
    if timeout is None:
        return
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool):
        raise TypeError(f"timeout must be a number of seconds, not {timeout!r}")
    if not (0 < timeout < math.inf):
        raise ValueError(f"timeout must be above 0 and finite, not {timeout!r}")


def name_of_function(function: Any) -> str:
    """Return what a function is called in messages; tasks look like the functions they call."""
    if is_proxy(function):
        return callable_name(function)
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) else callable_name(function)


def called_in(call: Call) -> str:
    """Return what a call is to its user, for messages."""
    return f"{call.name} (call {call.id})"


def _texts(name: str, values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(one, str) for one in values):
        raise TypeError(f"{name} must be a sequence of texts, not {values!r}")
    return tuple(values)


_CALL_FIELDS = (
    *("format", "version", "id", "name", "function", "arguments", "args", "kwargs"),
    *("environment", "directory", "archive", "outputs", "requirements", "results", "path"),
)
