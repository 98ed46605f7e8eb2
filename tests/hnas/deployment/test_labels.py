"""Labels among the real inputs of `hnas-deploy export`: the accuracy decides, and nothing else."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hnas import cli
from hnas.deployment import flow, mixing
from hnas.deployment.labels import LEAST, judged_by, split_labels
from hnas.deployment.loading import read_labelled
from hnas.deployment.network import StaticNetwork
from hnas.deployment.options import NetworkOptions
from hnas.export import backends
from hnas.export.bundle.bundle import read_bundle
from tests.conftest import need
from tests.export import onnx_files

IMAGES = np.random.default_rng(0).standard_normal((LEAST, 8)).astype(np.float32)
CLASSES = np.arange(LEAST) % 3


@pytest.mark.parametrize(
    ("value", "count", "left", "found"),
    [
        ({"x": IMAGES, "labels": CLASSES}, 1, {"x": IMAGES}, CLASSES),
        ({"x": IMAGES, "labels": CLASSES[:, None].astype(np.uint8)}, 1, {"x": IMAGES}, CLASSES),
        ((IMAGES, CLASSES), 1, IMAGES, CLASSES),
        ([IMAGES, torch.from_numpy(CLASSES)], 1, IMAGES, CLASSES),
        ((IMAGES[:1], 2), 1, IMAGES[:1], [2]),
        ((IMAGES, CLASSES), 2, (IMAGES, CLASSES), None),  # the second input of the network
        ((IMAGES, CLASSES.astype(np.float32)), 1, (IMAGES, CLASSES.astype(np.float32)), None),  # of another task
        (IMAGES, 1, IMAGES, None),
    ],
)
def test_labels_are_split_off(value: Any, count: int, left: Any, found: Any) -> None:
    got, labels = split_labels(value, ["x"], count)
    np.testing.assert_equal(got, left)
    assert (labels is None) if found is None else labels is not None and labels.tolist() == list(found)


def test_an_input_that_is_called_labels_is_an_input() -> None:
    assert split_labels({"labels": CLASSES}, ["labels"], 1)[1] is None


def test_a_file_gives_samples_and_their_labels(tmp_path: Path) -> None:
    example = (IMAGES[:1],)
    np.savez(tmp_path / "named.npz", labels=CLASSES, anything=IMAGES)
    images, classes = torch.from_numpy(IMAGES), torch.from_numpy(CLASSES)
    torch.save([*zip(images[:100].split(50), classes[:100].split(50), strict=True)], tmp_path / "loader.pt")
    np.savez(tmp_path / "short.npz", IMAGES, CLASSES[1:])
    np.savez(tmp_path / "soft.npz", x=IMAGES, labels=IMAGES)
    for name, many in (("named.npz", LEAST), ("loader.pt", 100)):
        samples, labels = read_labelled(tmp_path / name, example, ["x"])
        assert labels is not None
        np.testing.assert_array_equal(np.concatenate([value for (value,) in samples]), IMAGES[:many])
        assert labels.tolist() == CLASSES[:many].tolist()
    with pytest.raises(ValueError, match="199 labels for 200 calls of the network"):
        read_labelled(tmp_path / "short.npz", example, ["x"])
    with pytest.raises(ValueError, match=r"labels is float32\[200, 8\], expected a whole number for each sample"):
        read_labelled(tmp_path / "soft.npz", example, ["x"])


def network(classes: int = 3, *after: nn.Module) -> StaticNetwork:
    torch.manual_seed(0)
    return StaticNetwork("net", "key", nn.Sequential(nn.Linear(8, classes), *after), (IMAGES[:1],), list)


def test_samples_that_decide_are_not_calibrated_on_and_are_not_reported() -> None:
    samples = [(row[None],) for row in IMAGES]
    found = judged_by(network(), samples, CLASSES)
    assert found.calibration is not None
    assert found.labelled is not None
    parts = (found.calibration, found.labelled.search, found.labelled.test)
    assert [len(part) for part in parts] == [50, 100, 50]
    seen = [float(value[0, 0]) for part in parts for (value,) in part]
    assert sorted(seen) == sorted(map(float, IMAGES[:, 0]))
    assert isinstance(found.module, nn.Module)
    places = {float(row[0]): place for place, row in enumerate(IMAGES)}
    rows = [places[float(value[0, 0])] for (value,) in found.labelled.search]
    with torch.no_grad():
        right = found.module(torch.from_numpy(IMAGES[rows])).argmax(1).numpy() == CLASSES[rows]
    assert found.accuracy["search"] == right.mean()
    odd = np.mean([place % 2 for place in rows])  # classes that alternate are in all parts
    assert 0.3 < odd < 0.7
    assert found.record.tested == 50


@pytest.mark.parametrize(
    ("net", "labels", "said"),
    [
        (network(), CLASSES[:20], "labels for 20 samples; the accuracy guard of one point needs 200 or more"),
        (network(2), CLASSES, "labels are 0 to 2, and the network has 2 classes"),
        (network(4, nn.Unflatten(1, (2, 2))), CLASSES, r"labels need class scores \[1, classes\]; .* is \[1, 2, 2\]"),
    ],
)
def test_labels_that_cannot_decide_are_refused(net: StaticNetwork, labels: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        judged_by(net, [(row[None],) for row in IMAGES[: len(labels)]], labels)


def test_the_command_that_repeats_a_deployment_says_that_it_is_a_classifier() -> None:
    options = NetworkOptions("nets:one", "openvino-cpu", classifier=True)
    assert options.command() == "hnas-deploy export --model nets:one --target openvino-cpu --classifier"


@pytest.fixture
def two_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Save net.onnx, whose two classes have nearly the same scores. Return its scores for `IMAGES`."""
    pytest.importorskip("onnx")
    need("onnxruntime", backends.load("onnxruntime").missing())
    import onnx
    from onnx import helper

    rng = np.random.default_rng(1)
    one, step = rng.standard_normal(8), rng.standard_normal(8)
    table = np.stack([one, one + 1e-3 * step], 1).astype(np.float32)
    weights = [onnx.numpy_helper.from_array(table, "w")]
    made = onnx_files.model([helper.make_node("Gemm", ["x", "w"], ["y"])], {"x": [1, 8]}, {"y": [1, 2]}, weights)
    onnx_files.save(made, tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(flow, "PROCESSES", 1)
    monkeypatch.setattr(flow, "BLOCKS", 2)
    monkeypatch.setattr(mixing, "explain_slowdown", lambda *_: None)  # which profiles two artifacts
    return IMAGES @ table


def test_the_accuracy_on_labels_decides(two_classes: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    """int8 verifies here and changes many classes. Where the changed classes are the labels, it is refused."""
    np.savez("real.npz", x=IMAGES, labels=two_classes.argmax(1))
    command = ("export", "net.onnx", "--target", "onnxruntime-cpu", "--calibration", "real.npz", "--out", "made")
    assert cli.deploy_main([*command, "--json"]) == 0
    whole, narrow = json.loads(capsys.readouterr().out)["rows"]
    assert (whole["precision"], whole["verdict"]) == ("fp32", "kept")
    assert (whole["accuracy_fp32"], whole["accuracy"]) == (1.0, 1.0)
    assert narrow["grade"] != "broken"
    assert "points on the search images (guard 1)" in narrow["verdict"]
    manifest = read_bundle(Path("made/bundle")).manifest
    assert manifest.accuracy is not None
    assert (manifest.accuracy.n, manifest.accuracy.split, manifest.accuracy.artifact) == (50, "test", 1.0)
    assert manifest.verification.n == 100
