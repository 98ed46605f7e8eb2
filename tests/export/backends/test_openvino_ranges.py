"""Test that NNCF quantises to the ranges of our calibration methods, and that its own search comes back afterwards."""

import numpy as np
import pytest
import torch
from torch import nn

from hnas.export import backends
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import capture
from hnas.export.int8.calibration import activation_ranges
from hnas.export.int8.ranges import METHODS
from tests.conftest import need

pytest.importorskip("nncf")


@pytest.mark.parametrize("method", METHODS)
def test_the_file_has_the_ranges_of_the_method(method: str) -> None:
    """Values with a long tail, so that the methods differ; the longer one is negative, so that its end counts."""
    need("openvino", backends.load("openvino").missing())
    from nncf.quantization.algorithms.min_max import algorithm

    from hnas.export.backends.openvino import convert
    from hnas.export.backends.openvino.quantiser import quantise_model

    torch.manual_seed(0)
    program = fuse(capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), torch.randn(1, 3, 16, 16)))
    rng = np.random.default_rng(0)
    samples = [(-rng.standard_t(4, (1, 3, 16, 16)).astype(np.float32),) for _ in range(8)]
    assert min(values.min() for (values,) in samples) < -1.1 * max(values.max() for (values,) in samples)
    theirs = algorithm.HistogramAggregator
    model, notes = quantise_model(convert._convert(program, *program.signature), samples, ranges=method)
    assert algorithm.HistogramAggregator is theirs
    assert notes["ranges"] == method
    ranges = activation_ranges(program, samples, method)
    found = [op for op in model.get_ops() if op.get_type_name() == "FakeQuantize"]
    highs = sorted(float(op.input_value(2).get_node().data.max()) for op in found if _reads_activation(op))
    read = [ranges[node.all_input_nodes[0].name] for node in program.module.graph.nodes if "conv" in str(node.target)]
    wanted = sorted(max(-low, high) for low, high in read)
    np.testing.assert_allclose(highs, wanted, rtol=0.03)  # NNCF's histogram has other bins


def _reads_activation(op: object) -> bool:
    source = op.input_value(0).get_node()  # type: ignore[attr-defined]
    return source.get_type_name() not in ("Constant", "Convert", "Multiply")


def test_an_unknown_method_is_refused() -> None:
    from hnas.export.backends.openvino.ranges import estimator

    with (
        pytest.raises(ValueError, match="no calibration method 'widest'; known: minmax, "),
        estimator("widest", symmetric=True),
    ):
        pass
