"""``StoreExecutorSpec``: executor, store and policy together, as data."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from proxyexec._config_executor import plain_arguments
from proxyexec._config_lives import AnyExecutorSpec, ContextExecutor, PersistentExecutor
from proxyexec._config_names import USUAL_POOL
from proxyexec._config_policy import KINDS, PolicySpec, policy_spec
from proxyexec._config_spec import Spec, problems_in
from proxyexec._config_store import SerializersSpec, StoreSpec
from proxyexec._executor import StoreExecutor
from proxyexec._payloads import Serializers
from proxyexec.errors import ConfigError, ProxyExecError

__all__ = ["StoreExecutorSpec", "described", "located", "schema"]


class StoreExecutorSpec(Spec):
    """A :class:`~proxyexec.StoreExecutor`, as data.

    ::

        spec = StoreExecutorSpec(
            executor={"type": "concurrent.futures:ProcessPoolExecutor", "max_workers": 4},
            store="redis://:${REDIS_PASSWORD}@cache:6379/0",
            should_proxy="1 MB",
        )
        with spec.build() as executor:
            ...

    Args:
        version: of this form of data.
        executor: the base executor. With the life ``"context"``, which is the usual one, it is made
            for each executor that is built, and shut down with it; with ``"persistent"`` it is made
            once, shared, and stays until its owner shuts it down.
        store: where objects are kept; ``None`` for memory or files, as the base executor needs it.
        should_proxy: the policy; ``None`` has calls pass through untouched.
        ownership: and all that follows is as :class:`~proxyexec.StoreExecutor` has it.
    """

    version: Literal[1] = 1
    executor: AnyExecutorSpec = Field(
        default_factory=lambda: ContextExecutor[Any](type=USUAL_POOL),
        description="the base executor; a pool of processes if there is none",
    )
    store: StoreSpec | None = None
    should_proxy: PolicySpec | None = None
    ownership: bool = True
    close_store: bool = True
    lazy: bool = True
    nested: bool = False
    dedupe: bool = True
    serializers: SerializersSpec | None = None
    task_group: str | Literal[True] | None = None
    task_group_max_age: Annotated[float, Field(gt=0)] | None = None

    if TYPE_CHECKING:

        def __init__(self, **data: Any) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, data: Any) -> Any:
        executor = data.get("executor") if isinstance(data, dict) else None
        if isinstance(executor, dict) and not {"type", "executor"} & executor.keys():
            return {**data, "executor": {"type": USUAL_POOL, **executor}}
        return data

    def _check(self) -> None:
        if self.task_group is not None and (
            self.store is None or self.store != StoreSpec(url=self.store.url)
        ):
            raise ValueError(
                "a task_group needs a store with nothing but a url, of a directory or of Redis"
            )
        if self.nested and self.serializers is not None:
            raise ValueError("nested looks into pickles, and serializers need not write any")
        if self.task_group is None and self.task_group_max_age is not None:
            raise ValueError("task_group_max_age is of a task_group, and there is none")

    def build(self, kind: Any = StoreExecutor) -> Any:
        """Make the executor, with all that belongs to it.

        Args:
            kind: the class of the executor: a :class:`~proxyexec.StoreExecutor`, or
                :class:`~proxyexec.aio.AsyncStoreExecutor`.

        Raises:
            ConfigError: an environment variable that is referred to is not set, or that class has
                not all of the options.
            Exception: what opening the store, or making the base executor, raised.
        """
        arguments = self._options()
        known = inspect.signature(kind).parameters
        takes_all = any(one.kind is one.VAR_KEYWORD for one in known.values())
        unknown = sorted(arguments.keys() - known.keys())
        if unknown and not takes_all:
            raise ConfigError([(name, f"{kind.__name__} has no such option") for name in unknown])
        with contextlib.ExitStack() as undo:
            with _naming("executor"):
                if isinstance(self.executor, PersistentExecutor):
                    base = self.executor.get_base()
                else:
                    raw = self.executor.build()
                    undo.callback(self.executor.close, raw)
                    base = self.executor.base_of(raw)
            if self.store is not None:
                with _naming("store"):
                    if self.task_group is not None:
                        arguments["store"] = self.store.expanded_url()
                    else:
                        arguments["store"] = undo.enter_context(self.store.open())
            if self.should_proxy is not None:
                with _naming("should_proxy"):
                    arguments["should_proxy"] = self.should_proxy.build()
            executor = kind(base, **arguments)
            undo.pop_all()
        executor._spec = self
        return executor

    def _options(self) -> dict[str, Any]:
        """Return the arguments that are not the usual ones, but store and policy."""
        options = {
            name: getattr(self, name)
            for name in ("ownership", "close_store", "lazy", "nested", "dedupe", "task_group")
        }
        options["task_group_max_age"] = self.task_group_max_age
        options["serializers"] = None if self.serializers is None else self.serializers.build()
        fields = type(self).model_fields
        return {name: one for name, one in options.items() if one != fields[name].default}


@contextlib.contextmanager
def _naming(part: str) -> Iterator[None]:
    """Have what is wrong with a configuration say in which part that is."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        if isinstance(error, ProxyExecError):
            raise
        raise ConfigError([(part, str(error))]) from error


def schema() -> dict[str, Any]:
    """Return the JSON schema of configurations, for editors and other programs."""
    found = StoreExecutorSpec.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def described(executor: StoreExecutor) -> StoreExecutorSpec:
    """Return the specification of an executor that was made by hand.

    Raises:
        ConfigError: some parts are none that data can describe; says which, and why.
    """
    context, tasks = executor._context, executor._tasks
    facts: dict[str, Any] = {
        "ownership": tasks.ownership,
        "close_store": tasks.close_store,
        "lazy": context.lazy,
        "nested": context.nested,
        "dedupe": tasks.dedupe,
    }
    usual = {name: StoreExecutorSpec.model_fields[name].default for name in facts}
    facts = {name: one for name, one in facts.items() if one != usual[name]}
    problems: list[tuple[str, str]] = []

    def describe(name: str, make: Callable[[Any], Any], what: Any) -> None:
        try:
            facts[name] = make(what)
        except ValidationError as error:
            problems.extend(located(error, name))

    describe("executor", _described_base, executor if executor._given is None else executor._given)
    describe("should_proxy", policy_spec, context.policy)
    if executor._group is not None:
        facts["task_group"] = executor._group.store.group
        describe("store", StoreSpec.model_validate, executor.store.connector)
    elif not executor._has_usual_store:
        describe("store", StoreSpec.model_validate, executor.store)
    if isinstance(context.serializer, Serializers):
        describe("serializers", SerializersSpec.model_validate, context.serializer)
    if problems:
        raise ConfigError(problems)
    return StoreExecutorSpec(**facts)


def located(error: ValidationError, *where: str) -> list[tuple[str, str]]:
    """Return what pydantic found wrong: where, with dots, and what."""
    return [
        (".".join(map(str, (*where, *(one for one in loc if one not in _TAGS)))), text)
        for loc, text in problems_in(error)
    ]


def _described_base(executor: Any) -> Any:
    plain = plain_arguments(executor)
    if plain is not None:
        with contextlib.suppress(ValidationError):  # an initializer that has no name, say
            return ContextExecutor[Any](type=type(executor), kwargs=plain)
    return PersistentExecutor[Any](executor=executor)


# What pydantic adds to the place of an error, to say which kind of several it looked at.
_TAGS = frozenset({"context", "persistent", *KINDS})
