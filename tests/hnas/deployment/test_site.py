"""Test what is said about a device whose TensorRT is not one of its profile's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hnas import hw_profiles
from hnas.deployment import site
from hnas.export.device.errors import Unavailable

JETSON = hw_profiles.load("jetson")  # TensorRT 8.5 to 10.16


def visited(monkeypatch: pytest.MonkeyPatch, **versions: str) -> list[str]:
    """Visit a device with these versions; return what the user is told."""
    said: list[str] = []
    there: Any = SimpleNamespace(where="ssh://board")
    monkeypatch.setattr(site.transports, "connect", lambda _: there)
    monkeypatch.setattr(site, "describe_machine", lambda *_: (None, versions))
    monkeypatch.setattr(site, "tell", said.append)
    site.visit("ssh://board", JETSON)
    return said


@pytest.mark.parametrize("version", ["8.5.2", "10.3.0", "10.16.2"])
def test_a_version_of_the_profile_is_no_remark(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    assert visited(monkeypatch, tensorrt=version) == []
    assert visited(monkeypatch, onnxruntime="1.0") == []


def test_a_newer_version_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = visited(monkeypatch, tensorrt="11.4.1")
    assert line.startswith("ssh://board has TensorRT 11.4.1, the profile jetson-orin-nano is for 8.5-10.16: the engine")


def test_an_older_version_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        r"^ssh://board has TensorRT 8\.2\.1, the profile jetson-orin-nano is for 8\.5-10\.16; install a newer JetPack$"
    )
    with pytest.raises(Unavailable, match=said):
        visited(monkeypatch, tensorrt="8.2.1")
