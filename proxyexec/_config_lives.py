"""The two lives that a base executor can have: made for each use, or once.

Who builds a stack of executors asks for :data:`AnyExecutorSpec`, which is either.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from types import FrameType, TracebackType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    TypeVar,
    cast,
)

from pydantic import Discriminator, SerializeAsAny, Tag

from proxyexec._config_executor import ExecutorSpec
from proxyexec._config_spec import Spec
from proxyexec._lent import Lent

__all__ = ["AnyExecutorSpec", "ContextExecutor", "PersistentExecutor"]

T = TypeVar("T")


class ContextExecutor(ExecutorSpec[T], Generic[T]):
    """An executor that is made for each use, and shut down after it.

    ::

        spec = ContextExecutor[ProcessPoolExecutor](max_workers=2)
        with spec as executor:
            future = executor.submit(pow, 2, 3)
        future.result()

    Leaving the block waits for what was submitted and gathers the results: they can be read after a
    client that fetches them from elsewhere has been closed. Several threads may use one
    specification, each with an executor of its own, and blocks may be nested.

    Where the class is no :class:`concurrent.futures.Executor`, or its methods have other names, the
    block gets an executor around it that is one.
    """

    life: Literal["context"] = "context"

    if TYPE_CHECKING:

        def __init__(self, **data: Any) -> None: ...

    def _check(self) -> None:
        super()._check()
        if self.executor is not None:
            raise ValueError(
                "an executor that is there already cannot be made for each use; give its type and "
                "arguments, or use a PersistentExecutor"
            )

    def __enter__(self) -> T:
        executor = self.as_executor(self.build())
        with _blocks_lock:
            _blocks.append(_Block(self, executor, threading.get_ident(), sys._getframe(1)))
        return cast("T", executor)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        here = threading.get_ident(), sys._getframe(1)
        with _blocks_lock:
            entered = [one for one in reversed(_blocks) if one.spec is self]
            block = max(
                entered,
                # The last one, if it is not known better, as of an ExitStack.
                key=lambda one: (one.frame is here[1], one.thread == here[0]),
            )
            _blocks[:] = [one for one in _blocks if one is not block]
        block.executor.shutdown(wait=True)


class PersistentExecutor(ExecutorSpec[T], Generic[T]):
    """An executor that is made once, when it is first used, and shut down by its owner.

    ::

        spec = PersistentExecutor[ProcessPoolExecutor](max_workers=2)
        with spec as executor:        # made here
            executor.submit(pow, 2, 3)
        with spec as executor:        # the same one
            executor.submit(pow, 2, 4)
        spec.shutdown()

    Copies, and what other processes load from the data, have an executor of their own. An executor
    that was there already is never shut down.
    """

    life: Literal["persistent"] = "persistent"
    _tag: ClassVar[str | None] = "life"

    if TYPE_CHECKING:

        def __init__(self, **data: Any) -> None: ...

    def get(self) -> T:
        """Return the executor, made now if it was not.

        Raises:
            RuntimeError: it was shut down.
            Exception: what making it raised.
        """
        return cast("T", self._life.executor())

    def get_base(self) -> Any:
        """Return the executor as a base of others, which leave it running.

        Raises:
            RuntimeError: it was shut down.
            Exception: what making it raised.
        """
        base = self.base_of(self._life.built())
        return Lent(base.executor if isinstance(base, Lent) else base, None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the executor down, if one was made here."""
        self._life.end(wait=wait, cancel_futures=cancel_futures)

    def __enter__(self) -> T:
        return self.get()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    @property
    def _life(self) -> _Life:
        # Beside the fields, so that it is neither compared nor copied.
        beside: Any = self.__dict__
        life: _Life = beside.get("_life_of_this") or beside.setdefault("_life_of_this", _Life(self))
        return life


class _Life:
    """The one executor of a :class:`PersistentExecutor`."""

    def __init__(self, spec: PersistentExecutor[Any]) -> None:
        self._spec = spec
        self._lock = threading.RLock()
        self._built: Any = None
        self._executor: Any = None
        self._ended = False

    def built(self) -> Any:
        with self._lock:
            if self._ended:
                raise RuntimeError("this executor was shut down by its owner")
            if self._built is None:
                self._built = self._spec.build()
            return self._built

    def executor(self) -> Any:
        with self._lock:
            built = self.built()
            if self._executor is None:
                self._executor = self._spec.as_executor(built)
            return self._executor

    def end(self, *, wait: bool, cancel_futures: bool) -> None:
        with self._lock:
            self._ended = True
            if self._built is None:
                return
            executor = self._executor or self._spec.as_executor(self._built)
            self._built = self._executor = None
        # Not all executors know what it is to cancel.
        executor.shutdown(wait=wait, **({"cancel_futures": True} if cancel_futures else {}))


class _Block(NamedTuple):
    """A block of a :class:`ContextExecutor` that somebody is in.

    Blocks of generators and coroutines do not end in the order in which they were entered, even in
    one thread; each ends in the frame that it began in.
    """

    spec: ContextExecutor[Any]
    executor: Any
    thread: int
    frame: FrameType


def _life_of(data: Any) -> str:
    life = data.get("life") if isinstance(data, dict) else getattr(data, "life", None)
    is_there = data.get("executor") if isinstance(data, dict) else getattr(data, "executor", None)
    if isinstance(data, (str, type)) or inspect.isroutine(data):
        return "context"
    if life is None:
        given = not isinstance(data, (dict, Spec)) or is_there is not None
        return "persistent" if given else "context"
    return str(life)


class _AnyLife:
    """Says in a JSON schema that what has no life fits, whichever it is."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core_schema)
        return {"anyOf": schema["oneOf"]}


_Union = Annotated[
    # Without parameters, as objects of all of them are to be taken as they are.
    Annotated[ContextExecutor, Tag("context")]  # type: ignore[type-arg]
    | Annotated[PersistentExecutor, Tag("persistent")],  # type: ignore[type-arg]
    Discriminator(_life_of),
]

# Those with parameters are other classes.
AnyExecutorSpec = Annotated[SerializeAsAny[_Union], _AnyLife()]
"""An executor with the life that its data name; ``"context"`` if they name none."""

_blocks: list[_Block] = []
_blocks_lock = threading.Lock()


def _renew_lock() -> None:
    global _blocks_lock
    _blocks_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
