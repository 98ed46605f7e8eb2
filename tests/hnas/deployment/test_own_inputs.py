"""`hnas-deploy export` takes inputs by name, nested, and from files, and a dynamic batch."""

import json
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch

from hnas import export
from hnas.deployment import examples
from hnas.deployment.examples import GivenInputs, nest, parse_dynamic, parse_inputs, read_file
from hnas.deployment.loading import read_calibration
from hnas.export import backends
from hnas.export.bundle.bundle import read_bundle
from hnas.export.device.dynamic import DynamicSize
from tests.conftest import need
from tests.hnas.deployment.test_own import Run, run  # noqa: F401 - a fixture

NETS = """
import torch
from torch import nn

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)

    def forward(self, input_ids, mask=None, past=None):
        total = (self.table(input_ids) * mask[..., None]).sum(1)
        total = total if past is None else total + past[0]["key"]
        return {"logits": self.head(total), "past": [{"key": total}]}

class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, image, scale=None):
        found = self.head(self.conv(image).relu().mean((2, 3)))
        return {"scores": found if scale is None else found * scale}

def text():
    return Text()

def named():
    ids = torch.tensor([[1, 2, 3, 4]])
    return Text(), {"input_ids": ids, "mask": torch.ones(1, 4), "past": [{"key": torch.zeros(1, 8)}]}

def image():
    return Image()
"""
SAMPLES = {
    "input_ids": np.random.default_rng(0).integers(0, 10, (40, 4)),
    "mask": np.ones((40, 4), np.float32),
    "past.0.key": np.random.default_rng(1).standard_normal((40, 8)).astype(np.float32),
}
COMMON = ("--target", "onnxruntime-cpu", "--out", "made", "--json")


@pytest.fixture
def call(run: Run, tmp_path: Path) -> Run:  # noqa: F811
    need("onnxruntime", backends.load("onnxruntime").missing())
    (tmp_path / "nets.py").write_text(NETS)
    return run


def made(tmp_path: Path) -> export.Artifact:
    return read_bundle(tmp_path / "made" / "bundle").artifact()


@pytest.mark.parametrize("form", ["npz", "pt", "callable"])
def test_nested_inputs_and_calibration_by_name(call: Run, tmp_path: Path, form: str) -> None:
    one = {name: value[:1] for name, value in SAMPLES.items()}
    np.savez("real.npz", **SAMPLES)
    np.savez("one.npz", **one)
    torch.save(
        {
            "input_ids": torch.from_numpy(one["input_ids"]),
            "mask": torch.ones(1, 4),
            "past": [{"key": torch.zeros(1, 8)}],
        },
        "one.pt",
    )
    model = ("--model", "nets:named") if form == "callable" else ("--model", "nets:text", "--input", f"one.{form}")
    code, out, err = call(*model, *COMMON, "--calibration", "real.npz", "--precision", "int8")
    assert code == 0, err
    assert [row["precision"] for row in json.loads(out)["rows"]] == ["fp32", "int8"]
    artifact = made(tmp_path)
    assert [(tensor.name, tensor.dtype) for tensor in artifact.inputs] == [
        ("input_ids", "int64"),
        ("mask", "float32"),
        ("past.0.key", "float32"),
    ]
    outputs = export.load(artifact)(input_ids=one["input_ids"], mask=one["mask"], past=[{"key": one["past.0.key"]}])
    assert [outputs["logits"].shape, outputs["past.0.key_out"].shape] == [(1, 3), (1, 8)]


def test_shapes_by_name_and_an_open_batch(call: Run, tmp_path: Path) -> None:
    arguments = ("--model", "nets:image", "--input", "scale=1x1", "--input", "image=1x3x8x8")
    sizes = ("--dynamic", "image:0=batch=1..4", "--dynamic", "scale:0=batch=1..4")
    code, _, err = call(*arguments, *sizes, *COMMON)
    assert code == 0, err
    artifact = made(tmp_path)
    assert [tensor.name for tensor in artifact.inputs] == ["scale", "image"]
    assert DynamicSize.of(artifact) == DynamicSize("batch", 1, 4, (0, 0), (0,))
    images, scale = np.zeros((3, 3, 8, 8), np.float32), np.ones((3, 1), np.float32)
    assert export.load(artifact)(image=images, scale=scale)["scores"].shape == (3, 4)
    command = read_bundle(tmp_path / "made" / "bundle").manifest.reproduce
    assert "--input image=1x3x8x8 --dynamic image:0=batch=1..4" in command


