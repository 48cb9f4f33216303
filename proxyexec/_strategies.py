"""Strategies: the ways to turn an object into frames that have a name, and who knows them.

The pickles (``pickle``, ``cloudpickle``, ``dill``) do data and code, ``json`` does data,
``reference`` and ``source`` do code. Third parties :func:`register` their own, or have a module
that does imported when it is needed, by an entry point of the group ``proxyexec.strategies``.

This module knows no payloads: see :mod:`proxyexec.serializers`.
"""

from __future__ import annotations

import functools
import json
import re
import types
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

from proxyexec._picklers import CLOUD, PLAIN, Pickled, pickled_by
from proxyexec._proxy import is_proxy
from proxyexec._serialize import frames_of_pickle, load_pickle
from proxyexec._source import function_from, source_of
from proxyexec.errors import MissingExtraError, name_of

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

__all__ = ["COMBINED", "Strategy", "carried", "find", "names", "register"]


class Strategy(Protocol):
    """A way to turn objects into frames and back.

    It may also say, as ``body``, how its one frame is written in JSON: ``"json"`` if that is JSON
    itself, or ``"text"`` if it is text in UTF-8.
    """

    @property
    def name(self) -> str:
        """What it is called; of lower-case letters, digits and ``.``, ``_``, ``-``."""
        ...

    @property
    def version(self) -> int:
        """Of the format that it writes, which is the only one that it reads."""
        ...

    @property
    def portable(self) -> bool:
        """Whether other minor versions of Python can read what this one writes."""
        ...

    def dumps(self, obj: Any) -> Frames:
        """Return frames that represent ``obj``, or raise an error that says why not."""
        ...

    def loads(self, frames: Frames) -> Any:
        """Return the object that ``frames`` represent."""
        ...


class _Pickle:
    """Pickle protocol 5, buffers out of band."""

    name: str = "pickle"
    version: int = 1
    portable: bool = False

    def dumps(self, obj: Any) -> Frames:
        return frames_of_pickle(self._pickled(obj))

    def loads(self, frames: Frames) -> Any:
        return load_pickle(frames)

    def _pickled(self, obj: Any) -> Pickled:
        return pickled_by(PLAIN, obj, None, None)


class _Cloudpickle(_Pickle):
    """The same for functions and classes that cannot be imported, too."""

    name = "cloudpickle"

    def _pickled(self, obj: Any) -> Pickled:
        return pickled_by(CLOUD, obj, None, None)


class _Dill(_Pickle):
    """What pickle and cloudpickle have no way for, some of it."""

    name = "dill"

    def loads(self, frames: Frames) -> Any:
        return load_pickle(frames, _dill().Unpickler)

    def _pickled(self, obj: Any) -> Pickled:
        return pickled_by((_dill_pickler(), None, None), obj, None, None)


class _Json:
    """JSON, for what comes back from it equal and of the same types, all through.

    That are ``None``, ``bool``, ``int``, finite ``float``, ``str``, and ``list`` and ``dict`` of
    these, the keys being ``str``; of exactly these types.
    """

    name: str = "json"
    version: int = 1
    portable: bool = True
    body: Literal["json"] = "json"

    def dumps(self, obj: Any) -> Frames:
        _check_json(obj)
        return [_ENCODER.encode(obj).encode()]

    def loads(self, frames: Frames) -> Any:
        (text,) = frames
        return _DECODER.decode(str(text, "utf-8"))


class _Reference:
    """``module:qualname``, for what can be imported under its name."""

    name: str = "reference"
    version: int = 1
    portable: bool = True
    body: Literal["text"] = "text"

    def dumps(self, obj: Any) -> Frames:
        owner, name = obj, getattr(obj, "__qualname__", None)
        bound = isinstance(obj, (types.MethodType, types.BuiltinMethodType))
        if bound and isinstance(obj.__self__, type):
            owner, name = obj.__self__, f"{obj.__self__.__qualname__}.{obj.__name__}"
        module = getattr(owner, "__module__", None)
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError(f"an object of type {name_of(type(obj))} has no name to be found by")
        if module == "__main__":
            raise ValueError(f"{name} is in __main__, which is another module elsewhere")
        if "<" in name:
            raise ValueError(f"{module}:{name} cannot be imported: it is made by a call")
        found = _imported(module, name)
        if found is not obj and not (bound and found == obj):
            raise ValueError(f"{module}:{name} is another object")
        return [f"{module}:{name}".encode()]

    def loads(self, frames: Frames) -> Any:
        (text,) = frames
        module, colon, name = bytes(text).decode().partition(":")
        if not (module and colon and name):
            raise ValueError(f"no module:qualname: {bytes(text).decode()!r}")
        return _imported(module, name)


class _Source:
    """The text of a function that needs nothing but what is in it."""

    name: str = "source"
    version: int = 1
    portable: bool = True
    body: Literal["text"] = "text"

    def dumps(self, obj: Any) -> Frames:
        return [source_of(obj).encode()]

    def loads(self, frames: Frames) -> Any:
        (text,) = frames
        return function_from(bytes(text).decode())


