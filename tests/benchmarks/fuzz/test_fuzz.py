"""Fuzzing: cases depend only on their seed, a planted fault is found and reduced, a kill loses no finished case."""

import json
from pathlib import Path

import pytest
import torch

from hnas import spaces
from hnas.benchmarks.fuzz import command as fuzz
from hnas.benchmarks.fuzz.cases import CALLS, EACH, SPACES, Ask, asks, network
from hnas.benchmarks.fuzz.log import CASES, FuzzLog
from hnas.export import backends
from hnas.export.diagnosis import reproduction
from hnas.export.diagnosis.trial import Setting
from hnas.export.onnx import file as onnx_file
from tests.conftest import need
from tests.export import faults

QUICK = ("openvino", "tflite")  # their conversions take tens of milliseconds


@pytest.mark.parametrize("number", [0, 1, 3, 8, 13])
def test_a_network_follows_from_its_seed(number: int) -> None:
    first, again, other = network(5, number), network(5, number), network(6, number)
    (program, calls), (twin, twins) = first.program(1), again.program(1)
    assert program.digest == twin.digest
    assert all(torch.equal(a, b) for a, b in zip(program(*calls[0]), twin(*twins[0]), strict=True))
    assert len(calls) == CALLS
    assert first.title == again.title == other.title


def test_drawn_networks_have_what_spaces_do_not() -> None:
    seen: set[str] = set()
    inputs, outputs, shapes = set(), set(), set()
    for number in range(1, 60, 2):
        program, calls = network(0, number).program(1)
        seen |= set(program.operators())
        inputs.add(len(calls[0]))
        outputs.add(len(program(*calls[0])))
        shapes.add(tuple(calls[0][0].shape[2:]))
    assert inputs == outputs == {1, 2}
    assert any(a != b and a % 2 for a, b in shapes)
    assert {"aten.cat.default", "aten.conv_transpose2d.input", "aten.pad.default"} <= seen
    assert len(seen) >= 40


def test_every_space_is_drawn_from_and_every_kind_of_case_asked() -> None:
    assert {name for name, _ in SPACES} == set(spaces.names())
    found = [ask for number in range(40) for ask in asks(0, number, fuzz.BACKENDS)]
    assert len(found) == 40 * EACH
    assert {ask.setting.backend for ask in found} == {*fuzz.BACKENDS, "reference"}
    assert {ask.batch for ask in found} == {1, 2, 4}
    assert {ask.setting.precision for ask in found} == {"fp32", "int8"}
    lengths = {len(ask.setting.passes) for ask in found if ask.setting.passes is not None}
    assert {0, 1} < lengths
    for ask in found:
        _ = ask.setting.chosen  # every pass is known


def test_a_short_run_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in QUICK:
        need(name, backends.load(name).missing())
    command = ["--count", "24", "--seed", "3", "--backends", ",".join(QUICK), "--out", str(tmp_path), "--json"]
    code = fuzz.main(command)
    result = json.loads(capsys.readouterr().out)
    assert (code, result["finds"]) == (0, [])
    assert result["cases"] == 24
    assert result["outcomes"]["holds"] >= 16
    assert all(level >= 90 for setting, level in result["lowest_sqnr_db"].items() if setting.endswith("fp32"))
    again = fuzz.fuzz(range(24), 3, QUICK, out=tmp_path)
    assert again["outcomes"] == result["outcomes"]
    assert again["seconds"] < result["seconds"] / 4


def test_a_planted_fault_is_found_reduced_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    monkeypatch.setattr(onnx_file, "write_program", onnx_file.write_program)
    faults.install()
    monkeypatch.setattr(fuzz, "SECONDS", 3.0)
    # The first network with a hard-swish, tried on the backend that has the fault.
    number = next(n for n in range(1, 200, 2) if "aten.hardswish.default" in network(0, n).program(1)[0].operators())
    monkeypatch.setattr("hnas.benchmarks.fuzz.cases.asks", lambda *_: [Ask(Setting("onnxruntime"))] * EACH)
    result = fuzz.fuzz([number * EACH], 0, ("onnxruntime",), out=tmp_path)
    (find,) = result["finds"]
    assert (find["outcome"], find["batch"], find["case"]) == ("mismatch", 1, number * EACH)
    program, _, record = reproduction.read_reproduction(Path(find["saved"]))
    assert "aten.hardswish.default" in program.operators()
    assert record.setting == Setting("onnxruntime")


def test_a_case_in_which_the_process_died_twice_is_lost(tmp_path: Path) -> None:
    first = FuzzLog(tmp_path, 0, QUICK)
    first.begin(0)
    assert not FuzzLog(tmp_path, 0, QUICK).done  # a single time may have been a kill from outside
    first.begin(0)
    with (tmp_path / CASES).open("a") as stream:
        stream.write('{"case": 1, "netw')  # cut off
    (lost,) = FuzzLog(tmp_path, 0, QUICK).finds
    assert (lost.case, lost.outcome) == (0, "lost")
    with pytest.raises(ValueError, match="another seed or other backends"):
        FuzzLog(tmp_path, 1, QUICK)


def test_slips_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--backends", "tensort"]) == 2
    assert "no backend 'tensort'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        fuzz.main(["--count", "0"])
    assert end.value.code == 2
