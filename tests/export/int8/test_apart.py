"""Test that unlike parts of a value survive int8: the search, the edit, every backend, and ONNX files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hnas import export, hw_profiles
from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.compiling.originals import capture_network
from hnas.export.device.artifact import Artifact
from hnas.export.graph.program import Program, as_tuple, capture
from hnas.export.int8 import apart
from hnas.export.int8.apart import keep_apart
from hnas.export.onnx import file as onnx_file
from hnas.export.onnx.source import Original
from tests.conftest import need
from tests.export import nets, unlike_nets

DEVICES = {
    "onnxruntime": "onnxruntime-cpu",
    "openvino": "openvino-cpu",
    "tensorrt": "jetson-orin-nano",
    "tflite": "tflite-cpu",
}
# One network of each kind. The kinds that the others repeat in another form are tested on the program alone.
KINDS = ("hundredths", "heads", "rows_then_sigmoid", "inside", "inputs")
ENDS = ("flattened", "another_axis", "middle_rows")
Samples = list[tuple[np.ndarray, ...]]


def captured(net: torch.nn.Module, sample: tuple[np.ndarray, ...], backend: str) -> Program:
    with capture_network(net, sample, backend) as found:
        return found.program


def built(name: str, backend: str) -> tuple[torch.nn.Module, Program, Samples]:
    net, data = unlike_nets.build(name)
    samples = [tuple(part.numpy() for part in each) for each in data]
    return net, captured(net, samples[0], backend), samples


def compiled(backend: str, program: Any, samples: Samples, folder: Path) -> Artifact:
    if backend != "tensorrt":
        need(backend, backends.load(backend).missing())
    pytest.importorskip("onnxscript")
    device = hw_profiles.load(DEVICES[backend])
    return make_artifact(backend, program, folder, precision="int8", device=device, calibration=samples)


def run_file(artifact: Artifact, samples: Samples) -> list[Sequence[np.ndarray]]:
    """Run the numbers that the file states: int8 kernels of a CPU without int8 sums of 32 bits saturate."""
    if artifact.backend == "tflite":
        run = export.load(artifact)
        return [run(*sample) for sample in samples]
    if artifact.backend == "openvino":
        import openvino

        model = openvino.Core().read_model(artifact.path / "model.xml")
        plain = openvino.Core().compile_model(model, "CPU", {"LP_TRANSFORMS_MODE": "NO"})
        found = [plain([np.ascontiguousarray(part) for part in sample]) for sample in samples]
        return [[each[end] for end in plain.outputs] for each in found]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    file = str(artifact.path / "model.onnx")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [session.run(None, dict(zip(names, sample, strict=True))) for sample in samples]


def worst_slice(net: torch.nn.Module, samples: Samples, answers: list[Sequence[np.ndarray]]) -> float:
    """Return the lowest SQNR in dB of a slice along any axis of any output, by the slice's own variance."""
    with torch.no_grad():
        wanted = [as_tuple(net(*map(torch.from_numpy, sample))) for sample in samples]
    worst = 200.0
    for index in range(len(wanted[0])):
        want = np.stack([each[index].numpy() for each in wanted])
        noise = np.square(np.stack([each[index] for each in answers]) - want)
        for axis in range(1, want.ndim):
            others = tuple(each for each in range(want.ndim) if each != axis)
            levels = want.var(others) / np.maximum(noise.mean(others), 1e-30)
            worst = min(worst, 10 * float(np.log10(levels.min())))
    return worst


