"""Test int8 that is simulated in torch: its grid, what it leaves alone, and that a runtime computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hnas import export
from hnas.export.backends.onnxruntime import convert as onnxruntime_backend
from hnas.export.int8.calibration import activation_ranges
from hnas.export.int8.rounding import _shrunk
from hnas.export.int8.simulation import rounded, run_samples, simulate, sqnr_db, weight_steps
from tests.conftest import need
from tests.export import nets
from tests.export.int8.test_ladder import level, named


def test_the_largest_weight_of_a_channel_is_127_steps_and_none_is_more() -> None:
    weight = torch.randn(5, 3, 2, 2)
    weight[2] = 0.0
    grid = rounded(weight) / weight_steps(weight)
    assert torch.allclose(grid, grid.round(), atol=1e-4)
    assert grid.abs().amax((1, 2, 3)).round().tolist() == [127, 127, 0, 127, 127]
    assert torch.equal(rounded(rounded(weight)), rounded(weight))


@pytest.mark.parametrize("name", nets.SHAPES)
def test_the_simulation_is_near_the_program_and_changes_nothing_where_nothing_is_chosen(name: str) -> None:
    program, data = named(name)
    assert 15 < level(program, data, program) < 70
    ranges = activation_ranges(program, data)
    assert sqnr_db(run_samples(program, data), run_samples(simulate(program, ranges, only=()), data)) == 200.0


def test_the_simulation_is_what_onnx_runtime_computes(tmp_path: Path) -> None:
    need("onnxruntime", onnxruntime_backend.missing())
    pytest.importorskip("onnxscript")
    net, inputs = nets.build("resnet")
    program, data = named("resnet")
    artifact = export.compile(
        net, inputs, device="onnxruntime-cpu", precision="int8", calibration=data, path=tmp_path / "int8"
    )
    run = export.load(artifact)
    expected = [program(*map(torch.from_numpy, call)) for call in data]
    real = sqnr_db(expected, [tuple(map(torch.from_numpy, run(*call))) for call in data])
    assert abs(real - level(program, data, program, onnxruntime_backend.POLICY.ranges)) < 4.0


def test_a_mean_error_that_samples_cannot_tell_from_zero_is_no_correction() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(32, 200, generator=generator, dtype=torch.float64)
    assert _shrunk(noise).square().sum() < 0.45 * noise.mean(0).square().sum()  # a third is expected
    steady = noise + 5.0
    assert torch.allclose(_shrunk(steady), steady.mean(0), rtol=0.05)
    assert torch.equal(_shrunk(noise[:1]), noise[0])  # one sample tells nothing about the spread
