"""``ExecutorSpec``: a base executor, as data."""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import re
from collections.abc import Callable, Collection
from concurrent import futures
from concurrent.futures import Executor
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    TypeVar,
    cast,
)

from pydantic import ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema  # noqa: TC002 - pydantic reads annotations
from typing_extensions import Self

from proxyexec import pools
from proxyexec._config_callable import checked_arguments
from proxyexec._config_names import find, name_and_arguments, name_of_callable
from proxyexec._config_signature import Call
from proxyexec._config_spec import Spec
from proxyexec._config_values import is_settled, made
from proxyexec._executor import StoreExecutor
from proxyexec._lent import Lent
from proxyexec.errors import name_of

__all__ = ["ExecutorSpec", "plain_arguments"]

T = TypeVar("T")


def _with_arguments(schema: dict[str, Any]) -> None:
    """Say in a JSON schema that arguments may stand beside the fields."""
    schema["additionalProperties"] = True
    life = schema["properties"].get("life", {}).get("const")
    schema["required"] = ["life"] if life == "persistent" else []


# Classes whose methods have other names, by their own.
_DEVIANTS: dict[str, dict[str, str]] = {
    # Its shutdown() ends the cluster, which may be other people's.
    "distributed.client.Client": {"shutdown_method": "close"},
}


