"""Results of calls as records: written down, and read again. Knows nothing of processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxyexec._call_fields import Fields, absolute, joined, read_json, write_json
from proxyexec._call_payloads import Raised, payload_in
from proxyexec.serializers import Payload, Serializers, decode, encode

__all__ = ["CallResult", "Streams"]

RESULT_FORMAT = "proxyexec.result"
VERSION = 1


@dataclass(frozen=True)
class Streams:
    """The files that one rank's standard output and standard error are in."""

    stdout: str
    stderr: str


class CallResult:
    """What came of a call.

    Args:
        return_value: what the function returned, if it did.
        exception: what it raised instead, or what kept it from ending.
        call: the call's id.
        name: what the function is called, for messages.
        stdout: the file that has what the call, and processes that it started, have written to
            standard output.
        stderr: the same, of standard error.
        ranks: the files of each rank, where there are several; ``stdout`` and ``stderr`` are
            those of rank 0.
        directory: where the outputs are that the call asked for; ``None`` if it asked for none.
        outputs: their paths, relative to ``directory``.
        missing: what the call asked for, of what there is none.
        started: when the call began, in seconds since 1970.
        seconds: how long it took.
        results: the strategies by which ``return_value`` and ``exception`` travel.
    """

    def __init__(
        self,
        return_value: Any = None,
        exception: BaseException | None = None,
        *,
        call: str = "",
        name: str = "the function",
        stdout: str | None = None,
        stderr: str | None = None,
        ranks: Sequence[Streams] = (),
        directory: str | None = None,
        outputs: Sequence[str] = (),
        missing: Sequence[str] = (),
        started: float = 0.0,
        seconds: float = 0.0,
        results: str | Sequence[str] | None = None,
    ) -> None:
        if exception is not None and return_value is not None:
            raise ValueError("a call returns a value or raises an exception, and not both")
        self._loaded: tuple[Any, BaseException | None] | None = (return_value, exception)
        self._returned: Payload | None = None
        self._raised: Raised | None = None
        self._allowed: Sequence[str] | None = None
        self._results = Serializers(results=results).results or ()
        self.call = call
        self.name = name
        self.stdout = stdout
        self.stderr = stderr
        self.ranks = tuple(ranks)
        self.directory = directory
        self.outputs = tuple(outputs)
        self.missing = tuple(missing)
        self.started = started
        self.seconds = seconds

    def __repr__(self) -> str:
        became = "returned" if self.succeeded else "raised"
        return f"<{type(self).__name__} of {self.call}: {self.name} {became}>"

    @property
    def succeeded(self) -> bool:
        """Whether the function returned."""
        if self._loaded is not None:
            return self._loaded[1] is None
        return self._raised is None

    @property
    def return_value(self) -> Any:
        """What the function returned; loaded now, if the result was read from a record.

        Raises:
            ForeignPayloadError: it is not allowed, or cannot be read by this Python.
            DeserializationError: loading raised.
        """
        return self._load()[0]

    @property
    def exception(self) -> BaseException | None:
        """What the function raised, or what kept it from ending.

        One that cannot be made again here, as its class is missing for instance, is a
        :class:`~proxyexec.errors.RemoteError` that says what it was.
        """
        return self._load()[1]

    def value(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        value, error = self._load()
        if error is not None:
            try:
                raise error
            finally:
                del error  # whose traceback refers to this frame
        return value

    def to_json(self, *, relative_to: str | None = None) -> dict[str, Any]:
        """Return the record, for :func:`json.dumps`; docs/calls.md says what is in it.

        Args:
            relative_to: a directory; the paths of what is in there are written relative to it.

        Raises:
            NoStrategyError: no strategy can do the return value.
        """
        self._serialize()

        def path(one: str | None) -> str | None:
            if one is None or relative_to is None:
                return one
            relative = os.path.relpath(one, relative_to)
            return one if relative.startswith(os.pardir) else relative

        return {
            "format": RESULT_FORMAT,
            "version": VERSION,
            "call": self.call,
            "name": self.name,
            "return_value": None if self._returned is None else self._returned.to_json(),
            "exception": None if self._raised is None else self._raised.to_json(),
            "stdout": path(self.stdout),
            "stderr": path(self.stderr),
            "ranks": [
                {"stdout": path(one.stdout), "stderr": path(one.stderr)} for one in self.ranks
            ],
            "directory": path(self.directory),
            "outputs": list(self.outputs),
            "missing": list(self.missing),
            "started": self.started,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(
        cls,
        record: Any,
        *,
        name: str = "the record",
        base: str | None = None,
        allowed: Sequence[str] | None = None,
    ) -> CallResult:
        """Return the result that a record is of; nothing of it is loaded yet.

        Args:
            record: what :func:`json.load` returned.
            name: what it is, for messages.
            base: the directory that paths in it are relative to; the current one if ``None``.
            allowed: the strategies by which value or exception may travel; any if ``None``.

        Raises:
            CallRecordError: it is no record of a result; the error says which field is wrong.
        """
        fields = Fields(name, record, _RESULT_FIELDS)
        fields.format(RESULT_FORMAT, VERSION)
        if ("return_value" in fields) == ("exception" in fields):
            raise fields.error("return_value", "expected this or exception, and not both")
        ranks = [
            Fields(name, one, ("stdout", "stderr"), f"ranks[{number}]")
            for number, one in enumerate(fields.items("ranks"))
        ]
        result = cls(
            call=fields.text("call", ""),
            name=fields.text("name", "the function"),
            stdout=absolute(fields.text("stdout", None), base),
            stderr=absolute(fields.text("stderr", None), base),
            ranks=[
                Streams(joined(one.text("stdout"), base), joined(one.text("stderr"), base))
                for one in ranks
            ],
            directory=absolute(fields.text("directory", None), base),
            outputs=fields.texts("outputs"),
            missing=fields.texts("missing"),
            started=float(fields.number("started", 0.0)),
            seconds=float(fields.number("seconds", 0.0)),
        )
        result._loaded = None
        result._allowed = allowed
        if "exception" in fields:
            result._raised = Raised.from_fields(fields)
        else:
            result._returned = payload_in(fields, "return_value", fields.raw("return_value"))
        return result

    def write(self, path: str | os.PathLike[str], *, replace: bool = True) -> bool:
        """Write the record to a file that only its owner can read; it is whole, or not there.

        Args:
            path: of the file.
            replace: whether to replace one that is there.

        Returns:
            Whether it was written.

        Raises:
            NoStrategyError: no strategy can do the return value.
            OSError: the file cannot be written.
        """
        name = os.path.abspath(path)
        return write_json(name, self.to_json(relative_to=os.path.dirname(name)), replace=replace)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], *, allowed: Sequence[str] | None = None
    ) -> CallResult:
        """Return the result that a file is the record of; nothing of it is loaded yet.

        Args:
            path: of the file.
            allowed: the strategies by which value or exception may travel; any if ``None``.

        Raises:
            CallRecordError: it cannot be read, or is no record of a result.
        """
        name = os.fspath(path)
        base = os.path.dirname(os.path.abspath(name))
        return cls.from_json(read_json(name), name=name, base=base, allowed=allowed)

    def _load(self) -> tuple[Any, BaseException | None]:
        if self._loaded is None:
            if self._raised is not None:
                self._loaded = None, self._raised.load(self.name, self._allowed)
            else:
                assert self._returned is not None  # noqa: S101 - it is the one or the other
                what = f"the result of {self.name}"
                self._loaded = decode(self._returned, allowed=self._allowed, what=what), None
        return self._loaded

    def _serialize(self) -> None:
        if self._returned is not None or self._raised is not None:
            return
        assert self._loaded is not None  # noqa: S101 - it is the one or the other
        value, error = self._loaded
        if error is not None:
            self._raised = Raised.of(error, self._results)
        else:
            what = f"the result of {self.name}"
            self._returned = encode(value, self._results, what=what)


_RESULT_FIELDS = (
    *("format", "version", "call", "name", "return_value", "exception", "stdout", "stderr"),
    *("ranks", "directory", "outputs", "missing", "started", "seconds"),
)
