"""Find the claims of every study in this folder: ``find_claims()``."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from hnas.benchmarks.papers.claims import Claim


def find_claims() -> dict[str, Claim]:
    """Return every claim of every module of this folder that has ``CLAIMS``, keyed by name."""
    found: dict[str, Claim] = {}
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    for name in names:
        if name not in ("__main__", "catalogue"):
            claims = getattr(importlib.import_module(f"hnas.benchmarks.papers.{name}"), "CLAIMS", ())
            found |= {claim.name: claim for claim in claims}
    return dict(sorted(found.items()))
