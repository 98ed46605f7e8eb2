"""Test the ONNX quantiser: each case of ``quantise_onnx``, attention, calibration samples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.backends.onnxruntime import convert as onnxruntime
from hnas.export.backends.openvino import convert
from hnas.export.backends.openvino import quantiser as openvino
from hnas.export.graph.fusion import fuse, passes_for
from hnas.export.graph.program import Program, capture
from hnas.export.graph.samples import require_samples, to_samples
from hnas.export.int8.calibration import activation_ranges
from hnas.export.onnx import file as onnx_file
from hnas.export.onnx import quantiser
from hnas.export.onnx.quantiser import QDQ, quantise_onnx, quantised_nodes
from hnas.hw_profiles import Override
from tests.conftest import need
from tests.export import nets
from tests.export.programs import normal_noise

POLICY = QDQ(operators=("Conv", "Gemm", "MatMul"), activations="u8", symmetric=False, bias=True)


def openvino_model(program: Program) -> Any:
    need("openvino", backends.load("openvino").missing())
    return convert._convert(program, *program.signature)


@pytest.mark.parametrize("name", nets.SHAPES)
def test_attention_is_two_activations_multiplied_behind_a_softmax(name: str) -> None:
    model = openvino_model(fuse(capture(*nets.build(name))))
    assert openvino._has_attention(model) == (name == "hybrid")
    assert openvino._has_tails(model) == (name in ("mobilenet", "convnext", "hybrid"))


def test_attention_spelled_out_is_attention() -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x.relu() @ x.sigmoid().transpose(1, 2), -1) @ x.tanh()

    assert openvino._has_attention(openvino_model(capture(Plain(), torch.randn(1, 4, 4))))


def test_softmax_over_classes_is_no_attention() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(-1))
    assert not openvino._has_attention(openvino_model(capture(net, torch.randn(1, 4))))


@pytest.mark.parametrize("calibration", [None, []])
def test_no_calibration_is_refused(calibration: list[tuple[np.ndarray, ...]] | None) -> None:
    with pytest.raises(ValueError, match="int8 needs calibration inputs"):
        require_samples(calibration)


def test_calibration_of_another_shape_is_refused() -> None:
    says = r"^calibration inputs are float32\[1, 3\], the example inputs float32\[1, 2\]$"
    with pytest.raises(ValueError, match=says):
        to_samples([(np.zeros((1, 3), np.float32),)], (np.zeros((1, 2), np.float32),), "calibration")


def test_products_of_two_activations_stay_float(tmp_path: Path) -> None:
    """Case 2 of ``quantise_onnx``."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    program = capture(*nets.build("hybrid"))
    inputs, outputs = program.signature
    onnx_file.write_program(program, tmp_path / "float.onnx", inputs, outputs)
    sample = tuple(value.numpy() for value in program.inputs)
    quantise_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", [sample], POLICY, program)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    made = {output: node.op_type for node in graph.node for output in node.output}
    products = [[made.get(name) for name in node.input] for node in graph.node if node.op_type == "MatMul"]
    assert len(products) == 2
    assert "DequantizeLinear" not in {kind for product in products for kind in product}
    assert "DequantizeLinear" in made.values()


