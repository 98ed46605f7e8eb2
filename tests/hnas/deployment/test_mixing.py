"""int8 that is slow or inaccurate: its slow layers, when blocks in float are tried, real artifacts with such blocks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hnas
from hnas import export
from hnas.deployment import build, flow, mixing
from hnas.deployment.build import Built, Refused, Run, build_each, build_mixed, build_precision, verify_artifact
from hnas.deployment.flow import Proof
from hnas.deployment.judge import JudgedArtifact
from hnas.deployment.network import HeldOutSamples, StaticNetwork
from hnas.deployment.options import SearchOptions, silent
from hnas.deployment.plan import Plan, resolve
from hnas.export import backends
from hnas.export.bundle.bundle import read_bundle
from hnas.export.bundle.card import model_card
from hnas.export.bundle.manifest import Mixed
from hnas.export.compiling.compiler import Compiler
from hnas.export.device.errors import ExportError, Unavailable, Unfaithful
from hnas.export.proof.inspection import Inspection, Layer
from hnas.export.proof.slowdown import Slowdown, SlowerLayer
from hnas.journal import Journal
from tests.conftest import need
from tests.hnas.deployment.test_judge import built, compared

# --- slow layers ------------------------------------------------------------------------------------------------------


def plan(precision: str = "auto", target: str = "onnxruntime-cpu") -> Plan:
    need("onnxruntime", backends.load("onnxruntime").missing())
    return resolve(SearchOptions(target, precision=precision))


def rows(**ratios: float) -> list[JudgedArtifact]:
    """A row for each precision with its speed; int8 first loses nothing."""
    return [JudgedArtifact(built(name, 0.9), compared(ratio), "", True) for name, ratio in ratios.items()]


def layers(precision: str, *times: float) -> Inspection:
    kernels = tuple(Layer(f"conv{i}", "Conv", "kernel", "", time) for i, time in enumerate(times))
    return Inspection("reference", precision, 1, 10, kernels)


def test_nothing_is_profiled_where_int8_is_faster_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "layers", lambda _: pytest.fail("int8 is not slower"))
    assert mixing.explain_slowdown(plan(), rows(fp32=1.0, int8=1.5), 1) is None
    assert mixing.explain_slowdown(plan(), rows(fp32=1.0, int8=1.5), 0) is None  # refused for its accuracy
    assert mixing.explain_slowdown(plan(), rows(fp32=1.0, bf16=2.0), 1) is None
    assert mixing.explain_slowdown(plan(), rows(fp32=1.0, int8=0.9), None) is None


def test_int8_that_is_slower_than_what_is_kept_has_its_layers_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {"fp32": layers("fp32", 10.0, 10.0), "bf16": layers("bf16", 5.0, 6.0), "int8": layers("int8", 3.0, 20.0)}
    monkeypatch.setattr(export, "layers", lambda artifact: seen[artifact.precision])
    found = mixing.explain_slowdown(plan(), rows(fp32=1.0, int8=0.8), 0)
    assert found is not None
    assert (found.against, found.ratio, found.attainable) == ("fp32", pytest.approx(0.8), pytest.approx(13 / 20))
    assert [(each.name, each.lost_us) for each in found.layers] == [("conv1", 10.0)]
    other = mixing.explain_slowdown(plan(), rows(fp32=1.0, bf16=2.0, int8=1.5), 1)
    assert other is not None
    assert other.headline() == "int8 is slower here than bf16 (x0.75)"


def test_a_runtime_that_tells_no_layers_leaves_the_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: Any) -> Inspection:
        raise Unavailable("no profiler")

    monkeypatch.setattr(export, "layers", silent)
    assert mixing.explain_slowdown(plan(), rows(fp32=1.0, int8=0.5), 0) == Slowdown("fp32", 0.5)


def test_the_layers_of_real_artifacts_are_named(tmp_path: Path) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    net, x = Planted(factor=1.0), torch.randn(1, 3, 16, 16)
    common: Any = {"device": "onnxruntime-cpu", "threads": 1}
    made = [
        export.compile(net, x, precision="fp32", path=tmp_path / "fp32", **common),
        export.compile(net, x, precision="int8", path=tmp_path / "int8", calibration=[(x,)], **common),
    ]
    slow = [JudgedArtifact(Built(made[0], built("fp32").check, {}), compared(1.0), "kept", True),
            JudgedArtifact(Built(made[1], built("int8").check, {}), compared(0.5), "", True)]  # fmt: skip
    found = mixing.explain_slowdown(plan(), slow, 0)
    assert found is not None
    assert found.attainable is not None
    assert 0 < found.attainable <= 1
    assert found.line().startswith("int8 is slower here than fp32 (x0.50)")
    assert all(each.lost_us > 0 for each in found.layers)


# --- when blocks in float are tried -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_case_1_another_device_or_no_int8(precision: str) -> None:
    failed = [Refused("int8", "no", unfaithful=True)]
    assert mixing.reason_to_mix(plan(precision, "raspberry-pi-5"), [], failed, None) is None
    if precision == "fp32":
        assert mixing.reason_to_mix(plan(precision), [], failed, None) is None


def test_case_2_asked_for() -> None:
    assert mixing.reason_to_mix(plan("mixed"), rows(int8=3.0), [], None) == "it was asked for"


def test_case_3_slower_only_where_it_may_pay() -> None:
    slow = Slowdown("fp32", 0.9, (), 0.7)
    assert mixing.reason_to_mix(plan(), [], [], slow) == "int8 is slower here than fp32 (x0.90)"
    for other in (replace(slow, attainable=0.97), replace(slow, attainable=None), replace(slow, against="bf16")):
        assert mixing.reason_to_mix(plan(), [], [], other) is None


def test_case_4_int8_that_fails_or_loses_too_much() -> None:
    assert mixing.reason_to_mix(plan(), rows(fp32=1.0), [Refused("int8", "?", unfaithful=True)], None) is not None
    assert mixing.reason_to_mix(plan(), rows(fp32=1.0), [Refused("int8", "the converter died")], None) is None
    assert mixing.reason_to_mix(plan(), rows(fp32=1.0, int8=2.0), [], None, floor=0.9) is None
    said = mixing.reason_to_mix(plan("int8"), rows(int8=2.0), [], None, floor=0.95)
    assert said == "int8 reaches 90.00% on the search images (at least 95.00% is asked)"


def test_an_attempt_is_an_artifact_with_blocks_in_float_or_a_line() -> None:
    def fails() -> Built:
        raise ExportError("no mixed precision is accepted")

    def gone() -> Built:
        raise Unavailable("no onnxruntime")

    assert mixing.attempt_mixed(fails) == "no mixed precision is accepted"
    assert mixing.attempt_mixed(lambda: built("int8")) == "no block in float made it faster"
    with pytest.raises(Unavailable):
        mixing.attempt_mixed(gone)


def test_the_only_precision_may_be_unfaithful_where_something_else_is_tried() -> None:
    def make(_: str) -> Built:
        raise Unfaithful("int8 fails")

    assert build_each(("int8",), make, lambda _: None, spare=True) == ([], [Refused("int8", "int8 fails", True)])
    with pytest.raises(Unfaithful):
        build_each(("int8",), make, lambda _: None)


def test_mixed_is_for_this_machine() -> None:
    with pytest.raises(ValueError, match=r"^mixed precision is chosen by times measured on this machine, and jet"):
        resolve(SearchOptions("jetson", precision="mixed"))
    found = plan("mixed")
    assert (found.precisions, found.searched, found.mixes) == (("int8",), ("int8",), True)
    assert ("precisions", "int8, and blocks in float where that is better") in found.lines()
    assert not plan("fp32").mixes


def test_only_the_layers_that_are_slow_are_tried_for_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def build(*given: Any) -> None:
        asked.append(given[-1])
        raise ExportError("none")

    monkeypatch.setattr(flow, "build_mixed", build)
    monkeypatch.setattr(flow, "replace", lambda _, **changed: changed["mixed"])
    monkeypatch.setattr(flow.mixing, "reason_to_mix", lambda *_: "int8 is slower")
    layers = tuple(SlowerLayer(f"node_conv2d_{place}", "Conv", 1.0, 2.0) for place in range(7))
    proof: Any = SimpleNamespace(
        network=SimpleNamespace(mixable=True, accuracy={}, key="planted"),
        rows=[],
        refused=[],
        slowdown=Slowdown("fp32", 0.5, layers),
        make=lambda: None,
    )
    run: Any = SimpleNamespace(plan=None, notify=silent, journal=SimpleNamespace(call=lambda _, make: make()))
    assert flow._with_mixed(run, proof, proof).outcome == "none"
    assert asked == [[layer.name for layer in layers]]


# --- real artifacts ---------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.Hardswish())
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x))


class Planted(nn.Module):
    """Residual blocks. In one, a channel behind a hard swish is a thousand times the others, which no rung corrects."""

    def __init__(self, width: int = 8, factor: float = 1000.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 5)
        with torch.no_grad():
            first, second = self.blocks[1].first[0], self.blocks[1].second
            first.weight[0] *= factor
            first.bias[0] *= factor
            second.weight *= 5
            second.weight[:, 0] /= factor
            self.head.bias -= self(torch.randn(64, 3, 16, 16)).mean(0)  # every class is somebody's

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def network_of(net: nn.Module, count: int = 64) -> StaticNetwork:
    """The network with random images whose labels are its own answers."""
    split = {name: torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
             for seed, name in enumerate(("calibration", "search", "test"))}  # fmt: skip
    with torch.no_grad():
        expected = {name: net(split[name]).numpy() for name in ("search", "test")}
    calls = {name: [(x[i : i + 1].numpy(),) for i in range(count)] for name, x in split.items()}
    labels = {name: scores.argmax(1).astype(np.int64) for name, scores in expected.items()}
    return StaticNetwork(
        name="planted",
        key="planted",
        module=net,
        example=calls["search"][0],
        count_kernels=list,
        calibration=calls["calibration"],
        evidence=calls["search"][: build.EVIDENCE],
        labelled=HeldOutSamples(calls["search"], calls["test"], labels, expected),
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_blocks_in_float_hold_what_int8_alone_loses(
    backend: str, tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(backend, backends.load(backend).missing())
    monkeypatch.setattr(build, "TRIALS", 4)
    network, floor = network_of(Planted().eval()), 0.96
    run = Run(plan("int8", f"{backend}-cpu"), Journal(), compiler, tmp_path, lambda _: network.example, silent)
    monkeypatch.setattr(build, "LADDER", ())
    try:
        alone = build_precision(run, network, "int8").accuracy["search"]
    except Unfaithful:
        alone = 0.0
    assert alone < floor
    found = build_mixed(run, network, floor)
    assert found.label == "mixed"
    assert found.accuracy["search"] >= floor
    assert found.check.passed
    assert sorted(found.accuracy) == ["search", "test"]
    record = mixing.mixing_record("it loses", JudgedArtifact(found, None, "kept", True))
    assert "blocks.1.second" in record.blocks_in_float
    assert min(record.sensitivity_db, key=lambda name: record.sensitivity_db[name]) == "blocks.1.second"
    assert record.trials <= build.TRIALS
    assert found.artifact.notes["quantisation"]["blocks_in_float"] == list(record.blocks_in_float)


@pytest.mark.slow
def test_a_deployment_whose_int8_loses_too_much_keeps_blocks_in_float(
    quick: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 of this supernet is accurate, so a lower accuracy is reported for it. All artifacts are real."""
    need("onnxruntime", backends.load("onnxruntime").missing())

    def lower(run: Run, network: StaticNetwork, artifact: export.Artifact, *given: Any) -> Built:
        found, table = verify_artifact(run, network, artifact, *given), artifact.notes.get("quantisation", {})
        if artifact.precision == "fp32" or len(table.get("blocks_in_float", ())) >= 2:
            return found
        return replace(found, accuracy={name: share - 0.5 for name, share in found.accuracy.items()})

    monkeypatch.setattr(build, "verify_artifact", lower)
    monkeypatch.setattr(build, "LADDER", ("bias",))
    monkeypatch.setattr(build, "TRIALS", 6)
    options = {"target": "onnxruntime-cpu", "precision": "int8", "budget": "3evals", "out": "run"}
    options |= {"supernet": trained / "trained", "data": trained / "photos"}
    found = hnas.deploy(**options)
    assert [row.built.label for row in found.result.rows] == ["int8", "mixed"]
    assert "loses" in found.result.rows[0].verdict
    manifest = read_bundle("run/bundle").manifest
    assert (manifest.precision, "-mixed-" in manifest.name) == ("int8", True)
    assert manifest.mixed is not None
    assert manifest.mixed.why.startswith("int8 reaches ")
    assert manifest.mixed.outcome == "kept"
    assert len(manifest.mixed.blocks_in_float) >= 2
    assert set(manifest.mixed.blocks_in_float) < set(manifest.mixed.sensitivity_db)
    said = found.to_json()
    assert said["notes"][:2] == [f"verified: {manifest.verification.line()}", manifest.mixed.line()]
    assert all(note.startswith("latency of ") for note in said["notes"][2:]), said["notes"]  # noise, as it happens
    assert said["rows"][-1]["precision"] == "mixed"
    assert manifest.mixed.line() in model_card(manifest)
    for name in ("compile", "compile_mixed"):
        monkeypatch.setattr(export, name, pytest.fail)
    monkeypatch.setattr(flow, "compare_many", pytest.fail)
    again = hnas.deploy(**options, resume=True)
    assert json.dumps(again.to_json()) == json.dumps(said)