@pytest.mark.parametrize("name", unlike_nets.NETS)
def test_the_edit_computes_the_same_function(name: str) -> None:
    _, program, samples = built(name, "onnxruntime")
    edited, notes = keep_apart(program, samples)
    assert bool(notes) == (name != "residual")
    for sample in samples[:3]:
        inputs = [torch.from_numpy(part) for part in sample]
        for want, got in zip(program(*inputs), edited(*inputs), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_record_names_the_value_the_ranges_and_what_was_done() -> None:
    _, program, samples = built("rows", "onnxruntime")
    edited, (note,) = keep_apart(program, samples)
    assert isinstance(note, dict)
    assert (note["value"], note["axis"], note["how"]) == ("linear_1", 1, "2 layers")
    large, small = note["ranges"]
    assert large[1] > 100 * small[1]
    assert edited.fired[-1] == ("keep_apart", 1)


@pytest.mark.parametrize("name", ["two_by_two", "convnext", "hybrid", "mobilenet"])
def test_ordinary_networks_are_unchanged(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net, inputs = nets.build(name)
    generator = torch.Generator().manual_seed(1)
    samples = [tuple(torch.randn(x.shape, generator=generator).numpy() for x in inputs) for _ in range(16)]
    program = captured(net, samples[0], "tflite")
    same, notes = keep_apart(program, samples)
    assert same is program
    assert notes == []
    if name != "two_by_two":
        return
    files = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(apart, "find_unlike", lambda *_, **__: [])
        folder = tmp_path / str(plain)
        folder.mkdir()
        files.append((compiled("tflite", program, samples, folder).path / "model.tflite").read_bytes())
    assert files[0] == files[1]


def test_the_parts_of_a_split_are_read_without_the_joined_value() -> None:
    _, program, samples = built("projection", "openvino")
    edited, (note,) = keep_apart(program, samples, at_ends=False)
    assert isinstance(note, dict)
    assert note["how"] == "3 layers"
    assert {str(node.target) for node in edited.module.graph.nodes}.isdisjoint(
        {"aten.cat.default", "aten.split.Tensor"}
    )


def test_a_small_single_score_is_no_chance() -> None:
    """Boxes of 300 +- 3 beside one score of 0.45 +- 0.005, in a layer that hardly varies."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 96), torch.nn.ReLU(), torch.nn.Linear(96, 5))
    net[2].weight.data *= torch.tensor([9.0, 9.0, 9.0, 9.0, 0.015])[:, None]
    net[2].bias.data = torch.tensor([300.0, 250.0, 340.0, 280.0, 0.45])
    samples = [(np.random.default_rng(index).normal(size=(1, 16)).astype(np.float32),) for index in range(24)]
    _, notes = keep_apart(captured(net.eval(), samples[0], "onnxruntime"), samples)
    assert len(notes) == 1


def test_marks_that_cannot_be_placed_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx_file, "_matches", lambda *_: False)
    net, _, samples = built("detector", "onnxruntime")
    need("onnxruntime", backends.load("onnxruntime").missing())
    pytest.importorskip("onnxscript")
    options = export.CompileOptions(recover="none", limits=export.Limits(-200.0, 0.0))
    given = [tuple(map(torch.from_numpy, sample)) for sample in samples]
    made = export.compile(
        net,
        given[0],
        device="onnxruntime-cpu",
        precision="int8",
        calibration=given,
        path=tmp_path / "net",
        options=options,
    )
    _, remark = made.notes["remarks"]
    assert "has parts of unlike ranges on one scale: the operators of the ONNX file do not match" in str(remark)


@pytest.mark.parametrize("name", ["detector", "rows"])
def test_litert_s_own_converter_keeps_parts_apart(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hnas.export.backends.tflite import convert
    from hnas.export.backends.tflite.writer import Unsupported

    pytest.importorskip("litert_torch")

    def refuse(*_: object) -> Any:
        raise Unsupported("patience")

    monkeypatch.setattr(convert, "_emit", refuse)
    net, program, samples = built(name, "tflite")
    artifact = compiled("tflite", program, samples, tmp_path)
    assert artifact.notes["converter"] == "litert-torch"
    assert artifact.notes["quantisation"]["apart"]
    assert worst_slice(net, samples, run_file(artifact, samples)) >= 20


def test_litert_s_own_converter_says_that_a_layer_has_one_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    from hnas.export.backends.tflite import convert

    monkeypatch.setattr(apart, "_SMALL", 1 << 40)  # no layer is divided
    _, program, samples = built("rows", "tflite")
    _, records, left = convert._kept_apart(program, samples)
    assert [str(record["how"])[:9] for record in records] == ["one scale"]
    assert not left


@pytest.mark.parametrize("backend", DEVICES)
@pytest.mark.parametrize("name", KINDS)
def test_every_part_survives(name: str, backend: str, tmp_path: Path) -> None:
    net, program, samples = built(name, backend)
    artifact = compiled(backend, program, samples, tmp_path)
    assert worst_slice(net, samples, run_file(artifact, samples)) >= 20


@pytest.mark.parametrize("backend", ["onnxruntime", "tflite"])
@pytest.mark.parametrize("name", ENDS)
def test_every_part_of_other_ends_survives(name: str, backend: str, tmp_path: Path) -> None:
    test_every_part_survives(name, backend, tmp_path)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_queries_keys_and_values_of_one_layer_survive(backend: str, tmp_path: Path) -> None:
    test_every_part_survives("projection", backend, tmp_path)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "onnxruntime") for name in ("detector", "heads", "rows", "inside")),
        ("detector", "tflite"),
    ],
)
def test_without_the_edit_a_part_is_lost(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(apart, "find_unlike", lambda *_, **__: [])
    net, program, samples = built(name, backend)
    artifact = compiled(backend, program, samples, tmp_path)
    assert worst_slice(net, samples, run_file(artifact, samples)) < 10


@pytest.mark.parametrize("backend", ["onnxruntime"])
@pytest.mark.parametrize("name", ["detector", "rows", "inside"])
def test_every_part_of_an_onnx_file_survives(name: str, backend: str, tmp_path: Path) -> None:
    net, data = unlike_nets.build(name)
    samples = [tuple(part.numpy() for part in each) for each in data]
    program = capture(net, data[0])
    onnx_file.write_program(program, tmp_path / "net.onnx", *program.signature)
    (tmp_path / "made").mkdir()
    with Original(tmp_path / "net.onnx") as original:
        artifact = compiled(backend, original.source, samples, tmp_path / "made")
    assert worst_slice(net, samples, run_file(artifact, samples)) >= 20
