"""The comparison with the tools of each runtime: it runs at its smallest, continues, and judges by intervals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hnas.benchmarks.peers import command, limits, making, timing
from hnas.benchmarks.peers import nets as export_nets
from hnas.benchmarks.peers.cases import OURS, Case, Folder, cases, makers
from hnas.benchmarks.peers.nets import parts
from hnas.benchmarks.peers.tools import PEERS, Peer
from hnas.benchmarks.peers.verdicts import best, is_slower, judge_promises
from hnas.export.backends.openvino import convert as openvino
from tests.conftest import need

SPENT = {"seconds": 60.0, "peak_mb": 2000, "parameters": 5_400_000, "worker_ms": {"tflite": 3.0}}


def result(ours_db: float = 40.0, **changed: Any) -> dict[str, Any]:
    """Return a measured case: ours takes 0.8 of the peer's time and is 10 dB more exact."""
    peer = {"maker": "peer", "sqnr_db": 30.0, "ratio": 0.8, "low": 0.75, "high": 0.85, **changed}
    record = {"net": "n", "backend": "openvino", "precision": "int8", "noise": {"ratio": 1.0, "low": 0.9, "high": 1.1}}
    return record | {"rows": [{"maker": OURS, "sqnr_db": ours_db, "median_ms": 1.0}, peer]}


def outcomes(*results: dict[str, Any], spent: dict[str, Any] | None = None) -> list[str]:
    return [each.outcome for each in judge_promises(results, spent)]


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "encoder", "subnet_smallest"])
def test_a_net_is_the_same_each_time_and_takes_its_inputs(name: str) -> None:
    one, two = (export_nets.load(name) for _ in range(2))
    assert not one.module.training
    with torch.no_grad():
        outputs = [net.module(*net.examples) for net in (one, two)]
    assert torch.equal(*outputs)
    assert bool(torch.isfinite(outputs[0]).all())
    assert outputs[0].std() > 0.01
    known = {sample[0].tobytes() for sample in one.calibration}
    assert not known & {sample[0].tobytes() for sample in one.evidence}  # no image is both calibrated on and judged


def test_there_are_eight_nets_that_no_search_made_and_five_that_one_may_find() -> None:
    made = [name for name in export_nets.names() if not name.startswith("subnet")]
    assert len(made) >= 8
    assert len(export_nets.names()) - len(made) == 5
    with pytest.raises(ValueError, match="no net 'vgg'; known: resnet18, "):
        export_nets.load("vgg")


def test_norms_hold_the_moments_of_the_images() -> None:
    net = export_nets.load("tiny")
    batch = torch.from_numpy(np.concatenate([sample[0] for sample in net.calibration]))
    norm = next(part for part in net.module.modules() if isinstance(part, torch.nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        net.module(batch)
    hook.remove()
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, seen[0].mean((0, 2, 3)), atol=1e-5)


def test_images_are_of_mean_0_and_spread_1() -> None:
    found = np.stack(parts.garments("calibration", 40, 8))
    assert found.shape == (8, 1, 3, 40, 40)
    assert abs(float(found.mean())) < 1e-3
    assert float(found.std()) == pytest.approx(1.0, abs=1e-3)


def test_black_is_the_same_number_in_every_split() -> None:
    """Calibration images and judged images share one background and one normalisation."""
    known, other = (np.stack(parts.garments(split, 40, 8)) for split in ("calibration", "search"))
    assert float(other.min()) == pytest.approx(float(known.min()), abs=1e-5)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_nothing_measured_proves_nothing() -> None:
    assert set(outcomes()) == {"not seen"}


def test_faster_and_more_exact_holds() -> None:
    whole = result() | {"precision": "fp32", "rows": [{"maker": OURS, "sqnr_db": 120.0}]}
    assert set(outcomes(result(), whole, spent=SPENT)) == {"holds"}


@pytest.mark.parametrize(
    ("ratio", "low", "high", "slower"),
    [
        (0.8, 0.7, 0.9, False),  # faster
        (1.05, 0.99, 1.12, False),  # the interval contains 1
        (1.05, 1.01, 1.09, False),  # above 1, but within the noise floor
        (1.20, 1.15, 1.25, True),
    ],
)
def test_slower_is_what_lies_above_1_and_above_the_noise(ratio: float, low: float, high: float, slower: bool) -> None:
    found = result(ratio=ratio, low=low, high=high)
    assert is_slower(found) == slower
    (first, *_) = judge_promises([found], None)
    assert (first.outcome, len(first.cases)) == (("fails", 1) if slower else ("holds", 0))


def test_the_best_peer_counts() -> None:
    found = result()
    found["rows"].append({"maker": "other", "ratio": 1.3, "low": 1.2, "high": 1.4})
    found["rows"].append({"maker": "absent", "error": "not installed"})
    assert (best(found) or {})["maker"] == "other"
    assert outcomes(found)[:2] == ["fails", "fails"]


def test_less_exact_fails_and_says_by_whom() -> None:
    assert outcomes(result(ours_db=29.98))[2] == "holds"  # equal at one decimal
    found = judge_promises([result(ours_db=29.8)], None)[2]
    assert found.outcome == "fails"
    assert found.cases == ("n, openvino, int8: 29.8 dB, peer 30.0",)


def test_an_artifact_of_ours_that_could_not_be_made_is_no_faithful_one() -> None:
    broken = result() | {"precision": "fp32", "rows": [{"maker": OURS, "error": "ExportError: no"}]}
    assert judge_promises([broken], None)[3].cases == ("n, openvino, fp32: ExportError: no",)


@pytest.mark.parametrize("changed", [{"seconds": 121.0}, {"peak_mb": 3001}, {"worker_ms": {"tflite": 151.0}}])
def test_cost_beyond_its_limits_fails(changed: dict[str, Any]) -> None:
    assert outcomes(spent={**SPENT, **changed}).count("fails") == 1


# --- files and processes ----------------------------------------------------------------------------------------------


def test_memory_of_a_family_is_that_of_all_its_members() -> None:
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE) as child:
        assert {os.getpid(), child.pid} <= set(limits._family(os.getpid()))
        assert limits._pss(os.getpid()) > 2**20
        child.communicate(b"\n")
    assert limits._pss(child.pid) == 0


