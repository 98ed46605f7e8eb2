"""Test that bundles are complete or absent, and that a change of any byte is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnas.export.bundle.bundle import Bundle, read_bundle, write_bundle
from hnas.export.bundle.manifest import (
    Accuracy,
    Data,
    Input,
    Latency,
    Machine,
    Manifest,
    Mixed,
    Prediction,
    SpaceRecord,
    Speedup,
)
from hnas.export.device.records import decode
from hnas.export.proof.load import Load
from hnas.export.proof.slices import OutputSlice
from hnas.export.proof.slowdown import Slowdown, SlowerLayer
from hnas.export.proof.verification import LIMITS, Check
from tests.export.device.test_artifact import artifact_in


def a_manifest(**changes: Any) -> Manifest:
    return Manifest(
        **{
            "name": "hybrid_vision-7f3a",
            "created": "2026-01-02T03:04:05+00:00",
            "task": "image-classification",
            "target": "onnxruntime-cpu",
            "backend": "onnxruntime",
            "precision": "int8",
            "arch": {"stages.0.depth": 2, "stages.0.blocks.0.op": "mbconv3"},
            "space": SpaceRecord("hybrid_vision", {"size": 28}),
            "labels": ("shirt", "Schuh ß"),
            "input": Input((1, 1, 28, 28), "float32", "NCHW", {"size": [28, 28], "mean": [0.5]}),
            "accuracy": Accuracy("top-1", 2000, "test", 0.912, 0.909, (0.896, 0.921), 0.93),
            "verification": Check(
                "int8", 0.12, 35.0, 0.985, 2000, LIMITS["int8"], OutputSlice("scores", 1, 7, 24.0), decisions=1990
            ),
            "latency": Latency("measured", 0.21, 0.2, 0.23, 1, 1, 400, p90=0.3, p99=0.4,
                               predicted=Prediction(0.3, 0.15, 0.6)),
            "speedup": Speedup(2.4, 2.2, 2.6, "largest subnet, fp32, same backend", "measured", 5),
            "machine": Machine("A CPU | of 2026", 2, "Linux x86_64", "3.11.7"),
            "versions": {"hnas": "0.1.0", "onnxruntime": "1.31.1"},
            "seeds": {"search": 0},
            "data": Data("fashion-mnist", {"test": "0" * 64}),
            "reproduce": "hnas-deploy --target onnxruntime-cpu --seed 0",
            "licence": "Apache-2.0 (weights); MIT (data)",
            **changes,
        }
    )  # fmt: skip


def a_bundle(folder: Path, **changes: Any) -> Bundle:
    artifact, baseline = artifact_in(folder / "work/a"), artifact_in(folder / "work/b")
    (artifact.path / "left-over.log").write_text("not part of it")
    return write_bundle(folder / "bundle", a_manifest(**changes), artifact=artifact, baseline=baseline.path)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object], seal: bool = True) -> None:
    """Change the manifest's JSON and compute its digest again, unless ``seal`` is False."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    if value.get("files", {}).keys() != value["sizes"].keys():
        del value["sizes"]  # as hnas 0.1.0 wrote manifests
    value["digest"] = "0" * len(value.pop("digest"))  # the last key again
    text = json.dumps(value)
    path.write_text(text[:-66] + hashlib.sha256(text.encode()).hexdigest() + text[-2:] if seal else text)


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip(tmp_path: Path) -> None:
    written = a_bundle(tmp_path)
    again = read_bundle(str(tmp_path / "bundle"))
    assert again == written
    baseline = again.baseline()
    assert baseline is not None
    assert baseline.path == tmp_path / "bundle/baseline"
    assert again.artifact().digest == artifact_in(tmp_path / "other").digest
    assert again.labels == ("shirt", "Schuh ß")
    assert again.manifest.size_bytes == 29
    assert replace(again.manifest, files={}, sizes={}, size_bytes=0, baseline=None, grade="") == a_manifest()
    assert json.loads((tmp_path / "bundle/manifest.json").read_text())["grade"] == "close"
    assert sorted(again.manifest.files) == [
        "README.md",
        "artifact/artifact.json", "artifact/model.onnx", "artifact/weights/w.bin",
        "baseline/artifact.json", "baseline/model.onnx", "baseline/weights/w.bin",
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "other", "work"}