def test_sums_that_only_float_operators_read_stay_float(tmp_path: Path) -> None:
    """Case 3 of ``quantise_onnx``: the sum before the layer norm, not that before the linear layer."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Linear(8, 8) for _ in range(3))
            self.norm = torch.nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x + self.a(x))
            return self.c(y + self.b(y)).sigmoid()

    program = capture(Residual(), torch.randn(2, 8))
    onnx_file.write_program(program, tmp_path / "float.onnx", *program.signature)
    sample = tuple(value.numpy() for value in program.inputs)
    policy = replace(POLICY, operators=(*POLICY.operators, "Add"))
    quantise_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", [sample], policy, program)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    made = {output: node.op_type for node in graph.node for output in node.output}
    readers = {name: node.op_type for node in graph.node for name in node.input}
    sums = [readers[node.output[0]] for node in graph.node if node.op_type == "Add"]
    assert sums == ["LayerNormalization", "QuantizeLinear"]
    assert made[next(node for node in graph.node if node.op_type == "Gemm").input[0]] == "DequantizeLinear"


def test_policy_says_everything_that_decides_the_numbers() -> None:
    assert POLICY.to_json() == {
        "operators": ["Conv", "Gemm", "MatMul"],
        "activations": "u8",
        "symmetric": False,
        "bias": True,
        "ranges": "minmax",
        "outputs": True,
        "weights": "s8 per channel",
    }


def test_a_device_takes_operators_out_of_the_policy_and_changes_its_ranges() -> None:
    changed = POLICY.on(Override(leave_float=("MatMul", "Softmax"), ranges="mse"))
    assert changed == replace(POLICY, operators=("Conv", "Gemm"), ranges="mse")
    assert POLICY.on(None) is POLICY
    assert POLICY.on(Override()) == POLICY


def test_other_ranges_reach_the_file(tmp_path: Path) -> None:
    """Case 5 of ``quantise_onnx``: an input with one outlier in ten thousand gets the scale of the rest."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    program = fuse(capture(*nets.build("mobilenet")))
    inputs, outputs = program.signature
    onnx_file.write_program(program, tmp_path / "float.onnx", inputs, outputs)
    data = [(np.random.default_rng(seed).normal(size=(1, 3, 16, 16)).astype(np.float32),) for seed in range(60)]
    data[0][0][0, 0, 0, 0] = 500.0
    scales = {}
    for method in ("minmax", "percentile"):
        ranges = activation_ranges(program, data, method)
        quantise_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", data, POLICY, program, ranges)
        graph = onnx.load(tmp_path / "int8.onnx").graph
        (name,) = [node.input[1] for node in graph.node if node.input[0] == "x"]
        (scale,) = [onnx.numpy_helper.to_array(value) for value in graph.initializer if value.name == name]
        scales[method] = float(scale)
    assert scales["minmax"] == pytest.approx((500 + 4) / 255, rel=0.02)
    assert scales["percentile"] < 20 / 255


@pytest.mark.parametrize("name", nets.SHAPES)
def test_the_samples_are_not_run_again_for_ranges_that_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytest.importorskip("onnxruntime")
    program = fuse(capture(*nets.build(name)), passes_for("onnxruntime"))
    onnx_file.write_program(program, tmp_path / "float.onnx", *program.signature)
    data = [tuple(value.numpy() for value in normal_noise(program.inputs, seed)) for seed in range(4)]
    policy = onnxruntime.POLICY
    ranges = activation_ranges(program, data, policy.ranges)
    read, reader = [], quantiser._reader
    monkeypatch.setattr(quantiser, "_reader", lambda names, given: read.append(len(given)) or reader(names, given))

    def written(known: dict[str, tuple[float, float]] | None) -> bytes:
        quantise_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", data, policy, program, known)
        return (tmp_path / "int8.onnx").read_bytes()

    once = written(ranges)
    written({key: ends for key, ends in ranges.items() if key != max(ranges, key=lambda node: ranges[node][1])})
    monkeypatch.setattr(quantiser, "_needed", lambda samples, *_: samples)
    assert written(ranges) == once
    whole = name == "hybrid"  # parts of an attention are values of the file alone
    assert read == [4 if whole else 1, 4, 4]


def test_ranges_that_have_no_place_in_the_file_are_found_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranges of the program are not computed, since nothing would read them."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    program = fuse(capture(*nets.build("mobilenet")))
    data = [(np.random.default_rng(seed).normal(size=(1, 3, 16, 16)).astype(np.float32),) for seed in range(60)]
    data[0][0][0, 0, 0, 0] = 500.0
    monkeypatch.setattr("hnas.export.onnx.names.onnx_values", lambda *_: {})
    monkeypatch.setattr("hnas.export.int8.calibration.activation_ranges", lambda *_: pytest.fail("computed"))
    scales = {}
    for method in ("minmax", "percentile"):
        policy = {"onnxruntime": Override(ranges=method)}
        device = replace(hw_profiles.load("onnxruntime-cpu"), quantisation=policy)
        folder = tmp_path / method
        folder.mkdir()
        made = make_artifact("onnxruntime", program, folder, precision="int8", device=device, calibration=data)
        note = made.notes["quantisation"]
        assert isinstance(note, dict)
        assert note["ranges"] == method
        graph = onnx.load(made.model).graph
        (name,) = [node.input[1] for node in graph.node if node.input[0] == graph.input[0].name]
        (scale,) = [onnx.numpy_helper.to_array(value) for value in graph.initializer if value.name == name]
        scales[method] = float(scale)
    assert scales["percentile"] < 0.1 * scales["minmax"]


