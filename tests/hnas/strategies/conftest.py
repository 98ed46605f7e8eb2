"""Few members are counted, so that the prediction of complexity is fitted quickly."""

from __future__ import annotations

import pytest

from hnas.sampling import complexity


@pytest.fixture(autouse=True, scope="module")
def _quick_complexity():
    """A count takes some 20 ms: few of them, once a space."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(complexity, "SAMPLES", 16)
        yield
