"""What every test leans on: one thread for torch, fixed random examples, and runtimes that CI insists on."""

from __future__ import annotations

import os
import random
import sys

import pytest
from hypothesis import settings

# The same examples on every run, and no clock: a busy machine must not fail a property.
settings.register_profile("hnas", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("hnas")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed the global random numbers before each test and its fixtures, so that no test depends on chance."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Torch computes on one thread, in tests that have loaded it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def required(runtime: str) -> bool:
    """Whether HNAS_REQUIRE lists ``runtime``: there its absence is a failure, not a reason to skip."""
    return runtime in os.environ.get("HNAS_REQUIRE", "").split(",")


def need(runtime: str, missing: str | None) -> None:
    """Skip the test where ``missing`` says why ``runtime`` is not there; fail it if HNAS_REQUIRE lists it."""
    if missing and required(runtime):
        pytest.fail(f"HNAS_REQUIRE lists {runtime}: {missing}")
    if missing:
        pytest.skip(missing)
