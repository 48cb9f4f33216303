"""Executors, stores and policies as data: checked, carried as JSON, and built anywhere.

::

    from proxyexec import StoreExecutor

    with StoreExecutor.from_config("pipeline.toml") as executor:
        ...

Each kind of specification is a pydantic model: it is checked when it is made, cannot be changed,
and is dumped and loaded as pydantic's models are. The page "Configuration" of the documentation has
the files. This module needs the extra ``config``: ``pip install "proxyexec[config]"``.
"""

from __future__ import annotations

from proxyexec.errors import MissingExtraError

try:
    import pydantic as _pydantic
    import pydantic_settings as _pydantic_settings
except ModuleNotFoundError as _missing:
    raise MissingExtraError("a configuration", "config") from _missing
del _pydantic, _pydantic_settings

from proxyexec._config_callable import CallableSpec  # noqa: E402 - not before that is known
from proxyexec._config_executor import ExecutorSpec  # noqa: E402
from proxyexec._config_lives import ContextExecutor, PersistentExecutor  # noqa: E402
from proxyexec._config_load import load  # noqa: E402
from proxyexec._config_policy import (  # noqa: E402
    AdaptivePolicy,
    AllPolicy,
    AlwaysPolicy,
    AnyPolicy,
    CustomPolicy,
    NeverPolicy,
    NotPolicy,
    PolicySpec,
    SizePolicy,
    TypePolicy,
    policy_spec,
)
from proxyexec._config_stack import StoreExecutorSpec, described, schema  # noqa: E402
from proxyexec._config_store import SerializersSpec, StoreSpec  # noqa: E402

__all__ = [
    "AdaptivePolicy",
    "AllPolicy",
    "AlwaysPolicy",
    "AnyPolicy",
    "CallableSpec",
    "ContextExecutor",
    "CustomPolicy",
    "ExecutorSpec",
    "NeverPolicy",
    "NotPolicy",
    "PersistentExecutor",
    "PolicySpec",
    "SerializersSpec",
    "SizePolicy",
    "StoreExecutorSpec",
    "StoreSpec",
    "TypePolicy",
    "described",
    "load",
    "policy_spec",
    "schema",
]
