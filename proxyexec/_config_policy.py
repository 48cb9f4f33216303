"""``PolicySpec``: which arguments and results are stored, as data."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from proxyexec._config_callable import CallableSpec, checked_arguments
from proxyexec._config_names import find, name_and_arguments, name_of_callable
from proxyexec._config_spec import Spec, invalid, problems_in
from proxyexec._sizes import parse_size
from proxyexec.errors import name_of
from proxyexec.policy import (
    Policy,
    ProxyAdaptive,
    ProxyAlways,
    ProxyNever,
    ProxySize,
    ProxyType,
    ShouldProxy,
    combined,
)

__all__ = [
    "KINDS",
    "AdaptivePolicy",
    "AllPolicy",
    "AlwaysPolicy",
    "AnyPolicy",
    "CustomPolicy",
    "NeverPolicy",
    "NotPolicy",
    "PolicySpec",
    "Size",
    "SizePolicy",
    "TypePolicy",
    "policy_spec",
]


def _bytes(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, (int, str)):
        raise ValueError('not a size: write a number of bytes, or a text like "1 MB"')
    return parse_size(given)


Size = Annotated[
    int,
    BeforeValidator(_bytes, json_schema_input_type=int | str),
    Field(ge=0, examples=["1 MB", 1_000_000]),
]
"""A number of bytes, or a text with a unit, like ``"1 MB"``."""


def _name_of_type(given: Any) -> str:
    name = name_of_callable(given) if isinstance(given, type) else given
    if not isinstance(find(name), type):
        raise ValueError(f"{name!r} is no class")
    return str(name)


TypeName = Annotated[str, BeforeValidator(_name_of_type)]
"""``"module:qualname"`` of a class, or the class."""


def _with_kind(schema: dict[str, Any]) -> None:
    """Say in a JSON schema that the kind is not left out."""
    schema["required"] = ["kind", *schema.get("required", ())]


class _PolicySpec(Spec):
    """What the kinds of policies have in common."""

    model_config = ConfigDict(json_schema_extra=_with_kind)
    _tag: ClassVar[str | None] = "kind"

    def build(self) -> ShouldProxy:
        """Make the policy."""
        raise NotImplementedError


class AlwaysPolicy(_PolicySpec):
    """Everything that may be proxied; see :class:`~proxyexec.policy.ProxyAlways`."""

    kind: Literal["always"] = "always"

    def build(self) -> Policy:
        return ProxyAlways()


class NeverPolicy(_PolicySpec):
    """Nothing; see :class:`~proxyexec.policy.ProxyNever`."""

    kind: Literal["never"] = "never"

    def build(self) -> Policy:
        return ProxyNever()


class SizePolicy(_PolicySpec):
    """Objects of at least some size; see :class:`~proxyexec.policy.ProxySize`."""

    kind: Literal["size"] = "size"
    minimum: Size = Field(description='bytes, or a text with a unit, like "1 MB"')

    if TYPE_CHECKING:

        def __init__(self, *, minimum: int | str) -> None: ...

    def build(self) -> Policy:
        return ProxySize(self.minimum)


class AdaptivePolicy(_PolicySpec):
    """What is cheaper to store, as is found out; see :class:`~proxyexec.policy.ProxyAdaptive`.

    Args:
        max_live_bytes: how much may be stored at a time; ``None`` for as much as there is room for.
        calibrate: whether to measure.
    """

    kind: Literal["adaptive"] = "adaptive"
    max_live_bytes: Size | None = None
    calibrate: bool = True

    if TYPE_CHECKING:

        def __init__(
            self, *, max_live_bytes: int | str | None = None, calibrate: bool = True
        ) -> None: ...

    def build(self) -> Policy:
        return ProxyAdaptive(self.max_live_bytes, calibrate=self.calibrate)


class TypePolicy(_PolicySpec):
    """Objects of some types; see :class:`~proxyexec.policy.ProxyType`.

    Args:
        types: ``"module:qualname"`` of each class, or the class.
    """

    kind: Literal["type"] = "type"
    types: Annotated[
        list[TypeName],
        Field(min_length=1, examples=[["numpy:ndarray", "builtins:bytes"]]),
    ]

    if TYPE_CHECKING:

        def __init__(self, *, types: Sequence[str | type]) -> None: ...

    def build(self) -> Policy:
        return ProxyType(*map(find, self.types))


class AllPolicy(_PolicySpec):
    """What all of some policies want: ``a & b``."""

    kind: Literal["all"] = "all"
    policies: Annotated[list[PolicySpec], Field(min_length=1)]

    if TYPE_CHECKING:

        def __init__(self, *, policies: Sequence[Any]) -> None: ...

    def build(self) -> ShouldProxy:
        return _together(operator.and_, self.policies)


class AnyPolicy(_PolicySpec):
    """What any of some policies wants: ``a | b``."""

    kind: Literal["any"] = "any"
    policies: Annotated[list[PolicySpec], Field(min_length=1)]

    if TYPE_CHECKING:

        def __init__(self, *, policies: Sequence[Any]) -> None: ...

    def build(self) -> ShouldProxy:
        return _together(operator.or_, self.policies)


class NotPolicy(_PolicySpec):
    """What a policy does not want: ``~a``."""

    kind: Literal["not"] = "not"
    policy: PolicySpec

    if TYPE_CHECKING:

        def __init__(self, *, policy: Any) -> None: ...

    def build(self) -> Policy:
        return ~_policy(self.policy.build())


class CustomPolicy(_PolicySpec):
    """A policy of one's own.

    Args:
        policy: ``"module:qualname"``. A class is called with ``kwargs``, and so is a function if
            there are any; what that returns is the policy. Otherwise it is the policy itself.
        kwargs: arguments, as those of a :class:`CallableSpec`.
    """

    kind: Literal["custom"] = "custom"
    policy: str
    kwargs: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, data: Any) -> Any:
        return checked_arguments(data) if isinstance(data, dict) else data

    def _check(self) -> None:
        if not callable(find(self.policy)):
            raise ValueError(f"{self.policy!r} is no policy: it cannot be called with an object")
        _ = self._call  # which checks the arguments

    @property
    def _call(self) -> CallableSpec | None:
        if self.kwargs is None and not isinstance(find(self.policy), type):
            return None
        return CallableSpec(callable=self.policy, kwargs=self.kwargs or {})

    def build(self) -> ShouldProxy:
        call = self._call
        policy: ShouldProxy = find(self.policy) if call is None else call()
        return policy


def policy_spec(policy: Any) -> Any:
    """Return the specification of a policy.

    Args:
        policy: a policy; or data of one: a mapping, or a text.

    Raises:
        pydantic.ValidationError: it is not made of the built-in ones and of functions and classes
            that have names; or these are no data of one.
    """
    try:
        return _adapter().validate_python(policy)
    except ValidationError as error:
        problems = problems_in(error)
    raise invalid("PolicySpec", problems)


def _described(policy: Any) -> _PolicySpec:
    if type(policy) in _PLAIN:
        return _PLAIN[type(policy)]()
    if type(policy) is ProxySize:
        return SizePolicy(minimum=policy.minimum)
    if type(policy) is ProxyAdaptive:
        return AdaptivePolicy(max_live_bytes=policy.max_live_bytes, calibrate=policy.calibrates)
    if type(policy) is ProxyType:
        return TypePolicy(types=list(policy.types))
    found = combined(policy)
    if found is not None:
        kind, parts = found
        if kind == "not":
            return NotPolicy(policy=_described(parts[0]))
        specs = [_described(part) for part in _flat(kind, parts)]
        return (AllPolicy if kind == "all" else AnyPolicy)(policies=specs)
    if isinstance(policy, Policy):
        raise ValueError(
            f"a policy of type {name_of(type(policy))} cannot be told from the outside: name a "
            'function or class that makes it, as in {"kind": "custom", "policy": "module:qualname"}'
        )
    name, args, kwargs = name_and_arguments(policy)
    if args or kwargs:
        raise ValueError(f"a functools.partial of {name!r} is no policy that has a name")
    return CustomPolicy(policy=name)


def _flat(kind: str, parts: Sequence[ShouldProxy]) -> list[ShouldProxy]:
    flat: list[ShouldProxy] = []
    for part in parts:
        found = combined(part)
        flat.extend(_flat(kind, found[1]) if found is not None and found[0] == kind else [part])
    return flat


def _together(combine: Callable[[Any, Any], Any], specs: Sequence[_PolicySpec]) -> ShouldProxy:
    first, *others = [spec.build() for spec in specs]
    whole: ShouldProxy = functools.reduce(combine, others, _policy(first))
    return whole


def _policy(policy: ShouldProxy) -> Policy:
    """Return a policy that can be combined."""
    return policy if isinstance(policy, Policy) else ProxyAlways() & policy


def _as_data(given: Any) -> Any:
    """Return the data of a policy for what stands for one."""
    if isinstance(given, _PolicySpec):
        return given
    if isinstance(given, str):
        text = given.strip()
        if text.lower() in ("always", "never", "adaptive"):
            return {"kind": text.lower()}
        if ":" in text:
            return {"kind": "custom", "policy": text}
        try:
            return {"kind": "size", "minimum": parse_size(text)}
        except ValueError:
            raise ValueError(
                f'{given!r} is no policy: write "always", "never", "adaptive", a size such as '
                '"1 MB", "module:qualname", or a mapping with a kind'
            ) from None
    if isinstance(given, int) and not isinstance(given, bool):
        return {"kind": "size", "minimum": given}
    return _described(given) if callable(given) else given


class _OrShort:
    """Says in a JSON schema that a text, or a number of bytes, stands for a policy."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        described = 'always, never, adaptive, a size such as "1 MB", or module:qualname'
        short = {"type": ["string", "integer"], "description": described}
        return {"anyOf": [handler(core_schema), short]}


PolicySpec = Annotated[
    Annotated[
        AlwaysPolicy
        | NeverPolicy
        | SizePolicy
        | AdaptivePolicy
        | TypePolicy
        | AllPolicy
        | AnyPolicy
        | NotPolicy
        | CustomPolicy,
        Discriminator("kind"),
    ],
    BeforeValidator(_as_data),
    _OrShort(),
]
"""Any kind of policy, or a text that stands for one."""


@functools.cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(PolicySpec)


for _model in (AllPolicy, AnyPolicy, NotPolicy):
    _model.model_rebuild()

KINDS = frozenset(one.model_fields["kind"].default for one in _PolicySpec.__subclasses__())
"""The names of the kinds of policies."""

_PLAIN: dict[type, type[_PolicySpec]] = {ProxyAlways: AlwaysPolicy, ProxyNever: NeverPolicy}
