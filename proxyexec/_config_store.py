"""``StoreSpec``: a store as data, and the strategies that calls travel by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from proxyexec_connectors.registry import connector_class
from pydantic import Field, field_validator, model_validator

from proxyexec._config_callable import CallableSpec  # noqa: TC001 - pydantic reads annotations
from proxyexec._config_policy import Size  # noqa: TC001
from proxyexec._config_secrets import expanded_url, has_reference
from proxyexec._config_spec import Spec
from proxyexec._payloads import Serializers
from proxyexec._serialize import PickleSerializer
from proxyexec._store import Store
from proxyexec.errors import ProxyExecError, name_of

__all__ = ["SerializersSpec", "StoreSpec"]

_FULL_TIMEOUT = 60.0


class StoreSpec(Spec):
    """A store, as data; a text alone is its URL.

    Args:
        url: the place: ``file:///directory``, ``redis://host:6379/0``, ``memory://``, ….
            References such as ``${PASSWORD}`` are replaced when the store is opened.
        name: a label for messages.
        serializer: makes the serializer, if it is not the usual one.
        cache_bytes: fetched frames to keep in the process's memory.
        integrity: whether what is read must be what was stored; ``None`` where the place is remote.
        max_bytes: how much it may hold; ``None`` for as much as there is room for.
        full_timeout: seconds to wait for room; ``None`` for as long as it takes.

    Raises:
        pydantic.ValidationError: no connector is known for the URL, or something is not as said
            above.
    """

    _alone: ClassVar[dict[str, Any] | None] = {"type": "string", "description": "its URL"}

    url: str = Field(examples=["redis://:${REDIS_PASSWORD}@cache:6379/0"])
    name: str | None = None
    serializer: CallableSpec | None = None
    cache_bytes: Size = 0
    integrity: bool | None = None
    max_bytes: Size | None = None
    full_timeout: Annotated[float, Field(ge=0)] | None = _FULL_TIMEOUT

    if TYPE_CHECKING:

        def __init__(self, **data: Any) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"url": data}
        if isinstance(data, Store):
            return _facts_of(data)
        if callable(getattr(data, "get_many", None)):  # a connector
            return {"url": _source_of(data)}
        return data

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        is_known = not has_reference(url.partition("://")[0])  # or only the environment knows
        if is_known:
            try:
                connector_class(url)
            except ProxyExecError as error:
                raise ValueError(str(error)) from None
        return url

    def open(self) -> Store:
        """Open the store.

        Raises:
            ValueError: an environment variable that is referred to is not set.
            ConnectorError: the place cannot be opened.
        """
        return Store.from_url(
            self.expanded_url(),
            name=self.name,
            serializer=None if self.serializer is None else self.serializer(),
            cache_bytes=self.cache_bytes,
            integrity=self.integrity,
            max_bytes=self.max_bytes,
            full_timeout=self.full_timeout,
        )

    def expanded_url(self) -> str:
        """Return the URL with what it refers to in its place.

        Raises:
            ValueError: an environment variable is not set.
        """
        return expanded_url(self.url)


def _facts_of(store: Store) -> dict[str, Any]:
    facts: dict[str, Any] = {"url": _source_of(store.connector)}
    if store.name != store.connector.url:
        facts["name"] = store.name
    serializer: Any = store.serializer
    if type(serializer) is not PickleSerializer:
        raise ValueError(
            f"the serializer of the store, a {name_of(type(serializer))}, cannot be told from the "
            "outside"
        )
    if (serializer.main, serializer.like_pools) != ("reference", False):
        kwargs = {"main": serializer.main, "like_pools": serializer.like_pools}
        facts["serializer"] = {"callable": "proxyexec:PickleSerializer", "kwargs": kwargs}
    if store._cache is not None:
        facts["cache_bytes"] = store._cache.capacity
    is_sealed = store.seal is not None
    if is_sealed != getattr(store.connector, "is_remote", False):
        facts["integrity"] = is_sealed
    if store.quota is not None:
        facts |= {"max_bytes": store.quota.limit, "full_timeout": store.quota.timeout}
    return facts


def _source_of(connector: Any) -> str:
    """Return a URL that makes a connector like this one."""
    source = getattr(connector, "source", None)
    if not isinstance(source, str):
        raise ValueError(
            f"a connector of type {name_of(type(connector))} does not tell which URL makes one "
            "like it: open the store by its URL"
        )
    return source


class SerializersSpec(Spec):
    """Which strategies calls travel by; see :class:`~proxyexec.serializers.Serializers`."""

    code: str | list[str] = "combined"
    data: str | list[str] = Field(default=["pickle", "cloudpickle"])
    results: str | list[str] | None = None
    allowed: str | list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, data: Any) -> Any:
        if isinstance(data, Serializers):
            names = ("code", "data", "results", "allowed")
            facts = {name: getattr(data, name) for name in names}
            return {name: list(one) for name, one in facts.items() if one is not None}
        return data

    def _check(self) -> None:
        try:
            self.build()
        except TypeError as error:
            raise ValueError(str(error)) from None

    def build(self) -> Serializers:
        """Make the serializers."""
        return Serializers(self.code, self.data, self.results, self.allowed)
