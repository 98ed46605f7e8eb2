"""A module becomes a verified artifact; each error is one line and leaves nothing behind."""

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hnas import export
from hnas.export import backends
from hnas.export.compiling import originals
from hnas.export.device.artifact import Artifact
from tests.export import nets
from tests.export.compile_flat import compile_flat

torch.set_num_threads(1)


def needs(module):
    required = os.environ.get("HNAS_REQUIRE", "").split(",")
    return pytest.mark.skipif(find_spec(module) is None and module not in required, reason=f"{module} is not installed")


def compiled(tmp_path: Path, name: str = "two_by_two", **options) -> Artifact:
    net, inputs = nets.build(name)
    options = {"backend": "reference", "path": tmp_path / "artifact", **options}
    return compile_flat(net, inputs, **options)


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", nets.SHAPES)
def test_reference_computes_what_the_module_does(tmp_path, name):
    artifact = compiled(tmp_path, name)
    net, inputs = nets.build(name)
    got = export.load(artifact)(*(value.numpy() for value in inputs))
    with torch.no_grad():
        expected = net(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert (
        [value.shape for value in got]
        == [tuple(value.shape) for value in expected]
        == [o.shape for o in artifact.outputs]
    )
    for want, have in zip(expected, got, strict=True):
        np.testing.assert_allclose(have, want.numpy(), rtol=1e-4, atol=1e-5)
    assert artifact.notes["verification"]["passed"] is True
    assert artifact.notes["verification"]["sqnr_db"] >= 90
    assert dict(artifact.notes["passes"])["fold_batchnorm"] > 0
    assert left_behind(tmp_path) == ["artifact"]


@pytest.mark.parametrize(
    ("runtime", "device"),
    [
        pytest.param("onnxruntime", "onnxruntime-cpu", marks=needs("onnxruntime")),
        pytest.param("openvino", "openvino-cpu", marks=needs("openvino")),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_real_runtimes(tmp_path, runtime, device, precision):
    generator = torch.Generator().manual_seed(1)
    images = [(torch.randn(4, 3, 16, 16, generator=generator),) for _ in range(4)]
    artifact = compiled(tmp_path, "resnet", backend=runtime, device=device, precision=precision, calibration=images)
    assert artifact.notes["verification"]["n"] == 16 + (
        precision == "fp32"
    )  # batches of four became samples of one; int8 sees the example apart
    assert (artifact.backend, artifact.precision, artifact.device) == (runtime, precision, device)


def test_two_outputs_and_evidence_of_arrays(tmp_path):
    rng = np.random.default_rng(0)
    shapes = nets.SHAPES["two_by_two"][1]
    evidence = [tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes) for _ in range(60)]
    artifact = compiled(tmp_path, evidence=evidence, classifier=True)
    assert artifact.notes["verification"]["n"] == 61  # with the example
    assert artifact.notes["verification"]["agreement"] == 1.0


def test_an_older_artifact_is_replaced_but_nothing_else_is(tmp_path):
    first = compiled(tmp_path)
    second = compiled(tmp_path, "resnet")
    assert Artifact.read(first.path).digest == second.digest != first.digest
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("words")
    with pytest.raises(ValueError, match="exists and is not an artifact"):
        compiled(tmp_path, path=precious)
    assert left_behind(tmp_path) == ["artifact", "precious"]


def test_the_module_keeps_its_mode(tmp_path):
    net, inputs = nets.build("two_by_two")
    net.train()
    compile_flat(net, inputs, backend="reference", path=tmp_path / "a")
    assert all(part.training for part in net.modules())


def test_a_wrong_artifact_is_no_artifact(tmp_path, monkeypatch):
    monkeypatch.setattr(
        originals, "run_eager", lambda module, evidence: [(np.ones((1, 5)), np.ones((1, 2, 4, 4)))] * len(evidence)
    )
    with pytest.raises(export.ExportError, match=r"reference does not compute what TwoByTwo does: fp32 fails .* SQNR"):
        compiled(tmp_path)
    assert left_behind(tmp_path) == []


def test_a_failing_converter_is_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("boom\nand a page more")

    monkeypatch.setattr(backends.load("reference"), "compile", fail)
    with pytest.raises(export.ExportError, match=r"^reference cannot compile TwoByTwo to fp32: RuntimeError: boom$"):
        compiled(tmp_path)
    assert left_behind(tmp_path) == []


def test_a_failed_attempt_keeps_the_older_artifact(tmp_path, monkeypatch):
    first = compiled(tmp_path)
    monkeypatch.setattr(originals, "run_eager", lambda module, evidence: [(np.ones((1, 10)),)] * len(evidence))
    with pytest.raises(export.ExportError):
        compiled(tmp_path, "resnet")
    assert Artifact.read(first.path).digest == first.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "toaster"}, "no device 'toaster'; known: "),
        ({"backend": "tensort"}, "no backend 'tensort'; known: "),
        ({"precision": "int4"}, "no precision 'int4'; known: fp32"),
        ({"precision": "bf16"}, "openvino-cpu with reference has no bf16; offered: fp32"),
        ({"backend": "openvino", "precision": "int8"}, "int8 needs calibration batches"),
        ({"threads": 0}, "threads must be 1 or more, got 0"),
        ({"calibration": []}, "at least one tuple"),
        ({"calibration": ["cat.png"]}, "must be tensors or arrays of numbers, got str"),
        ({"evidence": [(torch.zeros(1, 1, 9, 9), torch.zeros(1, 4))]}, r"evidence inputs are float32\[1, 1, 9, 9\]"),
        ({"calibration": [(torch.zeros(1, 1, 8, 8),)]}, "calibration inputs are"),
        ({"calibration": [(torch.full((1, 1, 8, 8), torch.nan), torch.zeros(1, 4))]}, "hold NaN or infinity"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        compiled(tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert left_behind(tmp_path) == []


def test_wrong_examples_are_one_line(tmp_path):
    net, _ = nets.build("resnet")
    with pytest.raises(ValueError, match="ResNet does not take the example inputs") as caught:
        compile_flat(net, torch.zeros(1, 5, 16, 16), backend="reference", path=tmp_path / "a")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"or an ExportedProgram, got function"):
        compile_flat(lambda x: x, torch.zeros(1), backend="reference", path=tmp_path / "a")
    assert left_behind(tmp_path) == []


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*file"):
        compiled(tmp_path, path=tmp_path / "file" / "artifact")


def test_a_missing_runtime_is_unavailable(tmp_path, monkeypatch):
    artifact = compiled(tmp_path)
    monkeypatch.setattr(
        backends.load("reference"), "missing", lambda: "torch is not installed; pip install 'hnas[search]'"
    )
    with pytest.raises(export.Unavailable, match="pip install"):
        export.load(artifact)
    with pytest.raises(export.Unavailable, match="pip install"):
        compiled(tmp_path)


def test_a_rung_of_recovery_finds_an_empty_folder(tmp_path, monkeypatch):
    """The backend leaves a file on its first rung, whose weights are wrong; the second rung is published."""
    reference = backends.load("reference")
    compile_rightly, folders = reference.compile, []

    def planted(program, path, **options):
        assert list(path.iterdir()) == []
        written = compile_rightly(program, path, **options)
        if not folders:
            (path / "stale.bin").write_bytes(b"of the first rung")
            weights = load_file(path / reference.WEIGHTS)
            save_file({name: torch.zeros_like(value) for name, value in weights.items()}, path / reference.WEIGHTS)
        folders.append(path)
        return replace(written, notes={"quantisation": {}})

    monkeypatch.setattr(reference, "compile", planted)
    monkeypatch.setattr(reference, "precisions", ("fp32", "int8"))
    samples = [nets.build("two_by_two")[1]]
    artifact = compiled(tmp_path, precision="int8", calibration=samples, recover="auto")
    assert artifact.notes["quantisation"]["rung"] == "bias"
    assert len(set(folders)) == len(folders) == 2
    assert left_behind(artifact.path) == sorted(["artifact.json", *artifact.files])
    assert left_behind(tmp_path) == ["artifact"]


def test_another_device_needs_no_runtime_to_build_for_it(tmp_path, monkeypatch):
    reference = backends.load("reference")

    def stand_in(program, path, **options):
        made = reference.compile(program, path, **options)
        (path / "model.onnx").write_bytes(b"the file of the other device")
        return replace(made, files=("model.onnx", *made.files), notes={"verify_with": "reference"})

    class Absent:
        precisions = ("fp32",)
        missing = staticmethod(lambda: "tensorrt is not installed")
        compile = staticmethod(stand_in)

    load = backends.load
    monkeypatch.setattr(backends, "load", lambda name: Absent if name == "tensorrt" else load(name))
    artifact = compiled(tmp_path, device="jetson", backend="tensorrt")
    assert artifact.notes["verification"]["passed"]
    with pytest.raises(export.Unavailable, match="tensorrt is not installed"):
        export.load(artifact)


def test_reference_opens_nothing_but_operators(tmp_path):
    artifact = compiled(tmp_path)
    graph = artifact.path / "graph.json"
    record = json.loads(graph.read_text())
    call = next(node for node in record["nodes"] if node["op"] == "call_function")
    for target, kwargs in (
        ("os.system", {}),
        ("aten.from_file.default", {}),
        ("aten.relu.default", {"self=print(1), x": 1}),
        (5, {}),
    ):
        call.update(target=target, kwargs=kwargs)
        graph.write_text(json.dumps(record))
        with pytest.raises(export.ExportError, match="not a graph of ATen operators"):
            export.load(artifact)


def test_reference_checks_its_inputs(tmp_path):
    runner = export.load(compiled(tmp_path))
    with pytest.raises(ValueError, match="the artifact takes"):
        runner(np.zeros((1, 1, 8, 8), np.float32))


class Sequence(nn.Module):
    """Take integers, which a probe must not replace by noise."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(11, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        return self.out(self.table(tokens).mean(1))


def test_integer_inputs(tmp_path):
    artifact = compile_flat(Sequence(), torch.randint(0, 11, (1, 6)), backend="reference", path=tmp_path / "a")
    assert artifact.inputs[0].dtype == "int64"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"keep_float": "block"}, "keep_float is 'block', expected a list of names of blocks"),
        ({"evidence": 5}, "evidence is 5, expected samples"),
        ({"open_worker": 5}, "open_worker is 5, expected a function of an artifact"),
        ({"compiler": 5}, "compiler is 5, expected export.Compiler()"),
    ],
)
def test_options_of_another_type_are_refused_in_one_line(options, line):
    with pytest.raises(TypeError) as caught:
        export.CompileOptions(**options)
    assert str(caught.value) == line


def test_other_options_than_a_record_of_them_are_refused(tmp_path):
    net, inputs = nets.build("two_by_two")
    with pytest.raises(TypeError, match=r"options is a dict, expected CompileOptions"):
        export.compile(net, inputs, path=tmp_path / "artifact", options={"backend": "reference"})
    with pytest.raises(TypeError, match=r"threads is '1', expected a whole number"):
        export.compile(net, inputs, path=tmp_path / "artifact", threads="1")
    assert left_behind(tmp_path) == []


def test_a_module_that_does_not_take_the_samples_is_named():
    with pytest.raises(ValueError, match=r"Linear does not take inputs of \[1, 5\]: RuntimeError: "):
        originals.run_eager(nn.Linear(4, 3), [(np.zeros((1, 5), np.float32),)])