def test_the_memory_of_a_command_is_that_of_all_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its child takes 64 MB, and ends when these were seen, or after two minutes."""
    seen, pss = tmp_path / "seen", limits._pss

    def watch(process: int) -> int:
        found = pss(process)
        if found > 2**26:
            seen.touch()
        return found

    monkeypatch.setattr(limits, "_pss", watch)
    waits = f"for _ in range(12_000): pathlib.Path({str(seen)!r}).exists() and sys.exit(); time.sleep(0.01)"
    inner = f"import pathlib, sys, time; x = b'1' * 2**26\n{waits}"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True); print('said')"
    done, peak = limits.run_watched((sys.executable, "-c", outer), 0.01, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, "said\n")
    assert 2**26 < peak < 2**28


def test_memory_that_processes_share_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes have the same 64 MB. They end when both were read, or after two minutes."""
    ready, seen, pss = tmp_path / "ready", tmp_path / "seen", limits._pss
    reads: list[int] = []

    def watch(process: int) -> int:
        ran, found = ready.exists(), pss(process)  # read first: a process that is seen ends
        reads.extend([process] if ran else [])
        if len(set(reads)) == 2:
            seen.touch()
        return found

    monkeypatch.setattr(limits, "_pss", watch)
    code = f"""
import mmap, os, pathlib, time
shared = mmap.mmap(-1, 2**26)
shared[::4096] = b"1" * 2**14
child = os.fork()
if not child:
    assert shared[::4096].count(b"1") == 2**14
    pathlib.Path({str(ready)!r}).touch()
for _ in range(12_000):
    if pathlib.Path({str(seen)!r}).exists():
        break
    time.sleep(0.01)
child and os.waitpid(child, 0)
"""
    done, peak = limits.run_watched((sys.executable, "-c", code), 0.01)
    assert done.returncode == 0
    assert 2**26 < peak < 1.5 * 2**26


def test_a_peer_that_fails_is_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, case = Folder(tmp_path), Case("tiny", "openvino", "fp32")
    absent = Peer(("model.xml",), ("no_such_package",), lambda *_: None, lambda *_: None)
    monkeypatch.setitem(PEERS["openvino"], "absent", absent)
    making.make_apart(folder, "tiny", "openvino", "absent")
    assert folder.made(case, "absent") == {"error": "no_such_package not installed"}
    making.make_apart(folder, "tiny", "openvino", OURS, limit=0.01)
    assert folder.made(case, OURS) == {"error": "not finished in 0.01 s"}
    record = timing.measure_case(folder, case, blocks=2, processes=1)
    assert [row["error"] for row in record["rows"]][::2] == ["not finished in 0.01 s", "no_such_package not installed"]
    assert best(record) is None


@pytest.mark.parametrize(("option", "value"), [("--nets", "vgg"), ("--backends", "tvm"), ("--precisions", "fp8")])
def test_an_unknown_choice_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([option, value])
    assert ended.value.code == 2
    assert f"no '{value}'; known: " in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_end_to_end_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("openvino", openvino.missing())
    pytest.importorskip("nncf")
    arguments = ["--quick", "--json", "--out", str(tmp_path)]
    command.main(arguments)
    record = json.loads(capsys.readouterr().out)
    chosen = cases(["tiny"], ["openvino"], ["fp32", "int8"])
    assert [(each["net"], each["backend"], each["precision"]) for each in record["cases"]] == [
        (case.net, case.backend, case.precision) for case in chosen
    ]
    for each in record["cases"]:
        assert [row["maker"] for row in each["rows"]] == list(makers("openvino"))
        assert all(row["sqnr_db"] > (90 if each["precision"] == "fp32" else 10) for row in each["rows"])
        assert 0 < each["noise"]["low"] <= 1.5
        assert {"ratio", "low", "high", "median_ms", "threads"} <= each["defaults"][0].keys()
    models = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.xml")}
    assert len(models) == 4
    command.main(arguments)  # everything is finished
    assert json.loads(capsys.readouterr().out) == record
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.xml")} == models
