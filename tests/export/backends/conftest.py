"""The bench of the regression tests: one process that converts, for all tests of a file."""

import pytest

from hnas.export.diagnosis.trial import TrialBench


@pytest.fixture(scope="module")
def bench():
    with TrialBench(converter=False) as made:
        yield made
