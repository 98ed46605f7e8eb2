"""Test that TensorRT-RTX parses and builds the typed files of real networks at the precision that they state.

No GPU is needed, and nothing is executed by TensorRT: the files are compared with the modules in ONNX Runtime. Each
network takes half a minute, so a few stand for all; `hnas.benchmarks.peers.typed` records all, before a release.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hnas import hw_profiles
from hnas.export.backends.artifacts import make_artifact
from hnas.export.backends.tensorrt import rtx
from hnas.export.device.artifact import Artifact
from hnas.export.graph.program import capture
from hnas.export.proof.verification import LIMITS

if TYPE_CHECKING:
    from hnas.benchmarks.peers.nets.parts import PeerNet

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
peers = pytest.importorskip("hnas.benchmarks.peers.nets")
typed = pytest.importorskip("hnas.benchmarks.peers.typed")

installed = pytest.mark.skipif(rtx.missing() is not None, reason=f"{rtx.missing()}")
FEW = ("mobilenetv2", "encoder", "subnet_smallest", "subnet_largest")


@pytest.fixture(scope="module", params=FEW)
def net(request: pytest.FixtureRequest) -> PeerNet:
    return peers.load(request.param)


@pytest.fixture(scope="module", params=["fp16", "int8"])
def made(net: PeerNet, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return typed.make_typed(net, request.param, tmp_path_factory.mktemp("typed"))


@installed
@pytest.mark.slow
def test_a_network_is_built_typed_at_its_stated_precision(made: Artifact) -> None:
    verdict = rtx.check_with_rtx(made.model)
    assert verdict.passed, verdict.line()
    assert list(verdict.built) == list(rtx.TARGETS)
    assert typed.layers_above(made, verdict) == []
    types = made.notes["types"]
    assert {verdict.precisions[layer] for layer in types.get("int8", [])} <= {"i8"}
    assert bool(types.get("int8")) == (made.precision == "int8")


@pytest.mark.slow
@pytest.mark.parametrize("made", ["fp16"], indirect=True)
def test_the_typed_file_computes_what_the_module_does(net: PeerNet, made: Artifact) -> None:
    found = typed.compare_with_module(net, made)
    assert min(found.sqnr_db, made.notes["types"]["sqnr_db"]) >= LIMITS["fp16"].sqnr_db, found.line()


@installed
@pytest.mark.slow
def test_a_layer_above_its_stated_precision_is_seen(tmp_path: Path) -> None:
    """Plant what the test above must catch: quantisers in fp32 leave the other layers in fp32."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GELU(), torch.nn.Conv2d(8, 8, 3)).eval()
    program = capture(net, torch.randn(1, 3, 16, 16))
    samples = [(torch.randn(1, 3, 16, 16).numpy(),)]
    made = make_artifact(
        "tensorrt", program, tmp_path, precision="int8", device=hw_profiles.load("jetson"), calibration=samples
    )
    as_stated = rtx.check_with_rtx(made.model, ("86",))
    plain = rtx.check_with_rtx(made.path / "model-trt8.onnx", ("86",))
    assert as_stated.passed
    assert plain.passed
    assert "f32" not in as_stated.precisions.values()
    assert "f32" in plain.precisions.values()
    assert typed.layers_above(made, as_stated) == []
    assert typed.layers_above(made, plain) != []