def test_onnxruntime_leaves_room_for_unseen_values_where_it_has_the_module() -> None:
    from hnas.export.backends.onnxruntime import convert

    assert convert.POLICY.ranges == "unseen"


@pytest.mark.parametrize(("activation", "lowest"), [(torch.nn.ReLU, -3.0), (torch.nn.Hardswish, -1.0)])
def test_openvino_spends_no_levels_below_the_tail_of_an_activation(
    activation: type[torch.nn.Module], lowest: float, tmp_path: Path
) -> None:
    """Ranges from -1 to 3 become symmetric, except in a network with a hard swish."""
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 8, 3), activation(), torch.nn.Conv2d(8, 4, 1)).eval()
    x = np.linspace(-1, 3, 72, dtype=np.float32).reshape(1, 2, 6, 6)
    device = hw_profiles.load("openvino-cpu")
    program = capture(net, torch.from_numpy(x))
    made = make_artifact("openvino", program, tmp_path, precision="int8", device=device, calibration=[(x,)])
    assert made.notes["quantisation"]["activations"] == ("symmetric" if lowest < -1 else "asymmetric")
    operators = openvino.Core().read_model(made.model).get_ops()
    numbers = [op for op in operators if op.get_type_name() == "FakeQuantize"]
    (first,) = [op for op in numbers if op.input_value(0).get_node().get_type_name() == "Parameter"]
    assert first.input_value(1).get_node().get_data().item() == pytest.approx(lowest, rel=0.02)


class Tied(torch.nn.Module):
    """Share the table of an embedding with the last layer, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle = torch.nn.Embedding(100, 32), torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(self.middle(self.table(x)).relu(), self.table.weight)


def test_openvino_gives_a_shared_table_seven_bits_where_int8_sums_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ov = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    monkeypatch.setattr("hnas.export.device.machine.Machine.sums_overflow", True)
    data = [(np.random.default_rng(seed).integers(0, 100, (1, 16)),) for seed in range(8)]
    program = capture(Tied().eval(), torch.from_numpy(data[0][0]))
    device = hw_profiles.load("openvino-cpu")
    made = make_artifact("openvino", program, tmp_path, precision="int8", device=device, calibration=data)
    constants = [op for op in ov.Core().read_model(made.model).get_ops() if op.get_type_name() == "Constant"]
    weights = [op.get_data() for op in constants if op.get_element_type().get_type_name() in ("i8", "u8")]
    assert {value.shape for value in weights} >= {(100, 32), (32, 32)}
    assert all(np.abs(value.astype(int)).max() <= 64 for value in weights if value.ndim == 2)


def test_layers_that_write_float_and_a_shortcut_that_is_int8(tmp_path: Path) -> None:
    """TensorRT's placement: inputs of layers, and the shortcut that a layer reads too; no outputs of layers."""
    onnx, nn = pytest.importorskip("onnx"), torch.nn
    torch.manual_seed(0)

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.one(x))
            return self.three(torch.relu(self.two(x) + x))

    x = torch.randn(1, 4, 8, 8)
    program = capture(Residual().eval(), x)
    onnx_file.write_onnx(program, tmp_path / "float.onnx", *program.signature)
    policy = replace(POLICY, activations="s8", symmetric=True, bias=False, outputs=False)
    quantise_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", [(x.numpy(),)], policy, program)
    model = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    nodes = {name: node for node in model.graph.node for name in node.output}
    readers = [[node.op_type for node in model.graph.node if name in node.input] for name in nodes]
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert not any("QuantizeLinear" in readers[list(nodes).index(node.output[0])] for node in convolutions)
    (add,) = (node for node in model.graph.node if node.op_type == "Add")
    assert sorted(nodes[name].op_type for name in add.input) == ["Conv", "DequantizeLinear"]
    assert len(quantised_nodes(tmp_path / "int8.onnx")) == 3
    spare = lambda path: [node.name for node in onnx.load(path).graph.node if node.op_type == "Add"]  # noqa: E731
    quantise_onnx(tmp_path / "float.onnx", tmp_path / "spared.onnx", [(x.numpy(),)], policy, program, spare=spare)
    graph = onnx.load(tmp_path / "spared.onnx").graph
    nodes = {name: node for node in graph.node for name in node.output}
    (add,) = (node for node in graph.node if node.op_type == "Add")
    assert "DequantizeLinear" not in [nodes[name].op_type for name in add.input]
