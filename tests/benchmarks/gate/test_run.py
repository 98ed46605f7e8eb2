"""``hnas-bench run``: verdicts, confirmation and files. Times are sizes of files (``steady``), except where slow."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from hnas.benchmarks import cli
from hnas.benchmarks.gate import macs, session
from hnas.benchmarks.gate.gates import judge_points
from hnas.benchmarks.gate.history import append_history, read_history
from hnas.benchmarks.gate.macs import sum_products
from hnas.benchmarks.gate.records import CountedAccuracy
from hnas.export.device.artifact import Artifact
from tests.benchmarks.gate.suites import FASTER, models, write

pytest.importorskip("onnxruntime")

SAME = {"name": "same", "artifact": "twin", "baseline": "heavy", "same_within": 3}

UNKNOWN = ("QAttention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "NhwcFusedConv", "MatMulBnb4", "MoE", "Mine")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("run"))


def run(capsys: Any, *words: object) -> tuple[int, str, str]:
    code = cli.main(["run", *map(str, words)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def timed_by(monkeypatch: Any, sample: Any) -> list[int]:
    """Make each pair of times that of ``sample(rng, session number)``; return the numbers of the sessions so far."""
    sessions: list[int] = []

    def compare(
        baseline: Artifact, candidates: Sequence[Artifact], inputs: Any, *, blocks: int, seed: int
    ) -> list[Any]:
        number = seed // 1000
        sessions.append(number)
        rng = np.random.default_rng(seed)
        found = []
        for each in candidates:
            level = 1.0 if each.digest == baseline.digest else sample(rng, number)
            pairs = tuple((float(np.exp(rng.normal(0, 0.002))), 1 / level) for _ in range(blocks))
            found.append(
                SimpleNamespace(
                    a=SimpleNamespace(times=(1e-3,) * blocks), b=SimpleNamespace(times=(1e-3,) * blocks), pairs=pairs
                )
            )
        return found

    monkeypatch.setattr(session, "compare_fresh", compare)
    return sessions


def test_true_claims_hold_and_every_file_is_written(
    root: Path, steady: None, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("GITHUB_SHA", "1" * 40)  # the folder is not in git; a commit from the CI system is as good
    bundled = {"name": "bundle", "artifact": "good", "at_least": 2, "max_points_less": 0, "data": "data"}
    names = ("junit.xml", "deep/summary.md", "report.html", "runs.jsonl")
    flags = [
        word
        for flag, name in zip(("--junit", "--markdown", "--report", "--history"), names, strict=True)
        for word in (flag, tmp_path / name)
    ]
    code, out, err = run(capsys, write(root, FASTER, SAME, bundled), *flags)
    assert (code, err) == (0, "")
    assert re.search(r"^calibration +a baseline against itself 1\.000x .*; 1 is inside$", out, re.MULTILINE)
    assert re.search(r"^faster +holds: faster, p50 \d", out, re.MULTILINE)
    assert re.search(r"^same +holds: same within 3 %, p50 1\.000x", out, re.MULTILINE)
    assert re.search(r"^  points +holds: \d+ of 120 images right, the baseline \d+", out, re.MULTILINE)
    assert re.search(r"^verdict +holds \(exit code 0, ", out, re.MULTILINE)
    unit, summary, page, history = (tmp_path / name for name in names)
    cases = [case.get("classname") for case in ElementTree.parse(unit).getroot().iter("testcase")]
    assert cases == ["hnas-bench.faster", "hnas-bench.same", *["hnas-bench.bundle"] * 2]
    assert summary.read_text().startswith("### hnas-bench: holds\n")
    assert "| faster | **holds** | faster, p50 " in summary.read_text()
    text = page.read_text()
    assert "<h2>same</h2>" in text
    groups = [set(re.findall(rf'data-{kind}="(claim \d, process \d)"', text)) for kind in ("filter", "group")]
    assert groups[0] == groups[1]
    assert {group[:7] for group in groups[0]} == {"claim 0", "claim 1", "claim 2"}
    assert len(history.read_text().splitlines()) == 3


def test_a_false_claim_fails_after_one_confirmation(root: Path, capsys: Any, monkeypatch: Any) -> None:
    sessions = timed_by(monkeypatch, lambda rng, number: 1.2)
    code, out, _ = run(capsys, write(root, FASTER), "--json")
    (claim,) = json.loads(out)["claims"]
    assert (code, claim["outcome"], claim["word"], claim["looks"]) == (1, "fails", "faster", 1)
    assert "is below 1.50x; confirmed in fresh processes: 1.2" in claim["parts"][0]["line"]
    assert set(sessions) == {0, 1, 2}  # calibration, look, confirmation


def test_a_confirmation_has_as_many_processes_as_all_looks(root: Path, capsys: Any, monkeypatch: Any) -> None:
    timed_by(monkeypatch, lambda rng, number: 1.3 * np.exp(rng.normal(0, 0.02)))
    code, out, _ = run(capsys, write(root, FASTER), "--json")
    (claim,) = json.loads(out)["claims"]
    assert (code, claim["outcome"]) == (1, "fails")
    assert claim["looks"] > 1
    assert len(claim["confirmation"]["rounds"]) == len(claim["speed"]["rounds"])


def test_a_failure_that_is_not_confirmed_is_inconclusive(root: Path, capsys: Any, monkeypatch: Any) -> None:
    timed_by(monkeypatch, lambda rng, number: 1.2 if number == 1 else 2.0)
    code, out, _ = run(capsys, write(root, FASTER))
    assert code == 4
    assert "not confirmed in fresh processes" in out


def test_a_doubtful_claim_is_extended_and_then_inconclusive(root: Path, capsys: Any, monkeypatch: Any) -> None:
    sessions = timed_by(monkeypatch, lambda rng, number: 1.5 * np.exp(rng.normal(0, 0.2)))
    code, out, _ = run(capsys, write(root, FASTER), "--json")
    (claim,) = json.loads(out)["claims"]
    assert (code, claim["outcome"], claim["looks"]) == (4, "inconclusive", 3)
    assert len(claim["speed"]["rounds"]) == 6
    assert claim["speed"]["confidence"] == pytest.approx(1 - 0.05 / 3)
    assert set(sessions) == {0, 1, 2, 3}


def test_extension_decides_what_one_look_does_not(root: Path, capsys: Any, monkeypatch: Any) -> None:
    timed_by(monkeypatch, lambda rng, number: 1.65 * np.exp(rng.normal(0, 0.02)))
    code, out, _ = run(capsys, write(root, FASTER), "--json")
    (claim,) = json.loads(out)["claims"]
    assert (code, claim["outcome"]) == (0, "holds")
    assert claim["looks"] > 1


@pytest.mark.parametrize(("level", "code", "word"), [(1.2, 1, "faster"), (0.8, 1, "slower"), (1.03, 4, "inconclusive")])
def test_what_is_not_the_same(root: Path, capsys: Any, monkeypatch: Any, level: float, code: int, word: str) -> None:
    timed_by(monkeypatch, lambda rng, number: level)
    found, out, _ = run(capsys, write(root, SAME), "--json")
    assert (found, json.loads(out)["claims"][0]["word"]) == (code, word)


def test_a_calibration_without_1_counts_as_noise(root: Path, capsys: Any, monkeypatch: Any) -> None:
    def compare(baseline: Any, candidates: Sequence[Any], inputs: Any, *, blocks: int, seed: int) -> list[Any]:
        levels = [2.0] if len(candidates) == 1 else [1.0, 1.8]
        times = SimpleNamespace(times=(1e-3,) * blocks)
        return [SimpleNamespace(a=times, b=times, pairs=((level, 1.0),) * blocks) for level in levels]

    monkeypatch.setattr(session, "compare_fresh", compare)
    code, out, _ = run(capsys, write(root, FASTER))
    assert code == 4
    assert "1 is outside, so its far end is the noise of every claim" in out
    assert "too near to 1.50x for this machine's noise" in out


def test_hard_gates(root: Path, capsys: Any) -> None:
    network = {"artifact": "light", "max_size": "10KB", "max_macs": 141_160, "precisions": ("fp32",), "max_qdq": 0}
    broken = {"artifact": "light", "max_size": "1KB", "max_macs": 141_159, "precisions": ("int8",), "max_kernels": 1}
    other = {"artifact": "good", "target": "pi5", "precision": "int8", "max_reformats": 0}
    code, out, _ = run(capsys, write(root, {"name": "right", **network}), "--json")
    (claim,) = json.loads(out)["claims"]
    assert (code, claim["outcome"]) == (0, "holds")
    code, out, _ = run(capsys, write(root, {"name": "wrong", **broken}, {"name": "other", **other}), "--json")
    found = {part["name"]: part["outcome"] for claim in json.loads(out)["claims"] for part in claim["parts"]}
    names = ("size", "macs", "kernels", "precisions", "target", "precision", "reformats")
    assert (code, found) == (1, dict.fromkeys(names, "fails"))


def test_multiply_accumulates() -> None:
    def node(op: str, inputs: list[list[int]], output: list[int]) -> dict[str, object]:
        return {"op": op, "inputs": inputs, "outputs": [output]}

    assert sum_products([node("Conv", [[1, 8, 4, 4], [16, 2, 3, 3], [16]], [1, 16, 4, 4])]) == 256 * 18  # 4 groups
    assert sum_products([node("QLinearConv", [[1], [], [], [8, 3, 1, 1]], [1, 8, 2, 2])]) == 32 * 3
    assert sum_products([node("MatMul", [[2, 3, 5], [5, 7]], [2, 3, 7]), node("Relu", [[9]], [9])]) == 42 * 5
    assert sum_products([node("Gemm", [[4, 6], [9, 6]], [4, 9])]) == 4 * 6 * 9
    assert sum_products([node("ConvTranspose", [[1, 8, 4, 4], [8, 3, 2, 2]], [1, 3, 8, 8])]) == 128 * 12
    assert sum_products([node("LSTM", [[7, 2, 5], [1, 12, 5], [1, 12, 3]], [7, 1, 2, 3])]) == 14 * (60 + 36)
    for op, shapes, words in (
        ("Einsum", [[1]], "how to count Einsum"),
        *((op, [[1]], f"how to count {op}") for op in UNKNOWN),
        ("Gemm", [[4], [9]], "the shapes of Gemm"),
        ("Conv", [[4]], "the shapes of Conv"),
    ):
        with pytest.raises(ValueError, match=words):
            sum_products([node(op, shapes, [1])])


def test_what_cannot_be_counted_is_inconclusive(root: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(macs, "_FREE", macs._FREE.replace(" GlobalAveragePool ", " "))
    code, out, _ = run(capsys, write(root, {"name": "a", "artifact": "light", "max_macs": 1e9}))
    assert code == 4
    assert re.search(
        r"^  macs +inconclusive: max_macs does not know how to count GlobalAveragePool$", out, re.MULTILINE
    )


def test_points() -> None:
    def seen(hits: int, n: int = 200) -> CountedAccuracy:
        return CountedAccuracy(hits / n, n, 200)

    assert judge_points(0.5, seen(179), seen(180)).outcome == "holds"
    assert judge_points(0.5, seen(178), seen(180)).outcome == "fails"
    assert judge_points(0.0, seen(181), seen(180)).outcome == "holds"
    assert judge_points(9.0, seen(90, 100), seen(180)).outcome == "inconclusive"
    assert judge_points(9.0, seen(90), CountedAccuracy(None, 0, 200, "no images")).line == "not counted: no images"


def test_a_runtime_that_cannot_open_a_file_fails_its_claim_alone(root: Path, steady: None, capsys: Any) -> None:
    (root / "broken.onnx").write_bytes(b"no network")
    odd = {"name": "odd", "artifact": "broken.onnx", "input_shapes": ("1x4",), "max_qdq": 0}
    code, out, err = run(capsys, write(root, FASTER, odd))
    assert (code, err) == (1, "")
    assert re.search(r"^  run +fails: .*broken\.onnx", out, re.MULTILINE)
    assert re.search(r"^faster +holds", out, re.MULTILINE)


def test_an_earlier_run_is_reached_less_a_tenth(root: Path, capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    suite, history = write(root, FASTER), tmp_path / "runs.jsonl"
    timed_by(monkeypatch, lambda rng, number: 3.0)
    assert run(capsys, suite, "--history", history)[0] == 0
    assert run(capsys, suite, "--baseline", history)[0] == 0
    timed_by(monkeypatch, lambda rng, number: 2.4)  # still above at_least = 1.5
    code, out, _ = run(capsys, suite, "--baseline", history)
    assert code == 1
    assert re.search(r"^  record +fails: 2\.\d+x .* is below 2\.[67]\dx; confirmed", out, re.MULTILINE)
    (good,) = read_history(history)  # what is not comparable or not timed hides no run that is
    untimed = replace(good, ratio=None, low=None, high=None)
    low = replace(good, ratio=1.0, low=1.0, high=1.0)
    others = [replace(low, **{key: "other"}) for key in ("claim", "measure", "processor", "baseline")]
    append_history(history, [*others, untimed])
    assert run(capsys, suite, "--baseline", history)[0] == 1
    new = {**FASTER, "name": "new"}
    code, out, _ = run(capsys, write(root, new), "--baseline", history)
    assert code == 0
    assert "record     not checked: no earlier run of this claim" in out


@pytest.mark.parametrize(("width", "looks"), [(None, 1), (60, 1), (2, 3)])
def test_an_interval_is_made_as_narrow_as_asked(
    root: Path, capsys: Any, monkeypatch: Any, width: float | None, looks: int
) -> None:
    timed_by(monkeypatch, lambda rng, number: 3.0 * np.exp(rng.normal(0, 0.03)))
    header = 'time = "240s"\nprocesses = 4\n' + (f"width = {width}\n" if width else "")
    code, out, _ = run(capsys, write(root, FASTER, header=header))
    said = re.search(
        r"^faster +holds: faster, .*, (\d) looks?(?:; the interval is ([\d.]+) % wide, 2 % was asked)?$",
        out,
        re.MULTILINE,
    )
    assert code == 0
    assert said, out
    assert int(said[1]) == looks
    assert (said[2] is not None) == (looks == 3)


@pytest.mark.slow
def test_every_measure_by_the_clock(root: Path, capsys: Any) -> None:
    """Check the record, not the durations: heavy takes many times as long, so every latency agrees on the order."""
    names = ("p50", "p90", "p99", "throughput", "cold_start", "first_inference", "peak_memory", "end_to_end")
    claims = [{"name": each, "artifact": "good", "at_least": 0.001, "measure": each} for each in names]
    code, out, err = run(capsys, write(root, *claims, header='time = "4s"\nprocesses = 1\n'), "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    found = {claim["name"]: claim["speed"] for claim in report["claims"]}
    assert all(speed["low"] <= speed["value"] <= speed["high"] for speed in found.values())
    assert all(found[name]["value"] > 1.0 for name in ("p50", "throughput", "end_to_end"))
    ends = {claim["name"]: claim["ends"] for claim in report["claims"]}
    assert all(not parts for name, parts in ends.items() if name != "end_to_end")
    for parts in (ends["end_to_end"][side] for side in ("artifact", "baseline")):
        assert min(parts["prepare"], parts["run"], parts["answer"]) > 0
    whole = [sum(parts[name] for name in ("prepare", "run", "answer")) for parts in ends["end_to_end"].values()]
    times = np.median([pair[::-1] for each in found["end_to_end"]["rounds"] for pair in each], axis=0)
    assert whole == pytest.approx((1e3 * times).tolist(), rel=0.5), "the parts add up to what is compared"
    cold, first, memory = (np.median(found[name]["rounds"][0]) for name in names[4:7])
    assert first < cold
    assert 1e7 < memory < 1e10


@pytest.mark.slow
def test_false_claims_by_the_clock(root: Path, capsys: Any) -> None:
    """Judge real times: no load makes a light network slower than one of 75 times its products."""
    slower = {"name": "slower", "artifact": "heavy", "baseline": "light", "at_least": 0.7}
    twin = {"name": "twin", "artifact": "twin", "baseline": "heavy", "at_least": 1.5}
    gated = {"name": "gated", "artifact": "heavy", "max_macs": 1e6, "precisions": ("int8",)}
    code, out, _ = run(capsys, write(root, slower, twin, gated, header='time = "15s"\nprocesses = 2\n'), "--json")
    found = {claim["name"]: claim for claim in json.loads(out)["claims"]}
    assert code == 1
    assert (found["slower"]["outcome"], found["slower"]["word"]) == ("fails", "slower")
    assert "confirmed in fresh processes" in found["slower"]["parts"][0]["line"]
    assert found["twin"]["outcome"] != "holds"
    assert [part["outcome"] for part in found["gated"]["parts"]] == ["fails", "fails"]
