"""Evidence says what it cannot show: examples against calibration, the network's own rounding. Runtimes are played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from hnas.export.compiling.attempts import Attempt
from hnas.export.compiling.evidence import gather
from hnas.export.compiling.options import CompileOptions
from hnas.export.compiling.originals import capture_network
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import Unfaithful
from hnas.export.graph.samples import Samples
from tests.export.compiling.playing import FITTED, Fault, Net, Outputs, exact, images, noisy


def spoiled(where: Callable[[NDArray[Any]], bool], level: float) -> Fault:
    """Return a fault on the samples that ``where`` chooses."""

    def fault(_: Artifact, samples: Samples, outputs: Outputs) -> Outputs:
        return [noisy([out], level if where(x) else 40)[0] for (x,), out in zip(samples, outputs, strict=True)]

    return fault


def test_calibration_of_another_scale_is_refused_before_any_conversion(play: Callable[..., Attempt]) -> None:
    with pytest.raises(ValueError, match=r"^calibration contradicts the example inputs: input 0 is .* in calibration"):
        play(exact, "int8", calibration=images(16, 255))


def test_a_suspicious_scale_is_refused_where_int8_fails_on_the_examples(play: Callable[..., Attempt]) -> None:
    calibration = images(16, 0.1)
    large = spoiled(lambda x: bool(np.abs(x).max() > 1), 3)
    with pytest.raises(
        Unfaithful, match=r"4\d\.\d dB on the calibration samples, .* dB on the example inputs: input 0"
    ):
        play(large, "int8", calibration=calibration, recover="none")
    assert play(exact, "int8", calibration=calibration, recover="none").remarks == (FITTED,)


def test_noise_as_an_example_is_remarked_and_not_refused(play: Callable[..., Attempt]) -> None:
    calibration = [(np.abs(x),) for (x,) in images()]
    found = play(spoiled(lambda x: bool(x.min() < 0), 3), "int8", calibration=calibration, recover="none")
    assert found.judged.examples_db is not None
    assert found.judged.examples_db < 10
    first, second = found.remarks
    assert first == FITTED
    assert second.endswith("example inputs, which seem to be noise; pass real ones")


def test_int8_graded_on_its_calibration_is_remarked_and_told_unless_evidence_is_given(
    play: Callable[..., Attempt], caplog: pytest.LogCaptureFixture
) -> None:
    def said(precision: str = "int8", **options: Any) -> tuple[tuple[str, ...], bool]:
        caplog.clear()
        found = play(exact, precision, calibration=images(), recover="none", **options)
        return found.remarks, FITTED in caplog.messages

    assert said() == ((FITTED,), True)
    assert said(evidence=images()) == ((FITTED,), False)
    assert said(evidence=images(20)[12:]) == said("fp32") == ((), False)


def test_an_example_among_the_samples_is_not_run_twice(play: Callable[..., Attempt]) -> None:
    found = play(exact, "int8", calibration=images(16), recover="none")
    assert (found.judged.examples_db, found.judged.check.n) == (None, 16)


class Amplifier(nn.Module):
    """Subtract nearly equal numbers, which leaves rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return ((y + 3000.0) - 3000.0) * 10


def test_the_network_s_own_rounding_is_measured_only_where_fp32_falls_short() -> None:
    torch.manual_seed(0)
    for net, low, high in ((Net(), 115, 160), (Amplifier(), 40, 85)):
        with capture_network(net, images(1)[0], "openvino") as source:
            evidence = gather(source, None, "fp32", CompileOptions())
            assert "sensitivity_db" not in vars(evidence)
            assert low < evidence.sensitivity_db < high


def test_an_error_like_bfloat16_is_refused_in_an_ordinary_network(play: Callable[..., Attempt]) -> None:
    with pytest.raises(Unfaithful, match="does not compute what Net does"):
        play(lambda _, __, outputs: noisy(outputs, 45))
