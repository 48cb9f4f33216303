"""``CallableSpec``: a call of something that has a name, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from proxyexec._config_names import name_and_arguments
from proxyexec._config_secrets import masked, masked_by_place
from proxyexec._config_signature import Call
from proxyexec._config_spec import Spec
from proxyexec._config_values import CALL, checked, is_settled, made

__all__ = ["CallableSpec", "checked_arguments"]


class CallableSpec(Spec):
    """A function or class, by its name, and arguments that its signature takes.

    ::

        spec = CallableSpec(callable="datetime:timedelta", kwargs={"hours": 2})
        spec()                # timedelta(hours=2)
        spec(hours=3)         # timedelta(hours=3)
        spec.load()           # the class timedelta

    The name is imported, and the arguments are compared with the signature, when the specification
    is made. Values are those of JSON, and ``{"$name": "module:qualname"}`` for a function or class,
    ``{"$call": "module:qualname", "args": [...], "kwargs": {...}}`` for what a call returns, which
    is made with this one. Functions, tuples and specifications of calls are taken for these.

    Args:
        callable: ``"module:qualname"``: a function, a class, a method of a class, or another object
            of a module that can be called. Or the function or class itself, or a
            :func:`functools.partial` of it; lambdas have no name, nor has what is defined inside of
            a function.
        args: arguments by place, before ``kwargs``.
        kwargs: arguments by name; also of those that Python takes by place only.

    Raises:
        pydantic.ValidationError: there is nothing of that name, or it does not take these
            arguments; names those that are missing, unknown, or not of the type that the signature
            says, and those that are accepted.
    """

    _alone: ClassVar[dict[str, Any] | None] = {"type": "string", "description": "its name"}

    callable: str = Field(description='"module:qualname" of a function or class')
    args: list[Any] = Field(default=[], description="arguments by place")
    kwargs: dict[str, Any] = Field(default={}, description="arguments by name")

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            callable: Any,  # noqa: A002 - what it is called in data
            args: Sequence[Any] = (),
            kwargs: Mapping[str, Any] = ...,
        ) -> None: ...

    @classmethod
    def of(cls, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Self:
        """Return the specification of a call ``function(*args, **kwargs)``.

        Raises:
            pydantic.ValidationError: as above.
        """
        return cls(callable=function, args=list(args), kwargs=kwargs)

    @model_validator(mode="before")
    @classmethod
    def _from_objects(cls, data: Any) -> Any:
        if isinstance(data, str) or (callable(data) and not isinstance(data, Spec)):
            data = {"callable": data}
        if not isinstance(data, dict):
            return data
        function = data.get("callable")
        if function is not None and not isinstance(function, str):
            name, args, kwargs = name_and_arguments(function)
            data = {**data, "callable": name}
            # What is neither is refused as such, below.
            if args and isinstance(data.setdefault("args", []), (list, tuple)):
                data["args"] = [*args, *data["args"]]
            if kwargs and isinstance(data.setdefault("kwargs", {}), Mapping):
                data["kwargs"] = {**kwargs, **data["kwargs"]}
        return checked_arguments(data)

    def _check(self) -> None:
        self._call.check(is_settled, made)

    @property
    def _call(self) -> Call:
        return Call(self.callable, self.args, self.kwargs)

    def _masked(self, name: str, value: Any) -> Any:
        return masked_by_place(self.callable, value) if name == "args" else masked(value, name)

    def load(self) -> Callable[..., Any]:
        """Return the function or class itself.

        Raises:
            ValueError: it is not there any more.
        """
        return self._call.load()

    def __call__(self, *args: Any, **overrides: Any) -> Any:
        """Make the call.

        Args:
            args: in place of the first ones of ``args``, objects of any kind.
            overrides: in place of those of ``kwargs``, or in addition.

        Raises:
            ValueError: the signature takes no such arguments, or an environment variable that they
                refer to is not set.
            Exception: what was called raised.
        """
        given = {id(one): one for one in (*args, *overrides.values())}
        call = Call(self.callable, [*args, *self.args[len(args) :]], {**self.kwargs, **overrides})
        return call.make(lambda value: value if id(value) in given else made(value))

    def as_value(self) -> dict[str, Any]:
        """Return what stands for the result among the arguments of another call."""
        value: dict[str, Any] = {CALL: self.callable}
        if self.args:
            value["args"] = self.args
        if self.kwargs:
            value["kwargs"] = self.kwargs
        return value


def checked_arguments(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of a call with its arguments as a configuration has them."""
    data = dict(data)
    if isinstance(data.get("args"), (list, tuple)):
        data["args"] = [checked(one, f"argument {at}") for at, one in enumerate(data["args"])]
    if isinstance(data.get("kwargs"), dict):
        data["kwargs"] = {
            name: checked(one, f"argument {name!r}") for name, one in data["kwargs"].items()
        }
    return data
