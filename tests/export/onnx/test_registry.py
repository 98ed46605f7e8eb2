"""Test that torch's table of ONNX operators is filled once, changes no file, and is torch's own afterwards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxscript")

from torch.onnx._internal.exporter import _registration

from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import capture
from hnas.export.onnx import file, registry
from tests.export import nets


def written(name: str, path: Path) -> bytes:
    program = fuse(capture(*nets.build(name)))
    file.write_program(program, path, *program.signature)
    return path.read_bytes()


def filled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that grows when torch fills a table."""
    calls: list[object] = []
    original = _registration.ONNXRegistry.from_torchlib.__func__

    def counted(cls: Any, *opset: Any, **named: Any) -> Any:
        calls.append(cls)
        return original(cls, *opset, **named)

    monkeypatch.setattr(_registration.ONNXRegistry, "from_torchlib", classmethod(counted))
    registry._kept.cache_clear()
    return calls


def test_a_kept_table_writes_the_same_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = filled(monkeypatch)
    own = _registration.ONNXRegistry.__dict__["from_torchlib"]
    first, second, again = (written(name, tmp_path / "x.onnx") for name in ("mobilenet", "two_by_two", "mobilenet"))
    assert len(calls) == 1
    assert first == again
    assert _registration.ONNXRegistry.__dict__["from_torchlib"] is own
    registry._kept.cache_clear()
    assert written("two_by_two", tmp_path / "x.onnx") == second, "the table of another network"
    assert len(calls) == 2
    registry._kept.cache_clear()


def test_overlapping_blocks_leave_torch_as_it_was() -> None:
    own = _registration.ONNXRegistry.__dict__["from_torchlib"]
    first, second = registry.kept_registry(), registry.kept_registry()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _registration.ONNXRegistry.__dict__["from_torchlib"] is not own
    second.__exit__(None, None, None)
    assert _registration.ONNXRegistry.__dict__["from_torchlib"] is own


def test_another_torch_fills_its_own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    own = _registration.ONNXRegistry
    monkeypatch.setattr(_registration, "ONNXRegistry", object())
    with registry.kept_registry():
        assert not isinstance(_registration.ONNXRegistry, type(own))
    monkeypatch.setitem(sys.modules, "torch.onnx._internal.exporter", None)
    with registry.kept_registry():
        pass
