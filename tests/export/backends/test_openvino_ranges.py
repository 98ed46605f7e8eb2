"""Test that NNCF quantises to the ranges of our calibration methods, and that its own search comes back afterwards."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import Program, capture
from hnas.export.int8.calibration import activation_ranges
from hnas.export.int8.ranges import METHODS
from hnas.export.proof.verification import check
from hnas.hw_profiles import Override
from tests.conftest import need

pytest.importorskip("nncf")


Samples = list[tuple[np.ndarray]]


def in_the_file(program: Program, samples: Samples, method: str) -> list[float]:
    """Return the upper end of each quantised activation in NNCF's model, the lowest first."""
    from nncf.quantization.algorithms.min_max import algorithm

    from hnas.export.backends.openvino import convert
    from hnas.export.backends.openvino.quantiser import quantise_model

    theirs = algorithm.HistogramAggregator
    model, notes = quantise_model(convert._convert(program, *program.signature), samples, ranges=method)
    assert algorithm.HistogramAggregator is theirs
    assert notes["ranges"] == method
    found = [op for op in model.get_ops() if op.get_type_name() == "FakeQuantize"]
    return sorted(float(op.input_value(2).get_node().data.max()) for op in found if _reads_activation(op))


def wanted(program: Program, samples: Samples, method: str) -> list[float]:
    """Return the larger magnitude of each range in our calibration, the lowest first."""
    ranges = activation_ranges(program, samples, method)
    read = [ranges[node.all_input_nodes[0].name] for node in program.module.graph.nodes if "conv" in str(node.target)]
    return sorted(max(-low, high) for low, high in read)


@pytest.mark.parametrize("method", METHODS)
def test_the_file_has_the_ranges_of_the_method(method: str) -> None:
    """Values with a long tail; the longer one is negative, so that its end counts."""
    need("openvino", backends.load("openvino").missing())
    torch.manual_seed(0)
    program = fuse(capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), torch.randn(1, 3, 16, 16)))
    rng = np.random.default_rng(0)
    samples = [(-rng.standard_t(4, (1, 3, 16, 16)).astype(np.float32),) for _ in range(8)]
    assert min(values.min() for (values,) in samples) < -1.1 * max(values.max() for (values,) in samples)
    found = in_the_file(program, samples, method)
    np.testing.assert_allclose(found, wanted(program, samples, method), rtol=0.03)  # NNCF's histogram has other bins


def test_the_file_tells_every_method_from_the_others() -> None:
    """One outlier among 221,184 values: each method has another end."""
    need("openvino", backends.load("openvino").missing())
    torch.manual_seed(0)
    program = fuse(capture(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 96, 96)))
    samples = [(np.random.default_rng(k).laplace(size=(1, 3, 96, 96)).astype(np.float32),) for k in range(8)]
    samples[3][0][0, 0, 5, 5] = -60.0
    ends = {method: wanted(program, samples, method) for method in METHODS}
    assert sorted(ends, key=ends.__getitem__) == ["entropy", "percentile", "mse", "unseen", "minmax"]
    assert all(b > 1.06 * a for (a,), (b,) in pairwise(sorted(ends.values()))), ends
    for method, end in ends.items():
        assert in_the_file(program, samples, method) == pytest.approx(end, rel=0.03), method


class Bounded(nn.Module):
    """A convolution whose input is almost only negative, by a clamp or by the value of a pad."""

    def __init__(self, bound: str) -> None:
        super().__init__()
        self.bound, self.conv = bound, nn.Conv2d(2, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bound == "clamp":
            return self.conv(x.clamp(-2.0, 0.01))
        return self.conv(nn.functional.pad(x.clamp(0.0, 0.01), (2, 2, 2, 2), value=-3.0))


@pytest.mark.parametrize("bound", ["clamp", "pad"])
def test_unseen_keeps_the_signal_of_a_network_with_a_clamp_or_a_pad(tmp_path: Path, bound: str) -> None:
    """A symmetric activation had the upper end of its histogram, here about 0: the output was lost (0 dB)."""
    need("openvino", backends.load("openvino").missing())
    torch.manual_seed(0)
    program = fuse(capture(Bounded(bound).eval(), torch.randn(1, 2, 8, 8)))
    calls = [(np.random.default_rng(k).standard_normal((1, 2, 8, 8), np.float32),) for k in range(8)]
    device = replace(hw_profiles.load("openvino-cpu"), quantisation={"openvino": Override(ranges="unseen")})
    made = make_artifact("openvino", program, tmp_path, precision="int8", device=device, calibration=calls)
    assert made.notes["quantisation"]["ranges"] == "unseen"
    runner = backends.load("openvino").load(made)
    found = check([program.arrays(*call) for call in calls], [runner(*call) for call in calls], "int8")
    assert found.sqnr_db > 25


def _reads_activation(op: object) -> bool:
    source = op.input_value(0).get_node()
    return source.get_type_name() not in ("Constant", "Convert", "Multiply")


def test_an_unknown_method_is_refused() -> None:
    from hnas.export.backends.openvino.ranges import estimator

    with (
        pytest.raises(ValueError, match="no calibration method 'widest'; known: minmax, "),
        estimator("widest", symmetric=True),
    ):
        pass