class ExecutorSpec(Spec, Generic[T]):
    """A base executor: a class or a function that makes one, and its arguments.

    ::

        ExecutorSpec[ThreadPoolExecutor](max_workers=1)
        ExecutorSpec(type="loky:get_reusable_executor", max_workers=4)
        ExecutorSpec[Client](address="tcp://scheduler:8786")
        ExecutorSpec(executor=client.get_executor())

    Arguments of the executor stand beside the fields, or among ``kwargs`` if they have the name of
    one. They are checked against its signature, and the class is checked to follow PEP 3148.

    Args:
        type: ``"module:qualname"`` of a class, or of a function that returns an executor; that of
            the type parameter if there is one.
        kwargs: arguments for it.
        submit_method: how its method is called that does what ``submit(fn, /, *args, **kwargs)``
            does, for classes that have another name for it.
        map_method: the same for ``map``; ``None`` if it has none.
        shutdown_method: the same for ``shutdown``; ``None`` if there is nothing to shut down.
        executor: an executor that is there already, in place of ``type`` and ``kwargs``. It stays
            when its users are shut down. A pool of the standard library is described by its
            arguments; others can be used here and now, and cannot be made again from data.
        live: in data, says that it was such a one.

    Raises:
        pydantic.ValidationError: there is no such class, it does not take these arguments, it is
            no executor; or ``executor`` is not of the type.
    """

    # What is no field is an argument.
    model_config = ConfigDict(json_schema_extra=_with_arguments)
    _alone: ClassVar[dict[str, Any] | None] = {"type": "string", "description": "its type"}

    type: str = Field(description='"module:qualname" of a class or of a function that makes one')
    kwargs: dict[str, Any] = Field(default={}, description="its arguments")
    submit_method: str = Field(default="submit", description="what its submit() is called")
    map_method: str | None = Field(default="map", description="what its map() is called")
    shutdown_method: str | None = Field(
        default="shutdown", description="what its shutdown() is called"
    )
    live: bool = Field(default=False, description="it was an object, which cannot be made again")
    executor: SkipJsonSchema[Any] = Field(default=None, exclude=True, repr=False)

    if TYPE_CHECKING:

        def __init__(self, **data: Any) -> None: ...

    @classmethod
    def _given(cls, value: Any) -> Any:
        # One with another parameter, or of another life: pydantic would take all of its attributes.
        return value if isinstance(value, cls) else _as_data(value)

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = {**data, "kwargs": _all_arguments(data, cls.model_fields)}
        data = {name: one for name, one in data.items() if name in cls.model_fields}
        expected = cls._expected()
        if data.get("executor") is not None:
            return cls._described(data, data["executor"], expected)
        if data.get("live"):
            raise ValueError(_NOT_AGAIN.format(type=data.get("type")))
        kind = data.get("type", expected)
        if kind is None:
            raise ValueError(
                'lacks "type", the name of an executor, like '
                '"concurrent.futures:ProcessPoolExecutor"'
            )
        if not isinstance(kind, str) and callable(kind):
            kind, args, kwargs = name_and_arguments(kind)
            if args:
                raise ValueError(f"arguments of {kind!r} have to be given by name")
            data["kwargs"] = {**kwargs, **data["kwargs"]}
        deviant = _DEVIANTS.get(_full_name(find(kind)), {}) if isinstance(kind, str) else {}
        return checked_arguments({**deviant, **data, "type": kind})

    @classmethod
    def _described(cls, data: dict[str, Any], executor: Any, expected: Any) -> dict[str, Any]:
        if set(data) - {"executor", "kwargs", "life", *_METHODS} or data["kwargs"]:
            raise ValueError("an executor that is there already takes no type and no arguments")
        kind = type(executor)
        if expected is not None and not isinstance(executor, expected):
            raise ValueError(
                f"executor is of type {name_of(kind)}, and is to be a {name_of(expected)}"
            )
        described = {**_DEVIANTS.get(_full_name(kind), {}), **data, "type": name_of_callable(kind)}
        plain = plain_arguments(executor)
        try:
            if plain is not None:
                return checked_arguments({**described, "kwargs": plain})
        except ValueError:
            pass  # an initializer without a name
        return {**described, "live": True}

    @classmethod
    def _expected(cls) -> Any:
        """The class that stands in brackets."""
        known = (getattr(base, "__pydantic_generic_metadata__", None) for base in cls.__mro__)
        expected = next((one["args"][0] for one in known if one and one["args"]), None)
        return expected if isinstance(expected, type) and expected is not Any else None

    def _check(self) -> None:
        expected = self._expected()
        kind = find(self.type)
        if isinstance(kind, type):
            if expected is not None and not issubclass(kind, expected):
                raise ValueError(f"{self.type!r} is no {name_of(expected)}")
            self._check_methods(kind)
        elif not callable(kind):
            raise ValueError(f"{self.type!r} is neither a class nor a function")
        if not self.live:
            self._call.check(is_settled, made)

    def _check_methods(self, kind: Any) -> None:
        """See that a class, or an object, is an executor in the sense of PEP 3148."""
        where = name_of(kind if isinstance(kind, type) else type(kind))
        for field in _METHODS:
            name = getattr(self, field)
            if name is not None and not callable(getattr(kind, name, None)):
                raise ValueError(
                    f"{where} is no executor as PEP 3148 has it: it has no method {name!r}; if one "
                    f"of another name does that, say {field}=... "
                    f"(it has {', '.join(_public_methods(kind)) or 'none'})"
                )
        submit = getattr(kind, self.submit_method)
        if submit is Executor.submit:
            raise ValueError(f"{where} is abstract: it cannot submit")
        first = [None] if isinstance(kind, type) and not inspect.ismethod(submit) else []
        try:
            inspect.signature(submit).bind(*first, print, 1, 2, 3, any_name=4)
        except TypeError:
            raise ValueError(
                f"{where} is no executor as PEP 3148 has it: {self.submit_method}"
                f"{inspect.signature(submit)} cannot be called as submit(fn, /, *args, **kwargs)"
            ) from None
        except ValueError:
            return  # Python does not know its signature

    @property
    def _call(self) -> Call:
        return Call(self.type, (), self.kwargs)

    def load(self) -> Callable[..., T]:
        """Return the class, or the function that makes the executor.

        Raises:
            ValueError: it is not there any more.
        """
        return cast("Callable[..., T]", self._call.load())

    def build(self, **overrides: Any) -> T:
        """Make the executor, or return the one that was given.

        Args:
            overrides: arguments, in place of those that stand here.

        Raises:
            ValueError: an environment variable that is referred to is not set, or what was made is
                no executor.
            Exception: what making it raised.
        """
        if self.executor is not None:
            if overrides:
                raise ValueError("an executor that is there already takes no arguments")
            return cast("T", self.executor)
        if self.live:
            raise ValueError(_NOT_AGAIN.format(type=self.type))
        given = {id(one) for one in overrides.values()}
        call = self._call._replace(kwargs={**self.kwargs, **overrides})
        executor = call.make(lambda one: one if id(one) in given else made(one))
        expected = self._expected()
        try:
            if expected is not None and not isinstance(executor, expected):
                kind = name_of(type(executor))
                raise ValueError(
                    f"{self.type!r} has made a {kind}, which is no {name_of(expected)}"
                )
            self._check_methods(executor)
        except ValueError:
            # Nobody else knows of it.
            with contextlib.suppress(Exception):
                self.close(executor)
            raise
        return cast("T", executor)

    def base_of(self, executor: Any) -> Any:
        """Return what a :class:`~proxyexec.StoreExecutor` is to be given, to end it as it should.

        Args:
            executor: what :meth:`build` has returned.
        """
        is_usual = all(getattr(self, field) == usual for field, usual in _METHODS.items())
        if self.executor is None and isinstance(executor, Executor) and is_usual:
            return executor
        submits = executor if self.submit_method == "submit" else _Submitting(executor, self)
        return Lent(submits, None if self.executor is not None else self._ending(executor))

    def as_executor(self, executor: Any) -> Any:
        """Return an executor in the sense of PEP 3148: the same, or one around it."""
        base = self.base_of(executor)
        if not isinstance(base, Lent):
            return base
        # Its store is of no use, and never used.
        return StoreExecutor(base, "memory://", lazy=False)

    def close(self, executor: Any) -> None:
        """Shut an executor down that :meth:`build` has returned, unless it was there already."""
        end = None if self.executor is not None else self._ending(executor)
        if end is not None:
            end()

    def _ending(self, executor: Any) -> Callable[[], object] | None:
        return None if self.shutdown_method is None else getattr(executor, self.shutdown_method)

    def __reduce__(self) -> tuple[Any, ...]:
        # An executor that is there already stays here.
        values = {name: getattr(self, name) for name in self.model_fields_set - {"executor"}}
        cls = type(self)
        origin, arguments = (cls.__pydantic_generic_metadata__[key] for key in ("origin", "args"))
        return _rebuilt, (origin or cls, arguments, values)

    def __copy__(self) -> Self:
        rebuild, facts = self.__reduce__()
        copied: Self = rebuild(*facts)
        object.__setattr__(copied, "executor", self.executor)
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()


