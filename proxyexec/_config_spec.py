"""What specifications have in common: they are frozen, strict, and keep secrets."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError
from typing_extensions import Self

from proxyexec._config_secrets import left_out, masked, masked_urls

__all__ = ["Problem", "Spec", "invalid", "problems_in"]

_LEFT_OUT = (
    "{secret} was left out when this was shown or dumped: write ${{NAME}} in its place, for the "
    "environment variable NAME"
)


Problem: TypeAlias = tuple[tuple[int | str, ...], str]
"""Where something is wrong, and what."""


class Spec(BaseModel):
    """A part of a configuration: checked when it is made, and never changed after that.

    Secrets that stand in it, such as the password of a URL, are in its attributes and nowhere
    else: not in its ``repr``, not in what it is dumped to, not in an error.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        ser_json_inf_nan="constants",
        arbitrary_types_allowed=True,
    )

    _tag: ClassVar[str | None] = None
    """The field that says which kind of several this is: dumped even where it is the usual one."""

    _alone: ClassVar[dict[str, Any] | None] = None
    """The JSON schema of what may stand in place of the mapping."""

    @model_validator(mode="wrap")
    @classmethod
    def _without_inputs(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Self:
        """Have errors say what is wrong, and keep what was given to themselves."""
        try:
            secret = left_out(value)
            if secret is None:
                made: Self = handler(cls._given(value))
                made._check()
                return made
        except ValidationError as error:
            problems = problems_in(error, cls.model_fields)
        except ValueError as error:
            problems = [((), str(error))]
        except RecursionError:
            problems = [((), "this is nested too deeply, or in itself")]
        else:
            problems = [((), _LEFT_OUT.format(secret=secret))]
        # Not chained: the first one has the input.
        raise invalid(cls.__name__, problems) from None

    @classmethod
    def _given(cls, value: Any) -> Any:
        """Return what stands for ``value``, before pydantic looks at it."""
        return value

    def _check(self) -> None:
        """See that the parts fit together.

        Raises:
            ValueError: they do not.
        """

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core_schema)
        if cls._alone is None:
            return schema
        # Not a reference: earlier pydantics return one, to what is made of this.
        return {"anyOf": [dict(handler.resolve_ref_schema(schema)), cls._alone]}

    @model_serializer(mode="wrap")
    def _without_secrets(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        shown = {name: self._masked(name, value) for name, value in handler(self).items()}
        return shown if self._tag is None else {self._tag: getattr(self, self._tag), **shown}

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:  # it is frozen; and this one has the value
            problems = problems_in(error)
        else:
            return
        raise invalid(type(self).__name__, problems)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            if name in self.model_fields_set:
                yield name, self._masked(name or "", value)

    def _masked(self, name: str, value: Any) -> Any:
        """Return the value of a field as it is shown."""
        return masked(value, name)


def invalid(title: str, problems: Sequence[Problem]) -> ValidationError:
    """Return an error that says what is wrong, and not with what."""
    # What stands in the wrong place is quoted.
    details = [
        InitErrorDetails(
            type=PydanticCustomError("config", "{text}", {"text": masked_urls(text)}),
            loc=tuple(masked_urls(one) if isinstance(one, str) else one for one in loc),
            input=None,
        )
        for loc, text in problems
    ]
    return ValidationError.from_exception_data(title, details, hide_input=True)


def problems_in(error: ValidationError, fields: Iterable[str] = ()) -> list[Problem]:
    """Return what pydantic found wrong: where, and in words that quote no input.

    Args:
        error: what it raised.
        fields: those that there are.
    """
    return [
        (one["loc"], _in_words(one, fields))
        for one in error.errors(include_input=False, include_url=False)
    ]


def _in_words(problem: Any, fields: Iterable[str]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        name = str(problem["loc"][-1])
        close = difflib.get_close_matches(name, fields, 1)
        return f"there is no such option{f'; did you mean {close[0]!r}?' if close else ''}"
    if kind == "missing":
        return "is missing"
    if kind == "union_tag_invalid":
        return f"there is no kind {context['tag']!r}; there are {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return "does not say its kind"
    text: str = problem["msg"]
    return text.removeprefix("Value error, ")
