"""``ProxyAdaptive``: a policy that takes the cheaper path for each object.

It goes by sizes, as :class:`~proxyexec.policy.ProxySize` does, but finds out which: from what both
paths cost with its executor and store, which :mod:`proxyexec._learning` knows. Workers judge by the
sizes that were valid when their task was sent; they measure nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxyexec._costs import CostModel, Kind, Side, kind_of
from proxyexec._limits import DEFAULT, NEVER, Limits
from proxyexec._serialize import Candidate, PickleSerializer
from proxyexec._sizes import holds_data, parse_size, size_bound
from proxyexec._types import NEVER_PROXIED
from proxyexec.policy import Policy

if TYPE_CHECKING:
    from proxyexec._executor import StoreExecutor
    from proxyexec._learning import Learner

__all__ = ["Decision", "ProxyAdaptive"]


@dataclass(frozen=True)
class Decision:
    """What :class:`ProxyAdaptive` does with an object, and why."""

    stored: bool
    """Whether it is stored."""
    side: Side
    """Whether it is judged as an argument or as a result."""
    kind: Kind
    """Whether most of it is memory of arrays and the like, or pickled objects."""
    bytes: int
    """Its serialized size."""
    limit_bytes: int | None
    """From which size on such objects are stored; ``None`` if they never are."""
    inline_seconds: float | None
    """What sending it inline is expected to take a task; ``None`` where nothing was measured."""
    store_seconds: float | None
    """What storing it is expected to take."""
    reason: str
    """The same in words."""

    def __str__(self) -> str:
        return self.reason


class ProxyAdaptive(Policy):
    """What is cheaper to store than to send inline, with this executor and this store.

    What both paths cost is measured when the first object comes that may be worth storing: for
    less than a second, with objects like those that programs send, through the executor itself. It
    is kept on disk, for the next program on this machine with such an executor and store, and
    corrected by what is seen while the program runs. Until something is known, objects from
    700 kB on are stored (where workers are those of this machine, and the store is, too).

    One policy serves one executor; it may be a part of a combination.

    Args:
        max_live_bytes: how much may be stored at a time, in bytes or as ``"2 GB"``: what would
            exceed it is sent inline. ``None`` is as much as the store takes.
        calibrate: whether to measure at all. If not, what is on disk is used, or the sizes above.

    Raises:
        ValueError: ``max_live_bytes`` is not a size.
    """

    __slots__ = ("__weakref__", "_learner", "_limits", "_side", "calibrates", "max_live_bytes")

    def __init__(self, max_live_bytes: int | str | None = None, *, calibrate: bool = True) -> None:
        self.max_live_bytes = None if max_live_bytes is None else parse_size(max_live_bytes)
        self.calibrates = calibrate
        self._limits = DEFAULT
        self._side: Side = "argument"
        self._learner: Learner | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._learner is None:
            return _arrived, tuple(self._limits)
        return _arrived, tuple(self._learner.limits_of_results)

    def attach(self, executor: StoreExecutor) -> None:
        """Learn from what an executor moves. Executors call this when they are given a policy.

        Raises:
            ValueError: the policy is another executor's.
        """
        from proxyexec._learning import Learner  # noqa: PLC0415 - which needs executors

        if self._learner is not None and self._learner.is_busy:
            raise ValueError("a ProxyAdaptive learns from one executor: give each one of its own")
        self._learner = Learner(executor, calibrates=self.calibrates, most=self.max_live_bytes)
        self._learner.begin()

    def calibrate(self) -> None:
        """Measure now what both paths cost; takes less than a second once workers are there.

        What was measured before is replaced, on disk too. Best done while workers have nothing
        else to do.

        Raises:
            ValueError: the policy is no executor's yet.
            RuntimeError: it could not be measured.
        """
        if self._learner is None:
            raise ValueError("calibrate() needs an executor: give one this policy first")
        self._learner.calibrate()

    @property
    def costs(self) -> CostModel | None:
        """What is known of the costs; ``None`` before anything was measured."""
        return None if self._learner is None else self._learner.model

    def explain(self, obj: Any, side: Side = "argument") -> Decision:
        """Say what would be done with an object, and why. Nothing is sent.

        Args:
            obj: the object.
            side: ``"argument"`` or ``"result"``.

        Raises:
            SerializationError: it cannot be pickled.
        """
        candidate = Candidate(obj, PickleSerializer())
        size, kind = candidate.size, kind_of(obj, candidate.frames)
        limits = self._limits
        if self._learner is not None:
            learner = self._learner
            limits = learner.limits if side == "argument" else learner.limits_of_results
        limit = limits.of(kind)
        stored = size >= limit and not isinstance(obj, NEVER_PROXIED)
        inline_s = store_s = None
        if self.costs is not None:
            inline_s, store_s = (
                self.costs.seconds(side, kind, path, size) for path in ("inline", "store")
            )
        known = None if limit == NEVER else limit
        reason = _reason(side, kind, size, known, inline_s, store_s, stored=stored)
        return Decision(stored, side, kind, size, known, inline_s, store_s, reason)

    def frozen(self) -> Policy:
        """Return a plain policy that decides alike, by size and type, and learns nothing.

        It has one size for arguments and results: where these differ, the one that is cheaper for
        what was seen so far. ``repr`` of it is Python that makes it.
        """
        if self._learner is not None:
            return self._learner.frozen()
        from proxyexec.policy import ProxySize  # noqa: PLC0415

        return ProxySize(self._limits.buffers)

    def judge(self, candidate: Candidate) -> bool:
        obj = candidate.obj
        bound = size_bound(obj)
        if bound is not None and bound < self.smallest:
            return False
        if self._learner is not None:
            return self._learner.judge(candidate)
        return candidate.size >= self._limits.of(kind_of(obj, candidate.frames))

    def reason(self, kind: str, size: int | None, wanted: bool) -> str:
        if size is None:
            return super().reason(kind, size, wanted)
        return f"{self!r}: {size} bytes, cheaper {'to store' if wanted else 'inline'}"

    def dismisses(self, obj: Any, bound: int) -> bool:
        return bound < self.smallest

    def overlooks(self, kind: type) -> bool:
        # As with ProxySize.
        return not holds_data(kind)

    @property
    def smallest(self) -> int:
        return min(self._limits) if self._learner is None else self._learner.smallest

    def __repr__(self) -> str:
        arguments = []
        if self.max_live_bytes is not None:
            arguments.append(f"max_live_bytes={self.max_live_bytes}")
        if not self.calibrates:
            arguments.append("calibrate=False")
        return f"ProxyAdaptive({', '.join(arguments)})"


def _arrived(*limits: int) -> ProxyAdaptive:
    """Return a policy that judges results, in a worker."""
    policy = ProxyAdaptive(calibrate=False)
    policy._limits, policy._side = Limits(*limits), "result"
    return policy


def _reason(
    side: Side,
    kind: Kind,
    size: int,
    limit: int | None,
    inline_seconds: float | None,
    store_seconds: float | None,
    *,
    stored: bool,
) -> str:
    what = "memory of arrays and the like" if kind == "buffers" else "pickled objects"
    bound = "never are" if limit is None else f"are from {limit:,} bytes on"
    text = (
        f"{side} of {size:,} bytes, {what}: {'stored' if stored else 'inline'}; stored they {bound}"
    )
    if inline_seconds is not None and store_seconds is not None:
        text += f" ({inline_seconds * 1e3:.2f} ms inline, {store_seconds * 1e3:.2f} ms stored)"
    return text
