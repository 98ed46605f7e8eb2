"""Fixtures of the strategies' tests: a prediction of complexity that is fitted quickly."""

from __future__ import annotations

import pytest

from hnas.sampling import complexity


@pytest.fixture(autouse=True, scope="module")
def _quick_complexity():
    """Count few members for each space; one count takes about 20 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(complexity, "SAMPLES", 16)
        yield
