"""A network of one's own that is exported by the command line, measured briefly."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnas.deployment import flow

_NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
"""


@pytest.fixture
def own_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write the network into the current folder; return the words of the command that exports it to "run"."""
    monkeypatch.setattr(flow, "PROCESSES", 1)
    monkeypatch.setattr(flow, "BLOCKS", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text(_NET)
    return ["export", "--model", "mynet:net", "--input", "1x1x8x8", "--out", "run", "--json"]
