"""What every test leans on: one thread for torch, fixed random examples, and runtimes that CI insists on."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# A shell without job control starts a command in the background with Ctrl-C ignored; tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

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


# A folder for the PYTHONPATH of a process that shall not find the package of pretrained weights.
NO_WEIGHTS = Path(__file__).parent / "no_weights"

LIMIT_S = 600.0  # seconds until a process that a test waits for counts as stuck; a busy machine must not fail a test

_SLOW, _QUICK = 10.0, 0.3  # seconds of a usual test with and without the mark "slow"
_LONG = {"tests/test_readme.py": 200.0, "tests/privacy/test_search.py": 100.0}  # seconds, where marks say too little


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that no process starts a long file when the others have finished."""
    seconds: dict[str, float] = {}
    for item in items:
        name = item.nodeid.partition("::")[0]
        cost = _QUICK if item.get_closest_marker("slow") is None else _SLOW
        seconds[name] = seconds.get(name, _LONG.get(name, 0.0)) + cost
    items.sort(key=lambda item: -seconds[item.nodeid.partition("::")[0]])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Torch computes on one thread, in tests that have loaded it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deployments in the test's process see no load of other programs, which would make them measure twice."""
    monkeypatch.setattr("hnas.export.proof.load.read_counters", lambda: None)


def required(runtime: str) -> bool:
    """Whether HNAS_REQUIRE lists ``runtime``: there its absence is a failure, not a reason to skip."""
    return runtime in os.environ.get("HNAS_REQUIRE", "").split(",")


def need(runtime: str, missing: str | None) -> None:
    """Skip the test where ``missing`` says why ``runtime`` is not there; fail it if HNAS_REQUIRE lists it."""
    if missing and required(runtime):
        pytest.fail(f"HNAS_REQUIRE lists {runtime}: {missing}")
    if missing:
        pytest.skip(missing)
