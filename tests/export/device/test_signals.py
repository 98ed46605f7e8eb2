"""The signal stack of a thread is restored after a runtime replaced it."""

import faulthandler
import gc
from pathlib import Path

import torch

from hnas import export
from hnas.export import backends
from hnas.export.device.signals import signal_stack
from tests.conftest import need


def test_models_that_end_in_the_order_in_which_they_began_leave_the_stack_for_signals(tmp_path: Path) -> None:
    need("openvino", backends.load("openvino").missing())
    assert faulthandler.is_enabled()  # it installs a signal stack, without which there is nothing to restore
    before = place()
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    path = export.compile(net, torch.randn(1, 3, 8, 8), device="openvino-cpu", path=tmp_path / "a").source
    first, second = export.load(path), export.load(path)
    assert place() == before
    del first
    gc.collect()
    del second
    gc.collect()
    assert place() == before


def place() -> tuple[int, int] | None:
    """Return the address and the size of the signal stack."""
    found = signal_stack()
    return (found.pointer, found.size) if found else None
