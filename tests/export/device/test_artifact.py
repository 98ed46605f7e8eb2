"""Artifacts read back as they were written; changed and hostile ones are refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnas.export.device.artifact import Artifact, TensorSpec, check_name, digest_files


def artifact_in(folder: Path) -> Artifact:
    """Write a small artifact of two files to ``folder``."""
    (folder / "weights").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"the graph")
    (folder / "weights/w.bin").write_bytes(bytes(range(20)))
    artifact = Artifact(
        path=folder,
        backend="onnxruntime",
        precision="int8",
        device="onnxruntime-cpu",
        threads=1,
        inputs=(TensorSpec("x", (1, 3, 8, 8), "float32"),),
        outputs=(TensorSpec("y", (1, 10), "float32"),),
        files=digest_files(folder, "model.onnx", "weights/w.bin"),
        versions={"onnxruntime": "1.31.1"},
        notes={"passes": [["fold_batchnorm", 3]]},
    )
    artifact.write()
    return artifact


def edit(folder: Path, **changes: Any) -> None:
    record = folder / "artifact.json"
    value = json.loads(record.read_text())
    if "files" in changes:
        del value["sizes"]
    value.update(changes)
    record.write_text(json.dumps(value))


def test_round_trip(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path / "a")
    again = Artifact.read(str(tmp_path / "a"))
    assert again == replace(artifact, notes={"passes": [["fold_batchnorm", 3]]})
    assert again.model.name == "model.onnx"
    assert again.size_bytes == 29
    assert again.source == tmp_path / "a"
    assert len(again.digest) == 64


def test_it_may_move(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    again = Artifact.read(tmp_path / "b")
    assert again.digest == artifact.digest
    assert again.path == tmp_path / "b"


def test_digest_ignores_the_order_of_files_and_sees_their_content(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path / "a")
    turned = dict(reversed(list(artifact.files.items())))
    assert replace(artifact, files=turned).digest == artifact.digest
    assert replace(artifact, files={**artifact.files, "model.onnx": "0" * 64}).digest != artifact.digest


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    artifact = artifact_in(tmp_path_factory.mktemp("flip") / "a")
    name = data.draw(st.sampled_from(list(artifact.files)))
    content = bytearray((artifact.path / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (artifact.path / name).write_bytes(content)
    with pytest.raises(ValueError, match="was changed") as caught:
        Artifact.read(artifact.path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema is 2, known: 1"),
        ({"schema": "1"}, "schema is '1'"),
        ({"schema": True}, "schema is True"),
        ({"threads": "1"}, "threads is '1', expected an integer"),
        ({"threads": True}, "threads is True, expected an integer"),
        ({"threads": 0}, "threads is 0, expected 1 to 1024"),
        ({"threads": 5000}, "threads is 5000, expected 1 to 1024"),
        ({"sizes": {"model.onnx": 9}}, "sizes does not have"),
        ({"sizes": {"model.onnx": 10, "weights/w.bin": 20}}, "was changed: it has 9 bytes, the record says 10"),
        ({"sizes": {"model.onnx": 2**62, "weights/w.bin": 20}}, "the most that is read"),
        ({"sizes": {"model.onnx": -1, "weights/w.bin": 20}}, "sizes does not have"),
        ({"backend": "os.path"}, "backend is 'os.path'"),
        ({"precision": None}, "precision is missing, expected a string"),
        ({"inputs": [{"name": "x", "shape": [1, 2.0], "dtype": "float32"}]}, r"inputs\[0\].shape\[1\] is 2.0, exp"),
        ({"inputs": [{"name": "x", "shape": [-1], "dtype": "float32"}]}, r"inputs\[0\].shape is \[-1\]"),
        ({"inputs": [{"name": "x", "shape": [1], "dtype": "O"}]}, r"inputs\[0\].dtype is 'O'"),
        ({"inputs": [{"name": "x", "shape": [10**9, 10**9], "dtype": "bool"}]}, "expected at most 268435456 values"),
        ({"outputs": [{"name": "y", "shape": [10**300], "dtype": "bool"}]}, r"outputs\[0\].shape is .* in all"),
        ({"inputs": {}}, "inputs is {}, expected a list"),
        ({"files": {}}, "files is empty"),
        ({"files": []}, r"files is \[\], expected an object"),
        ({"files": {"model.onnx": "abc"}}, "files.model.onnx is 'abc'"),
        ({"files": {"../x": "0" * 64}}, "'../x' is not a plain path"),
        ({"files": {"/etc/hostname": "0" * 64}}, "not a plain path"),
        ({"files": {"gone": "0" * 64}}, "gone is missing"),
        ({"files": {"weights": "0" * 64}}, "not a plain file"),
        ({"more": 1}, "more is not known; known: backend"),
    ],
)
def test_a_wrong_record_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    artifact_in(tmp_path / "a")
    edit(tmp_path / "a", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        Artifact.read(tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert "artifact.json" in str(caught.value) or str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable JSON"),
        (b"\xff\xfe", "not readable JSON"),
        (b"[1]", "expected an object"),
        (b'{"schema": 1, "schema": 1}', "'schema' is given twice"),
        (b'{"schema": NaN}', "NaN is not a JSON number"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"schema": 1, "backend": "\\ud800"}', "surrogates not allowed"),
        (b'{"schema": 1}', "backend is missing"),
        (b" " * (16 * 2**20 + 1), "larger than"),
    ],
)
def test_a_broken_record_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    artifact_in(tmp_path / "a")
    (tmp_path / "a/artifact.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Artifact.read(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    folder = artifact_in(tmp_path / "a").path
    (tmp_path / "outside").write_bytes((folder / "model.onnx").read_bytes())
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="a link that leaves"):
        Artifact.read(folder)
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")
    with pytest.raises(ValueError, match="not a plain file"):
        Artifact.read(folder)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("model.onnx")
    with pytest.raises(ValueError, match=r"model\.onnx"):
        Artifact.read(folder)
    (folder / "artifact.json").unlink()
    os.mkfifo(folder / "artifact.json")
    with pytest.raises(ValueError, match="not a plain file"):
        Artifact.read(folder)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no artifact at"):
        Artifact.read(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no artifact\.json"):
        Artifact.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "backend"), [("m.onnx", "onnxruntime"), ("m.xml", "openvino"), ("m.tflite", "tflite")]
)
def test_a_bare_file_is_an_fp32_artifact(tmp_path: Path, name: str, backend: str) -> None:
    (tmp_path / name).write_bytes(b"<net/>")
    (tmp_path / "m.bin").write_bytes(b"weights")
    artifact = Artifact.read(tmp_path / name)
    assert (artifact.backend, artifact.precision, artifact.threads) == (backend, "fp32", 1)
    assert list(artifact.files) == ([name, "m.bin"] if backend == "openvino" else [name])
    assert artifact.source == tmp_path / name
    assert Artifact.read(artifact.source) == artifact


def test_another_file_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"not a model file; known: \.onnx, \.xml, \.tflite"):
        Artifact.read(tmp_path / "m.pt")


@given(st.text())
def test_no_name_leaves_its_folder(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        return
    assert (Path("/a/b") / name).resolve().is_relative_to("/a/b")


def test_write_checks_its_files(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path / "a")
    (artifact.path / "model.onnx").write_bytes(b"another")
    with pytest.raises(ValueError, match="was changed"):
        artifact.write()
