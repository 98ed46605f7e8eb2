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
from hnas.export.compiling.originals import capture_module
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


def built(name: str, backend: str) -> tuple[torch.nn.Module, Program, Samples]:
    net, data = unlike_nets.build(name)
    samples = [tuple(part.numpy() for part in each) for each in data]
    return net, capture_module(net, samples[0], backend), samples


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
    large, small = note["ranges"]  # type: ignore[misc]
    assert large[1] > 100 * small[1]  # type: ignore[index,call-overload,operator]
    assert edited.fired[-1] == ("keep_apart", 1)


@pytest.mark.parametrize("name", ["two_by_two", "convnext", "hybrid"])
def test_ordinary_networks_are_unchanged(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net, inputs = nets.build(name)
    generator = torch.Generator().manual_seed(1)
    samples = [tuple(torch.randn(x.shape, generator=generator).numpy() for x in inputs) for _ in range(16)]
    program = capture_module(net, samples[0], "tflite")
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
