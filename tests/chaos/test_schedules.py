"""Faults of many kinds, one after the other, in an order drawn by chance.

``python -m tests.chaos.schedules --seed N`` runs one that did not hold once more.
"""

from __future__ import annotations

import os

import pytest

from tests.chaos.schedules import Schedule, carry_out

COUNT = 200 if os.environ.get("PROXYEXEC_LONG") else 12


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_schedule_of_faults(seed):
    outcome = carry_out(Schedule.drawn(seed))
    assert outcome.passed, outcome