def test_an_onnx_file_by_name_with_an_open_batch(call: Run, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from tests.export.onnx_files import convolution

    onnx.save(convolution("N"), "net.onnx")
    np.savez("real.npz", x=np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32))
    options = ("--input", "x=1x3x8x8", "--dynamic", "x:0=batch", "--calibration", "real.npz", "--precision", "int8")
    code, _, err = call("net.onnx", *options, *COMMON)
    assert code == 0, err
    assert export.load(made(tmp_path))(x=np.zeros((5, 3, 8, 8), np.float32))["y"].shape == (5, 4)
    assert read_bundle(tmp_path / "made" / "bundle").manifest.latency.kind == "measured"


BAD = {
    "mixed forms": (("--input", "image=1x3x8x8", "--input", "1x1"), "give a name to every shape, or to none"),
    "one name twice": (("--input", "image=1x3x8x8", "--input", "image=1x1"), "give a name to every shape"),
    "no such file": (("--input", "lacks.npz"), "no example inputs file lacks.npz"),
    "no array": (("--input", "text.npz"), "text.npz holds no plain arrays; write it with numpy.save"),
    "pickled": (("--input", "code.pt"), "code.pt holds no plain arrays"),
    "no axis": (("--input", "image=1x3x8x8", "--dynamic", "image=batch"), "write INPUT:AXIS=SIZE or INPUT:AXIS=SIZE=1"),
    "no such input": (
        ("--input", "image=1x3x8x8", "--dynamic", "x:0=batch"),
        "dynamic names the input 'x'; known: image",
    ),
    "an empty range": (("--input", "image=1x3x8x8", "--dynamic", "image:0=n=4..2"), "the range of n is 4 to 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line(call: Run, case: str) -> None:
    Path("text.npz").write_text("hello")
    torch.save(torch.nn.Linear(1, 1), "code.pt")
    arguments, line = BAD[case]
    code, out, err = call("--model", "nets:image", *arguments, *COMMON)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert line in err
    assert not Path("made").exists()


def test_tflite_refuses_an_open_batch_before_any_work(call: Run) -> None:
    need("tflite", backends.load("tflite").missing())
    options = ("--input", "1x3x8x8", "--dynamic", "image:0=batch", "--target", "tflite-cpu", "--out", "made")
    code, _, err = call("--model", "nets:image", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert "tflite takes no dynamic size" in err


def test_text_is_read_as_it_is_written(tmp_path: Path) -> None:
    assert parse_inputs(None) is None
    assert parse_inputs(["2x3", "4"]) == GivenInputs(shapes=(("", (2, 3)), ("", (4,))))
    assert parse_inputs(["onnx::Add.0=2x3"]) == GivenInputs(shapes=(("onnx::Add.0", (2, 3)),))
    assert parse_dynamic(["onnx::Add_0:1=n", "x:0=n=2..8"]) == {"onnx::Add_0": {1: "n"}, "x": {0: "n=2..8"}}
    assert nest({"a.0.key": 1, "a.1.key": 2, "b.1": 3, "c": 4}) == {
        "a": [{"key": 1}, {"key": 2}],
        "b": {"1": 3},
        "c": 4,
    }
    with pytest.raises(ValueError, match=r"the inputs have both 'a' and 'a\.b'"):
        nest({"a": 1, "a.b": 2})
    np.savez(tmp_path / "plain.npz", np.zeros(1), np.ones(2))
    assert [value.shape for value in read_file(tmp_path / "plain.npz", "x")] == [(1,), (2,)]


def test_calibration_may_be_a_list_of_samples(tmp_path: Path) -> None:
    example = (np.zeros((1, 4), np.int64), np.zeros((1, 2), np.float32))
    given = [{"mask": torch.full((1, 2), float(n)), "ids": torch.full((1, 4), n)} for n in range(3)]
    torch.save(given, tmp_path / "real.pt")
    found = read_calibration(tmp_path / "real.pt", example, ("ids", "mask"))
    assert [(ids[0, 0], mask[0, 0]) for ids, mask in found] == [(0, 0.0), (1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("name", ["large.pt", "large.npz"])
def test_a_file_that_is_large_when_unpacked_is_refused_before_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch inflates the members of an archive: 66 KB may become 64 MB, and 4 MB may become 4 GB."""
    plain, small = tmp_path / "plain.pt", tmp_path / name
    torch.save({"x": torch.zeros(2**19)}, plain)
    if name.endswith(".npz"):
        np.savez_compressed(small, x=np.zeros(2**19, np.float32))
    else:
        with ZipFile(plain) as source, ZipFile(small, "w", ZIP_DEFLATED) as target:
            for part in source.infolist():
                target.writestr(part.filename, source.read(part.filename))
    assert read_file(small, "calibration")["x"].shape == (2**19,)
    monkeypatch.setattr(examples, "_LARGEST", 2**20)
    assert small.stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"holds no plain arrays"):
        read_file(small, "calibration")