def test_what_cannot_be_kept_says_everything_that_was_tried() -> None:
    tried = JudgedArtifact(built("int8", 0.8), None, "not taken: loses 10.0 points", False)
    mixed = Mixed("int8 reaches 80.00%", "no mixed precision is accepted")
    network, refused = network_of(nn.Flatten()), (Refused("int8", "it fails"),)
    common: Any = {
        "network": network.record,
        "make": lambda: network,
        "best": None,
        "refused": refused,
        "predicted": {},
    }
    some = Proof(**common, rows=(tried,), mixed=mixed)
    assert some.objections == ["int8: loses 10.0 points", mixed.line()]
    none = Proof(network.record, lambda: network, (), None, refused, {})
    assert (none.objections, none.speed) == (["int8: it fails"], 0.0)


def test_slow_layers_are_read_from_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slowdown("fp32", 0.9, (SlowerLayer("norm", "MVN", 1.0, 9.0, ("2 Convert",)),), 0.8)
    run: Any = SimpleNamespace(plan=None, journal=Journal())
    network = network_of(nn.Flatten())
    proof = Proof(network.record, lambda: network, (), None, (), {})
    monkeypatch.setattr(mixing, "explain_slowdown", lambda *_: slow)
    assert flow._with_slowdown(run, proof).slowdown == slow
    monkeypatch.setattr(mixing, "explain_slowdown", lambda *_: pytest.fail("it is in the journal"))
    assert flow._with_slowdown(run, proof).slowdown == slow


def test_a_manifest_says_why_and_what() -> None:
    kept = Mixed("int8 alone does not verify", "kept", ("stem", "head"), {"stem": 12.0, "body": 30.0, "head": 11.0}, 4)
    assert kept.line() == (
        "mixed precision was tried because int8 alone does not verify: "
        "2 of 3 blocks in float (stem, head), after 4 trials; kept"
    )
    refused = Mixed("it was asked for", "no block in float made it faster")
    assert refused.line() == "mixed precision was tried because it was asked for: no block in float made it faster"
