"""What all engines' tests share. Engines have processes and connections that outlive a test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def nothing_leaks():
    """Look at what is stored only, which the conformance suite does."""
