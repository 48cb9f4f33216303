"""Tuning: which policy, and which store, would have made a traced run faster.

``proxyexec tune run.jsonl`` is the same as a command. "From slow to tuned" in the documentation
shows both.
"""

from __future__ import annotations

from proxyexec._costs import CostModel
from proxyexec._report import write_report
from proxyexec._tune_ranking import Place, tune
from proxyexec._tune_result import (
    TuneCandidate,
    TuneMeasured,
    TunePlace,
    TunePolicy,
    TuneResult,
    TuneRun,
    TuneSpan,
    TuneTimeline,
    TuneUnread,
    TuneWay,
)

__all__ = [
    "CostModel",
    "Place",
    "TuneCandidate",
    "TuneMeasured",
    "TunePlace",
    "TunePolicy",
    "TuneResult",
    "TuneRun",
    "TuneSpan",
    "TuneTimeline",
    "TuneUnread",
    "TuneWay",
    "tune",
    "write_report",
]
