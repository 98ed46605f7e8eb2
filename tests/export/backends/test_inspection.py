"""Test the inspectors on recorded formats of the runtimes, and on real artifacts."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from hnas import export
from hnas.export.backends import inspectable as names
from hnas.export.backends.onnxruntime import inspector as onnxruntime
from hnas.export.backends.tensorrt import inspector as tensorrt
from hnas.export.backends.tflite import inspector as tflite
from hnas.export.backends.tflite.profiler import Ran
from hnas.export.device.errors import ExportError
from hnas.export.proof.inspection import Layer


def test_onnxruntime_profiles_are_read():
    def event(name, op, dur, types, cat="Node"):
        given = [{kind: [1]} for kind in types]
        args = {"op_name": op, "provider": "CPUExecutionProvider", "input_type_shape": given}
        return {"cat": cat, "name": name, "dur": dur, "args": args}

    events = [
        event("model_run", "", 900, [], cat="Session"),
        event("conv_kernel_time", "QLinearConv", 8, ["uint8", "float", "int8"]),
        event("gate_kernel_time", "HardSigmoid", 4, ["float"]),
        event("shape_kernel_time", "Gather", 1, ["int64"]),
        event("conv_kernel_time", "QLinearConv", 6, ["uint8", "float", "int8"]),
    ]
    assert onnxruntime.from_events(events) == [
        Layer("conv", "QLinearConv", "kernel", "u8", 6.0, "CPU"),
        Layer("gate", "HardSigmoid", "activation", "f32", 4.0, "CPU"),
        Layer("shape", "Gather", "kernel", "", 1.0, "CPU"),
    ]


def test_tflite_operators_are_told_from_what_the_delegate_took():
    operators = [
        {"op_name": "CONV_2D", "inputs": [0], "outputs": [1]},
        {"op_name": "HARD_SWISH", "inputs": [1], "outputs": [2]},
        {"op_name": "ADD", "inputs": [2], "outputs": [3]},
        {"op_name": "DELEGATE", "inputs": [0], "outputs": [1]},
        {"op_name": "DELEGATE", "inputs": [2], "outputs": [3]},
    ]
    tensors = {index: {"name": f"t{index}", "dtype": np.float32 if index == 2 else np.int8} for index in range(4)}
    found = tflite.from_operators(operators, tensors, {3})
    assert [layer.implementation for layer in found] == ["XNNPACK", "built-in kernel", "XNNPACK"]
    assert [layer.precision for layer in found] == ["i8", "f32", "i8"]
    assert {layer.implementation for layer in tflite.from_operators(operators[:3], tensors, {3})} == {"built-in kernel"}


def test_a_profile_of_xnnpack_is_read():
    runs = [
        [
            Ran("Convert (NC)", True, 0),
            Ran("Convolution (NHWC, QC8) IGEMM", True, time),
            Ran("Fully Connected (NC, QS8, QC8W) GEMM", True, 3),
            Ran("Invalid Unary Op", True, 1),
            Ran("Transpose (ND, X8) Transpose", True, 0),
            Ran("GATHER", False, 2),
        ]
        for time in (4, 6, 5, 90)
    ]
    expected = [
        Layer("#1", "Convert", "quantise", "", 0.0, "XNNPACK"),
        Layer("a", "Convolution", "kernel", "i8", 5.0, "XNNPACK IGEMM"),
        Layer("b", "Fully Connected", "kernel", "i8", 3.0, "XNNPACK GEMM"),
        Layer("#4", "Table", "activation", "", 1.0, "XNNPACK"),
        Layer("#5", "Transpose", "layout", "", 0.0, "XNNPACK Transpose"),
        Layer("#6", "GATHER", "kernel", "", 2.0, "built-in kernel"),
    ]
    assert tflite.from_profile(runs, ["a", "b"]) == expected
    unnamed = tflite.from_profile(runs, ["a", "b", "c"])  # which is which is not known
    assert [layer.name for layer in unnamed] == [f"#{number}" for number in range(1, 7)]


# As the engine inspector writes it with detailed verbosity (TensorRT 8.6; later versions have "Datatype" apart).
ENGINE = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to conv1 + relu1",
            "LayerType": "Reformat",
            "Inputs": [
                {
                    "Name": "x",
                    "Location": "Device",
                    "Dimensions": [1, 3, 8, 8],
                    "Format/Datatype": "Row major linear FP32",
                }
            ],
            "Outputs": [
                {
                    "Name": "Reformatted Input Tensor 0 to conv1 + relu1",
                    "Dimensions": [1, 3, 8, 8],
                    "Format/Datatype": "Four wide channel vectorized row major Int8 format",
                }
            ],
            "ParameterType": "Reformat",
            "Origin": "REFORMAT",
            "TacticValue": "0x00000000000003e8",
        },
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "y", "Format/Datatype": "Four wide channel vectorized row major Int8 format"}],
            "Outputs": [{"Name": "z", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
            "ParameterType": "Convolution",
            "HasBias": 1,
            "Activation": "RELU",
            "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8",
            "Metadata": "[ONNX Layer: conv1][ONNX Layer: relu1]",
        },
        {
            "Name": "PWN(gate)",
            "LayerType": "PointWiseV2",
            "Inputs": [{"Name": "z", "Format": "Channel major", "Datatype": "FP16"}],
            "Outputs": [],
        },
    ],
    "Bindings": ["x", "output_0"],
}
PROFILE = [
    {"count": 812},
    {"name": "conv1 + relu1", "timeMs": 8.12, "averageMs": 0.01, "medianMs": 0.0098, "percentage": 61.2},
    {"name": "PWN(gate)", "timeMs": 4.06, "averageMs": 0.005, "percentage": 38.8},
]


def test_tensorrt_case_1_detailed():
    reformat, conv, gate = tensorrt.from_json(json.loads(json.dumps(ENGINE)), PROFILE)
    assert (reformat.role, reformat.precision, reformat.microseconds) == ("layout", "f32", None)
    assert conv == Layer(
        "conv1 + relu1",
        "CaskConvolution",
        "kernel",
        "i8",
        pytest.approx(9.8),
        "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8",
        ("conv1", "relu1"),
    )
    assert (gate.role, gate.precision, gate.microseconds) == ("arithmetic", "f16", 5.0)


def test_tensorrt_case_2_names_only():
    found = tensorrt.from_json({"Layers": ["Reformatting CopyNode for Input Tensor 0 to a", "a + b"], "Bindings": []})
    assert [(layer.role, layer.kind, layer.precision) for layer in found] == [
        ("layout", "unknown", ""),
        ("kernel", "unknown", ""),
    ]


@pytest.mark.parametrize(
    "information", [None, [], {}, {"Layers": None}, {"Layers": [3]}, {"Layers": {"a": 1}}, "Layers"]
)
def test_tensorrt_case_3_anything_else(information):
    with pytest.raises(ExportError, match="layer information has no list 'Layers'; it is what trtexec"):
        tensorrt.from_json(information)


def test_tensorrt_profiles_that_are_none():
    with pytest.raises(ExportError, match="the profile is not a list of layers"):
        tensorrt.from_json(ENGINE, {"a": 1})
    assert tensorrt.from_json(ENGINE, [{"name": 3, "medianMs": "x"}])[1].microseconds is None
    assert tensorrt.from_json({"Layers": [{"Name": None, "Inputs": "x", "Outputs": [None]}]})[0].precision == ""


# --- real artifacts ---------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def net():
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.GELU(), nn.Conv2d(16, 4, 1)).eval()


@pytest.fixture(scope="module")
def compiled(net, tmp_path_factory):
    """Return ``build(backend, precision)``, which compiles the net once, and skips where the runtime is missing."""
    made = {}

    def build(backend, precision="fp32"):
        if find_spec(backend.replace("tflite", "ai_edge_litert")) is None:
            pytest.skip(f"{backend} is not installed")
        if (backend, precision) not in made:
            images = [(torch.randn(1, 3, 12, 12),) for _ in range(4)]
            path = tmp_path_factory.mktemp(backend) / precision
            made[backend, precision] = export.compile(
                net, images[0], device=f"{backend}-cpu", precision=precision, calibration=images, path=path
            )
        return made[backend, precision]

    return build


def test_onnxruntime_fuses_relu_and_leaves_gelu(compiled):
    found = export.layers(compiled("onnxruntime"), runs=4)
    kinds = [layer.kind for layer in found.layers]
    assert "Gelu" in kinds
    assert "Relu" not in kinds
    assert any(line.startswith("1 Gelu not fused") for line in found.findings)
    assert {layer.precision for layer in found.of("kernel")} == {"f32"}
    assert found.microseconds > 0
    assert found.runs == 4


def test_openvino_tells_what_it_joined_and_in_which_precision(compiled):
    found = export.layers(compiled("openvino", "int8"), runs=4)
    kernels = found.of("kernel")
    assert len(kernels) == 3
    assert {layer.precision for layer in kernels} & {"u8", "i8"}
    assert max(len(layer.parts) for layer in kernels) > 1
    assert all(layer.implementation for layer in kernels)
    assert not found.of("activation")


def test_tflite_tells_what_xnnpack_ran_by_which_kernel_and_how_long(compiled):
    found = export.layers(compiled("tflite"), runs=4)
    assert [layer.kind for layer in found.of("kernel")] == ["Convolution", "Convolution", "Fully Connected"]
    assert {layer.implementation.split()[0] for layer in found.layers} == {"XNNPACK"}
    assert {layer.precision for layer in found.of("kernel")} == {"f32"}
    assert all(layer.name and layer.microseconds is not None for layer in found.of("kernel"))
    assert found.microseconds > 0
    assert found.runs == 4


def test_tflite_without_a_profiler_tells_its_operators_and_no_times(compiled, monkeypatch):
    def refuse(*_):
        raise ExportError("this ai-edge-litert has no LiteRtGetProfilerEvents")

    monkeypatch.setattr(tflite, "profile", refuse)
    artifact = compiled("tflite")
    found = tflite.layers(artifact, (np.zeros((1, 3, 12, 12), np.float32),), 4)
    assert [layer.kind for layer in found].count("CONV_2D") == 3
    assert {layer.microseconds for layer in found} == {None}


def test_a_built_in_kernel_is_told_from_xnnpacks_and_takes_its_own_inputs(tmp_path):
    if find_spec("ai_edge_litert") is None:
        pytest.skip("tflite is not installed")
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.linear = nn.Embedding(50, 32), nn.Linear(32, 8)

        def forward(self, words, offset):
            return self.linear(self.embedding(words)) + offset

    inputs = (torch.randint(0, 50, (1, 16)), torch.randn(1, 16, 8))
    found = export.layers(export.compile(Words().eval(), inputs, device="tflite-cpu", path=tmp_path / "words"), runs=2)
    assert [layer.kind for layer in found.layers] == ["GATHER", "Fully Connected", "Add"]
    assert [layer.implementation.split()[0] for layer in found.layers] == ["built-in", "XNNPACK", "XNNPACK"]


def test_the_path_of_an_artifact_will_do_and_inputs_can_be_given(compiled):
    artifact = compiled("onnxruntime")
    values = (np.zeros((1, 3, 12, 12), np.float32),)
    given = export.layers(artifact.path, values, runs=2, threads=1)
    assert [layer.kind for layer in given.layers] == [layer.kind for layer in export.layers(str(artifact.path)).layers]


def test_wrong_use_is_one_line(compiled, tmp_path):
    artifact = compiled("onnxruntime")
    with pytest.raises(ValueError, match="runs must be 1 or more, got 0"):
        export.layers(artifact, runs=0)
    with pytest.raises(
        ValueError, match=r"inputs are float32\[1, 3, 4, 4\], the artifact takes float32\[1, 3, 12, 12\]"
    ):
        export.layers(artifact, (np.zeros((1, 3, 4, 4), np.float32),))
    with pytest.raises(ValueError, match=r"does not state the shapes of its inputs; pass inputs="):
        export.layers(artifact.model)
    with pytest.raises(FileNotFoundError):
        export.layers(tmp_path / "nothing")


def test_a_file_that_the_runtime_refuses_is_an_export_error(compiled, tmp_path):
    compiled("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07garbage")
    with pytest.raises(ExportError, match="onnxruntime does not report its layers"):
        export.layers(tmp_path / "model.onnx", (np.zeros((1,), np.float32),))


def test_a_backend_without_a_view_says_so(net, tmp_path):
    artifact = export.compile(
        net,
        torch.randn(1, 3, 12, 12),
        device="openvino-cpu",
        path=tmp_path / "a",
        options=export.CompileOptions(backend="reference"),
    )
    with pytest.raises(ValueError, match=f"reference does not report its layers; known: {', '.join(names())}"):
        export.layers(artifact)
