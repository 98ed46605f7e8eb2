"""A bundle, and keys that openssl wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import bundles
from tests.export.zoo.keys import make_keys


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle with a baseline, not signed."""
    pytest.importorskip("onnxruntime")
    return bundles.bundle(tmp_path_factory.mktemp("zoo"), "tiny", heavy=8)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys"))