def test_a_bundle_needs_only_artifact_latency_and_check(tmp_path: Path) -> None:
    bare = a_manifest(arch=None, space=None, input=None, accuracy=None, speedup=None, data=None, labels=())
    bundle = write_bundle(tmp_path / "b", bare, artifact=artifact_in(tmp_path / "a"))
    assert bundle.baseline() is None
    assert read_bundle(tmp_path / "b").manifest.accuracy is None


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a bundle for tests that restore what they change."""
    return a_bundle(tmp_path_factory.mktemp("one")).path


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_refused(one: Path, data: st.DataObject) -> None:
    names = sorted(path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file())
    file = one / data.draw(st.sampled_from(names))
    content = file.read_bytes()
    changed = bytearray(content)
    changed[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(changed)
    try:
        refused(one)
    finally:
        file.write_bytes(content)
    read_bundle(one)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400))
def test_a_truncated_manifest_is_refused(one: Path, cut: int) -> None:
    file = one / "manifest.json"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * cut // 401])
    try:
        refused(one)
    finally:
        file.write_bytes(content)


finite = st.floats(1e-6, 1e6)


@settings(max_examples=30, deadline=None)
@given(times=st.tuples(finite, finite, finite), name=st.text(min_size=1).filter(str.isprintable), n=st.integers(1))
def test_any_figures_round_trip(
    tmp_path_factory: pytest.TempPathFactory, times: tuple[float, float, float], name: str, n: int
) -> None:
    low, value, high = sorted(times)
    manifest = a_manifest(name=name, latency=Latency("measured", value, low, high, 1, 1, n))
    folder = tmp_path_factory.mktemp("any")
    written = write_bundle(folder / "b", manifest, artifact=artifact_in(folder / "a"))
    files, sizes = written.manifest.files, written.manifest.sizes
    assert read_bundle(written.path).manifest == replace(
        manifest, files=files, sizes=sizes, size_bytes=29, grade="close"
    )


SLOW = Slowdown("fp32", 0.93, (SlowerLayer("norm|1", "MVN", 3.0, 90.0, ("2 Convert",)),), 0.8)
MIXED = Mixed(SLOW.headline(), "kept", ("stem", "head"), {"stem": 12.5, "body": 31.0, "head": 20.0}, 5)


def test_why_int8_is_slow_and_which_blocks_are_in_float_stand_in_manifest_and_card(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path, slowdown=SLOW, mixed=MIXED)
    assert (bundle.manifest.slowdown, bundle.manifest.mixed) == (SLOW, MIXED)
    card = (bundle.path / "README.md").read_text("utf-8")
    assert "int8 is slower here than fp32 (x0.93): norm|1 (MVN): 0.003 ms in float, 0.09 ms in int8, with 2 C" in card
    assert "2 of 3 blocks in float (stem, head), after 5 trials; kept" in card
    assert "| grade: as float, close, or degraded | close |" in card
    assert "worst slice scores[:, 7] 24.0 dB" in card


def test_the_load_of_the_machine_stands_in_manifest_and_card(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path, load=Load(1.62, 2))
    assert bundle.manifest.load == Load(1.62, 2)
    card = (bundle.path / "README.md").read_text("utf-8")
    assert "| load while it was measured | other programs used 1.6 of 2 cores |" in card


def test_a_manifest_of_0_1_0_is_read(tmp_path: Path) -> None:
    written = a_manifest(verification=Check("int8", 0.12, 35.0, 0.985, 2000, LIMITS["int8"]))
    folder = write_bundle(tmp_path / "b", written, artifact=artifact_in(tmp_path / "a")).path
    value = json.loads((folder / "manifest.json").read_text())
    for name in ("worst", "decisions", "sensitivity_db"):
        del value["verification"][name]
    value["verification"]["limits"] = {"sqnr_db": 10.0, "agreement": 0.97}
    found = decode(Manifest, {name: each for name, each in value.items() if name not in ("schema", "digest")}, "old")
    assert found.verification.grade == "close"


def test_a_bundle_from_before_there_were_such_fields_is_read(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path)
    rewrite(bundle.path, lambda value: [value.pop(name) for name in ("slowdown", "mixed")])
    assert read_bundle(bundle.path).manifest == bundle.manifest


def put(*keys: str, to: object) -> Callable[[dict[str, Any]], object]:
    def change(value: dict[str, Any]) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("accuracy", "n", to="2000"), "manifest.json: accuracy.n is '2000', expected an integer"),
        (put("accuracy", "n", to=True), "accuracy.n is True, expected an integer"),
        (put("accuracy", "artifact", to=90.9), "accuracy.artifact is 90.9, expected 0 to 1"),
        (put("accuracy", "interval", to=[0.95, 0.99]), "artifact is 0.909 outside of its interval 0.95 to 0.99"),
        (put("accuracy", "interval", to=[0.9]), "accuracy.interval is [0.9], expected a list of 2"),
        (put("speedup", "low", to=0.0), "speedup.low is 0, expected more than 0"),
        (put("latency", "kind", to="guessed"), "latency.kind is 'guessed', expected one of measured, predicted"),
        (put("latency", "unit", to="s"), "latency.unit is 's', expected one of ms"),
        (put("latency", "n", to=0), "latency.n is 0, expected 1 or more"),
        (put("latency", "high", to=1.79e308), "or one is over 1e+12"),
        (put("latency", "low", to=5e-324), "or under its inverse"),
        (put("size_bytes", to=10**400), "size_bytes is 1000000"),
        (put("latency", "value", to=1e400), "is not readable JSON"),
        (put("latency", "predicted", "kind", to="measured"), "latency.predicted.kind is 'measured', expected one"),
        (put("latency", to=None), "latency is missing, expected an object"),
        (put("slowdown", to={"against": "fp32", "ratio": 0}), "slowdown.ratio is 0, expected more than 0"),
        (put("slowdown", to={"against": "fp32", "ratio": 0.9, "layers": [1]}), "slowdown.layers[0] is 1, expected an"),
        (put("mixed", to={"why": "it was asked for"}), "mixed.outcome is missing"),
        (put("labels", to=["a", 1]), "labels[1] is 1, expected a string"),
        (put("versions", "x", to=1), "versions.x is 1, expected a string"),
        (put("machine", "cores", to=2.5), "machine.cores is 2.5, expected an integer"),
        (put("created", to="yesterday"), "created is 'yesterday'"),
        (put("schema", to=2), "schema is 2, known: 1"),
        (put("schema", to=None), "schema is missing, known: 1"),
        (put("more", to=1), "more is not known"),
        (put("artifact", to="../artifact"), "'../artifact' is not a plain path"),
        (put("artifact", to="elsewhere"), "files has no elsewhere/artifact.json"),
        (put("files", "/etc/passwd", to="0" * 64), "'/etc/passwd' is not a plain path"),
        (put("files", "a/../../x", to="1" * 64), "is not a plain path"),
        (put("files", "gone", to="1" * 64), "gone is missing"),
        (put("precision", to="fp32"), "precision is 'fp32', but the artifact's is 'int8'"),
        (put("size_bytes", to=1), "size_bytes is 1, but the artifact's is 29"),
        (put("verification", "agreement", to=0.1), "verification did not pass"),
        (put("verification", "worst", "sqnr_db", to=9.0), "verification did not pass"),
        (put("verification", "worst", "axis", to=10**12), "verification.worst.worst is at axis 1000000000000"),
        (put("verification", "decisions", to=10**15), "decisions is 1000000000000000, expected"),
        (put("verification", "sqnr_db", to="40"), "verification.sqnr_db is '40', expected a number"),
        (lambda value: value.pop("target"), "target is missing"),
        (lambda value: value["files"].pop("README.md"), "README.md is not in the manifest"),
    ],
)
def test_a_wrong_manifest_is_one_line(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    folder = a_bundle(tmp_path).path
    rewrite(folder, change)
    assert message in refused(folder)


def test_a_change_that_is_no_fault_otherwise_is_refused(tmp_path: Path) -> None:
    folder = a_bundle(tmp_path).path
    rewrite(folder, put("accuracy", "artifact", to=0.91), seal=False)
    assert "was changed after it was written" in refused(folder)


def test_foreign_things_are_refused(tmp_path: Path) -> None:
    folder = a_bundle(tmp_path).path
    extra = folder / "artifact/extra.bin"
    extra.write_bytes(b"x")
    assert "extra.bin is not in the manifest" in refused(folder)
    extra.unlink()
    (folder / "link").symlink_to("/tmp")
    assert "link is not in the manifest" in refused(folder)
    (folder / "link").unlink()
    card = (folder / "README.md").read_bytes()
    (tmp_path / "card").write_bytes(card)
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "card")
    assert "a link that leaves" in refused(folder)
    (folder / "README.md").unlink()
    (folder / "README.md").write_bytes(card)
    read_bundle(folder)
    (folder / "manifest.json").rename(tmp_path / "manifest.json")
    assert "has no manifest.json" in refused(folder)
    os.mkfifo(folder / "manifest.json")
    assert "not a plain file" in refused(folder)
    with pytest.raises(FileNotFoundError, match="no bundle at"):
        read_bundle(tmp_path / "none")


def test_the_folder_of_a_run_says_where_its_bundle_is(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path).path.rename(tmp_path / "bundle")
    assert refused(tmp_path) == f"{tmp_path} is the folder of a run; its bundle is {bundle}"


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path / "a")
    with pytest.raises(ValueError, match="precision is 'fp16', but the artifact's is 'int8'"):
        write_bundle(tmp_path / "b", a_manifest(precision="fp16"), artifact=artifact)
    (artifact.path / "model.onnx").write_bytes(b"changed")
    with pytest.raises(ValueError, match="was changed"):
        write_bundle(tmp_path / "b", a_manifest(), artifact=artifact)
    assert list(tmp_path.iterdir()) == [artifact.path]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    a_bundle(tmp_path)
    with pytest.raises(ValueError, match="is not empty; choose another folder"):
        write_bundle(tmp_path / "bundle", a_manifest(), artifact=tmp_path / "work/a")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write the bundle .*: "):
        write_bundle(tmp_path / "file/bundle", a_manifest(), artifact=tmp_path / "work/a")


def test_a_grade_that_the_figures_do_not_have_is_refused(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path)
    assert bundle.manifest.grade == "close"
    rewrite(bundle.path, lambda value: value.update(grade="as float"))
    assert "grade is 'as float', the figures of the verification are 'close'" in refused(bundle.path)
    rewrite(bundle.path, lambda value: value.pop("grade"))
    assert read_bundle(bundle.path).manifest.grade == ""  # as older versions wrote it