class _Submitting:
    """An executor whose method ``submit`` has that name."""

    def __init__(self, executor: Any, spec: ExecutorSpec[Any]) -> None:
        self.submit = getattr(executor, spec.submit_method)
        self._max_workers = getattr(executor, "_max_workers", None)


def _as_data(given: Any) -> Any:
    """Return the data of an executor for what stands for one: a name, a class, an executor."""
    if isinstance(given, ExecutorSpec):
        fields = given.model_fields_set & ExecutorSpec.model_fields.keys()
        if given.executor is not None:
            fields -= {"type", "kwargs", "live"}  # which it was described by
        return {name: getattr(given, name) for name in fields}
    if isinstance(given, str) or inspect.isroutine(given) or inspect.isclass(given):
        return {"type": given}
    return {"executor": given} if callable(getattr(given, "submit", None)) else given


def _all_arguments(data: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Return the arguments of an executor: those beside the fields, and those among ``kwargs``."""
    kwargs = data.get("kwargs", {})
    if not isinstance(kwargs, dict):
        raise ValueError("kwargs must be a mapping of arguments")
    beside = {name: one for name, one in data.items() if name not in fields}
    twice = ", ".join(sorted(beside.keys() & kwargs.keys()))
    if twice:
        raise ValueError(f"given twice, beside the fields and among kwargs: {twice}")
    return {**kwargs, **beside}


def plain_arguments(executor: Any) -> dict[str, Any] | None:
    """Return the arguments of a pool that is there already; ``None`` if it is none that we know.

    These are the standard library's pools, and ours.
    """
    kind = type(executor)
    if kind in (futures.ThreadPoolExecutor, pools.ThreadPoolExecutor):
        prefix = executor._thread_name_prefix
        usual = re.fullmatch(r"ThreadPoolExecutor-\d+", prefix) is not None
        facts = {"thread_name_prefix": "" if usual else prefix}
    elif kind in (futures.ProcessPoolExecutor, pools.ProcessPoolExecutor):
        facts = {"max_tasks_per_child": getattr(executor, "_max_tasks_per_child", None)}
        context = executor._mp_context
        if context.get_start_method() != multiprocessing.get_start_method():
            facts["mp_context"] = context
    else:
        return None
    if not hasattr(executor, "_initializer"):
        return None  # of a later Python
    if executor._initializer is not None:
        facts |= {"initializer": executor._initializer, "initargs": executor._initargs}
    return {"max_workers": executor._max_workers, **{k: v for k, v in facts.items() if v}}


def _rebuilt(origin: Any, arguments: tuple[Any, ...], values: dict[str, Any]) -> Any:
    cls = origin[arguments] if arguments else origin
    return cls.model_construct(**values)


def _full_name(kind: Any) -> str:
    return name_of(kind) if isinstance(kind, type) else ""


def _public_methods(kind: Any) -> list[str]:
    return [name for name in dir(kind) if name[0] != "_" and callable(getattr(kind, name, None))]


_NOT_AGAIN = (
    "this was a live executor of type {type!r}, given as an object, which cannot be made again "
    "from data; give one (executor=...), or say how to make one, as in "
    '{{"type": "distributed:Client", "kwargs": {{"address": "tcp://host:8786"}}}}'
)

_METHODS = {"submit_method": "submit", "map_method": "map", "shutdown_method": "shutdown"}
