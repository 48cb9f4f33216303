"""What ``proxyexec tune`` says of the cases of ``tuning.py``, from traces without proxying."""

from __future__ import annotations

import gc
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuning_setups import ADAPTIVE, policy_named

from proxyexec._calibrate import calibrate
from proxyexec.metrics import Trace, read_trace
from proxyexec.tune import tune

if TYPE_CHECKING:
    from tuning_pipelines import Pipeline

__all__ = ["Prediction", "predict", "stored_in", "traced"]

# As the command has it.
_SECONDS = 3.0
_LARGEST = 64_000_000

# How far the best policy's time may be off; and how much longer one may take and still be as good.
_OFF = 0.25
_AS_GOOD = 1.10


@dataclass(frozen=True)
class Prediction:
    """What was foretold of a case."""

    seconds: Mapping[str, float]
    """By fixed policy."""
    ratio: float
    """How many times as long as its replay the traced run took."""

    def best(self) -> str:
        """The fixed policy that is said to be fastest."""
        return min(self.seconds, key=self.seconds.__getitem__)

    def ranks_rightly(self, told: Mapping[str, float], medians: Mapping[str, float]) -> bool:
        """Tell whether the policies said to be best and worst are, as far as times differ.

        Args:
            told: seconds that tell which are, by fixed policy.
            medians: those that they take, from other samples: by the same ones, the best and the
                worst of many would be those with most luck, good or bad.
        """
        least, most = (medians[pick(told, key=told.__getitem__)] for pick in (min, max))
        worst = max(told, key=self.seconds.__getitem__)
        return medians[self.best()] <= _AS_GOOD * least and medians[worst] >= most / _AS_GOOD

    def off(self, medians: Mapping[str, float]) -> float:
        """Return by which share the time of the policy that is best is off."""
        best = min(medians, key=medians.__getitem__)
        return self.seconds[best] / medians[best] - 1

    def is_near(self, medians: Mapping[str, float]) -> bool:
        """Tell whether that is little enough."""
        return abs(self.off(medians)) <= _OFF


def predict(
    traces: Sequence[Trace], made: Mapping[str, Any], policies: Sequence[str]
) -> Prediction:
    """Say what a pipeline takes with each policy, from traces of it without proxying.

    Args:
        traces: the one in the middle counts.
        made: executors, by policy.
        policies: the fixed ones that are asked about.
    """
    trace = sorted(traces, key=_end)[len(traces) // 2]
    moved = [one.bytes for task in trace.tasks for one in task.moved]
    largest = min(max(moved, default=0), _LARGEST)
    costs = calibrate(made[ADAPTIVE], seconds=_SECONDS, largest=largest).model
    fixed = {name: policy_named(name) for name in policies if name != ADAPTIVE}
    result = tune(trace, {trace.header.store: costs}, policies=fixed)
    seconds = {one.policy.name: one.seconds for one in result.candidates}
    return Prediction({name: seconds[name] for name in fixed}, result.ratio)


def traced(pipeline: Pipeline, executor: Any, data: Any) -> tuple[Any, Trace]:
    """Run a pipeline with an executor, and return the result, and a trace of that."""
    gc.collect()
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "run.jsonl")
        with executor.trace(path):
            result = pipeline.run(executor, data)
        return result, read_trace(path)


def stored_in(trace: Trace) -> Counter[tuple[object, ...]]:
    """Return how many objects were stored in a run, of each kind."""
    return Counter(
        (task.function, one.what, one.name, one.type, one.part)
        for task in trace.tasks
        for one in task.moved
        if one.path != "inline"
    )


def _end(trace: Trace) -> float:
    return 0.0 if trace.end is None else trace.end.t