def register(strategy: Strategy, *, for_code: bool = False, for_data: bool = False) -> None:
    """Make a strategy known in this process, under its name.

    An executor hands those that its :class:`~proxyexec.serializers.Serializers` name to its
    workers; they are pickled for that. Other programs have to register them, too.

    Args:
        strategy: has no state that matters, and can be pickled.
        for_code: whether functions can travel by it.
        for_data: whether arguments and results can.

    Raises:
        ValueError: it has no proper name or version, another strategy has its name, or it is for
            nothing.
    """
    if not _NAME.fullmatch(strategy.name):
        raise ValueError(f"no name for a strategy: {strategy.name!r}; such as 'my-format' is one")
    if type(strategy.version) is not int or strategy.version < 0:
        raise ValueError(f"the version of a strategy is a number: {strategy.version!r}")
    if strategy.name == _COMBINED:
        raise ValueError(f"there is a strategy called {strategy.name!r}")
    if not (for_code or for_data):
        raise ValueError(f"say what {strategy.name!r} is for: for_code=True or for_data=True")
    # Without a lock, which a forked process could find taken for ever: this is atomic.
    known, *_ = _known.setdefault(strategy.name, (strategy, for_code, for_data))
    if not _same(known, strategy):
        raise ValueError(f"there is a strategy called {strategy.name!r}")


def names(kind: Literal["code", "data"] | None = None) -> tuple[str, ...]:
    """Return the names of the strategies that are known, for code or data, or of all."""
    return tuple(
        name
        for name, (_, code, data) in _known.copy().items()
        if kind is None or (code if kind == "code" else data)
    )


def find(name: str) -> Strategy | None:
    """Return the strategy of that name, if there is one."""
    known = _known.get(name)
    if known is None:
        from importlib.metadata import entry_points  # noqa: PLC0415 - slow, and hardly ever needed

        for entry in entry_points(group="proxyexec.strategies", name=name):
            entry.load()  # which registers it
        known = _known.get(name)
    return None if known is None else known[0]


def carried(wanted: tuple[str, ...]) -> tuple[tuple[Strategy, bool, bool], ...]:
    """Return what to register elsewhere for these names, of what is not built in."""
    return tuple(_known[name] for name in wanted if name in _known and name not in _BUILT_IN)


def receive(strategies: tuple[tuple[Strategy, bool, bool], ...]) -> None:
    """Register what has been :func:`carried` here, where names are not known yet."""
    for strategy, for_code, for_data in strategies:
        if find(strategy.name) is None:
            register(strategy, for_code=for_code, for_data=for_data)


def _same(one: Strategy, other: Strategy) -> bool:
    """Tell that a module, imported again, registers what it has registered."""
    return (name_of(type(one)), one.version) == (name_of(type(other)), other.version)


def _dill() -> Any:
    try:
        return import_module("dill")
    except ImportError as error:
        raise MissingExtraError("the strategy 'dill'", "dill") from error


@functools.cache
def _dill_pickler() -> Any:
    dill = _dill()

    class Pickler(dill.Pickler):  # type: ignore[misc, name-defined]  # it has no types
        """Takes along the globals that functions mention, not all there are."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, recurse=True, **kwargs)

    return Pickler


def _imported(module: str, name: str) -> Any:
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _check_json(obj: Any) -> None:
    """Raise unless JSON gives an object back as it is."""
    pending = [obj]
    opened: set[int] = set()  # containers that have been looked into
    while pending:
        one = pending.pop()
        kind = type(one)
        if kind in _JSON_ATOMS:
            continue
        if kind is not dict and kind is not list:
            raise TypeError(_not_json(one))
        if id(one) in opened:
            continue
        opened.add(id(one))
        inside: Any = one
        if kind is dict:
            inside = one.values()
            for key in one:
                if type(key) is not str:
                    raise TypeError(f"keys are text in JSON, not {name_of(type(key))}: {key!r:.80}")
        if not _JSON_ATOMS.issuperset(map(type, inside)):
            pending.extend(inside)


def _not_json(obj: Any) -> str:
    if is_proxy(obj):
        return "there are no proxies in JSON; pass the proxy as an argument of its own"
    return f"there is no {name_of(type(obj))} in JSON that would come back as one"


def _no_constant(text: str) -> Any:
    raise ValueError(f"there is no {text} in JSON")


# The text as it is: escapes would make one character of two surrogates.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_constant=_no_constant)

_JSON_ATOMS = frozenset({type(None), bool, int, float, str})

# The name of a list of strategies, see below.
_COMBINED = "combined"

COMBINED = ("reference", "cloudpickle", "dill")
"""What ``"combined"`` stands for.

First by reference: it is shortest, any Python reads it, and it is what arrives, class identity
and globals included, that pools of the standard library would have found. Then as cloudpickle,
whose by-value code is the most widely tested; then as dill, which can do a little more and is
slow. Not by source: what that can do cloudpickle can, and its own advantage, to be readable by
other versions of Python, is nothing to be had by chance.
"""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

_known: dict[str, tuple[Strategy, bool, bool]] = {
    "pickle": (_Pickle(), True, True),
    "cloudpickle": (_Cloudpickle(), True, True),
    "dill": (_Dill(), True, True),
    "json": (_Json(), False, True),
    "reference": (_Reference(), True, False),
    "source": (_Source(), True, False),
}
_BUILT_IN = frozenset(_known)
