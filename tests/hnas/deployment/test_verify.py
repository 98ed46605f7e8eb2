"""`hnas-deploy verify`: the files of a bundle against eager torch in new processes, and the reduction of a failure."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hnas import cli, export
from hnas.deployment import verify
from hnas.deployment.pricing import held_out_samples
from hnas.deployment.source import SupernetSource, open_source
from hnas.export import backends
from hnas.export.bundle.bundle import read_bundle, write_bundle
from hnas.export.bundle.manifest import Manifest, SpaceRecord
from hnas.export.device.artifact import Artifact
from hnas.export.onnx import file as onnx_file
from hnas.study import Study
from tests.benchmarks import bundles
from tests.conftest import need
from tests.export import faults

NET = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(288, 4))

def other():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))

def smaller():
    return nn.Linear(8, 4), torch.zeros(1, 8)
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`hnas-deploy verify`: (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(verify, "COUNT", 60)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.deploy_main(["verify", *map(str, arguments)])
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            sys.modules.pop("ownnet", None)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def manifest(artifact: Artifact, **changed: Any) -> Manifest:
    return replace(bundles.manifest(artifact, 0.5, "0" * 64), precision=artifact.precision, **changed)


@pytest.fixture(scope="module")
def source() -> SupernetSource:
    return open_source(None, None)


@pytest.fixture(scope="module")
def searched(source: SupernetSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the shipped supernet's smallest subnet."""
    need("onnxruntime", backends.load("onnxruntime").missing())
    study, space = Study(source.supernet, source.task), source.supernet.space
    net = study.supernet.extract(space.smallest, study.calibrate(space.smallest))
    root = tmp_path_factory.mktemp("searched")
    inputs = held_out_samples(study, "search", space.example(space.smallest), 1)[0]
    artifact = export.compile(net, inputs, device="onnxruntime-cpu", path=root / "artifact")
    found = space.to_json()
    stated = SpaceRecord(found["name"], found["arguments"], source.digest)
    made = manifest(artifact, arch=space.smallest.to_json(), space=stated, input=None)
    return write_bundle(root / "bundle", made, artifact=artifact).path


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of the network `ownnet:net`, whose module lies in the current directory."""
    need("onnxruntime", backends.load("onnxruntime").missing())
    (tmp_path / "ownnet.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(288, 4))
    artifact = export.compile(net, torch.zeros(1, 3, 8, 8), device="onnxruntime-cpu", path=tmp_path / "artifact")
    made = manifest(artifact, arch=None, space=None, input=None, reproduce="hnas-deploy export --model ownnet:net")
    return write_bundle(tmp_path / "bundle", made, artifact=artifact).path


def spoilt(bundle: Path, source: Path, target: Path) -> Path:
    """The bundle with the network of another one in its file."""
    artifact = Artifact.read(source)
    return write_bundle(target, replace(read_bundle(bundle).manifest, files={}, sizes={}), artifact=artifact).path


def test_a_bundle_of_a_search_holds_against_the_subnet(searched: Path, run: Run) -> None:
    code, out, err = run(searched, "--json")
    assert code == 0, err
    found = json.loads(out)
    (row,) = found["rows"]
    assert (found["passed"], row["file"], row["backend"], row["n"]) == (True, "artifact", "onnxruntime", 60)
    assert row["sqnr_db"] >= row["limits"]["sqnr_db"] == 90
    assert row["agreement"] is None, "the accuracy on labelled images decides, not the agreement"
    code, out, _ = run(searched)
    assert (code, out.count("\n")) == (0, 1)
    assert "artifact (onnxruntime, fp32): fp32 holds on 60 samples" in out


def test_other_weights_than_the_bundle_s_are_refused(searched: Path, tmp_path: Path, run: Run) -> None:
    bundle = read_bundle(searched)
    assert bundle.manifest.space is not None
    other = replace(bundle.manifest, files={}, sizes={}, space=replace(bundle.manifest.space, supernet="0" * 64))
    path = write_bundle(tmp_path / "other", other, artifact=bundle.artifact()).path
    code, _, err = run(path)
    assert (code, err.count("\n")) == (2, 1)
    assert "the shipped supernet has other weights than those that the bundle was made from; give" in err
    assert "--supernet DIR" in err
    silent = replace(other, space=replace(bundle.manifest.space, supernet=""))  # of an older hnas
    assert run(write_bundle(tmp_path / "silent", silent, artifact=bundle.artifact()).path)[0] == 0


def test_a_network_of_one_s_own_needs_its_name(own: Path, run: Run, tmp_path: Path) -> None:
    code, _, err = run(own)
    assert (code, err.count("\n")) == (2, 1)
    assert "name it with --model M:C; this one was made by: hnas-deploy export --model ownnet:net" in err
    code, out, err = run(own, "--model", "ownnet:net")
    assert (code, err) == (0, "")
    assert "fp32 holds on 32 samples" in out
    np.save(tmp_path / "real.npy", np.random.default_rng(0).standard_normal((70, 3, 8, 8)).astype(np.float32))
    code, out, err = run(own, "--model", "ownnet:net", "--calibration", "real.npy")
    assert (code, err) == (0, "")
    assert "fp32 holds on 60 samples" in out
    code, _, err = run(own, "--model", "ownnet:smaller")
    assert (code, err.count("\n")) == (2, 1)


def test_another_network_fails_and_the_file_is_blamed(own: Path, run: Run) -> None:
    code, out, _ = run(own, "--model", "ownnet:other")
    assert code == 1
    assert "fp32 fails on 32 samples" in out
    assert "--reduce finds the smallest part that fails" in out
    code, out, _ = run(own, "--model", "ownnet:other", "--reduce")
    assert code == 1
    assert "compiled anew here it holds" in out
    assert "the file is at fault, made with onnxruntime" in out


def test_a_faulty_converter_is_reduced_to_the_operator(
    own: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = onnx_file.write_program
    monkeypatch.setattr(onnx_file, "write_program", write)
    faults.install()
    faulty = onnx_file.write_program
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(288, 4))
    torch.manual_seed(0)
    for part in (net[0], net[3]):
        part.reset_parameters()
    from hnas.export.backends.artifacts import make_artifact
    from hnas.export.diagnosis.trial import Setting
    from hnas.export.graph.fusion import fuse
    from hnas.export.graph.program import capture

    (tmp_path / "wrong").mkdir()
    program = fuse(capture(net, torch.zeros(1, 3, 8, 8)))
    device = Setting("onnxruntime").profile
    make_artifact("onnxruntime", program, tmp_path / "wrong", precision="fp32", device=device)
    path = spoilt(own, tmp_path / "wrong", tmp_path / "spoilt")
    code, out, err = run(path, "--model", "ownnet:net", "--reduce", "--out", tmp_path / "small", "--json")
    assert code == 1, err
    (row,) = json.loads(out)["rows"]
    assert row["reduced"]["operators"] == 1
    assert row["reduced"]["command"] == f"hnas-deploy verify {tmp_path / 'small' / 'artifact'}"
    assert run(tmp_path / "small" / "artifact")[0] == 1
    assert onnx_file.write_program is faulty
    monkeypatch.setattr(onnx_file, "write_program", write)
    assert run(tmp_path / "small" / "artifact")[0] == 0


def test_what_is_no_bundle_is_one_line(tmp_path: Path, run: Run) -> None:
    for path, reason in ((tmp_path / "nowhere", "no bundle at"), (tmp_path, "has no manifest.json")):
        code, _, err = run(path)
        assert (code, err.count("\n")) == (2, 1)
        assert reason in err
