"""Suites of small networks for the tests of ``hnas-bench run``: a light one, a heavy one, and its twin."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.bundles import bundle, network

HEADER = 'time = "8s"\nprocesses = 2\n'
FASTER = {"name": "faster", "artifact": "light", "baseline": "heavy", "at_least": 1.5}


def models(root: Path) -> Path:
    """Write the artifacts ``light``, ``heavy`` and ``twin``, and the bundle ``good``, into a folder; return it."""
    network(root / "light", 4)
    network(root / "heavy", 48)
    network(root / "twin", 48, seed=1)
    bundle(root, "good")
    return root


def write(root: Path, *claims: dict[str, object], header: str = HEADER, name: str = "suite.toml") -> Path:
    """Write a suite of claims; return its file."""
    tables = "".join(
        "\n[[claim]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in claim.items()) for claim in claims
    )
    file = root / name
    file.write_text(header + tables, "utf-8")
    return file
