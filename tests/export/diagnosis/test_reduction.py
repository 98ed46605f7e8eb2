"""Test reductions by any predicate, trials, and failures that are saved and repeated in a new process."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hnas.export import backends
from hnas.export.device.errors import Unavailable
from hnas.export.diagnosis import reproduction, trial
from hnas.export.diagnosis.reduction import reduce_program
from hnas.export.diagnosis.trial import Setting, TrialBench, limit_db, stacked
from hnas.export.graph.program import Program, capture
from hnas.export.graph.subgraph import Subprogram, carve
from hnas.export.onnx import file as onnx_file
from tests.conftest import LIMIT_S, need
from tests.export import faults, nets
from tests.export.programs import program_of
from tests.hostile.builders import fifo, sparse

aten = torch.ops.aten


def calls_of(program: Program, count: int = 4) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(x.shape, generator=generator) for x in program.inputs) for _ in range(count)]


def holding(*targets):
    """Return a predicate: the program fails if its graph has all of the targets."""

    def fails(program, _calls):
        found = {node.target for node in program.module.graph.nodes}
        return all(target in found for target in targets)

    return fails


# --- reduce -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("resnet", aten.max_pool2d.default),
        ("resnet", aten.adaptive_avg_pool2d.default),
        ("mobilenet", aten.hardtanh.default),
        ("two_by_two", aten.unsqueeze.default),
        ("convnext", aten.erf.default),
        ("hybrid", aten.scaled_dot_product_attention.default),
    ],
)
def test_one_operator_is_left_where_one_is_to_blame(name: str, target: torch._ops.OpOverload) -> None:
    program = capture(*nets.build(name))
    if str(target) not in program.operators():
        with pytest.raises(ValueError, match="nothing to reduce"):
            reduce_program(program, calls_of(program, 2), holding(target))
        return
    small = reduce_program(program, calls_of(program, 2), holding(target))
    assert small.program.operators() == {str(target): 1}
    assert len(small.calls) == 1
    assert [tuple(x.shape) for x in small.calls[0]] == [tuple(x.shape) for x in small.program.inputs]
    assert sum(x.numel() for x in small.calls[0]) <= 3


def test_two_operators_stay_together_and_sizes_go() -> None:
    program = capture(*nets.build("mobilenet"))
    small = reduce_program(program, calls_of(program), holding(aten.conv2d.default, aten.linear.default))
    assert small.size[0] <= 4
    assert max(size for call in small.calls for value in call for size in value.shape) == 1


def test_a_failure_in_the_numbers_is_bisected() -> None:
    """The program fails if a GELU in it gives a positive value: only that GELU is left."""
    program = program_of(
        lambda self, x: F.gelu(self.b(torch.relu(self.a(x))) * 9).mean((2, 3)).tanh(),
        (1, 3, 8, 8),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(8, 8, 3),
    )
    asked = 0

    def fails(candidate, calls):
        nonlocal asked
        asked += 1
        nodes = [node for node in candidate.module.graph.nodes if node.target is aten.gelu.default]
        return bool(nodes) and any(float(candidate(*call)[0].abs().max()) > 0 for call in calls)

    small = reduce_program(program, calls_of(program), fails)
    assert small.program.operators() == {"aten.gelu.default": 1}
    assert small.calls[0][0].numel() == 1
    assert asked < 60


def test_what_is_given_stays_as_it_is() -> None:
    program = capture(*nets.build("resnet"))
    code, weights = program.module.code, {k: v.clone() for k, v in program.module.state_dict().items()}
    reduce_program(program, calls_of(program), holding(aten.relu.default, aten.linear.default))
    assert program.module.code == code
    assert all(torch.equal(value, weights[name]) for name, value in program.module.state_dict().items())


def test_several_inputs_and_outputs_become_those_that_matter() -> None:
    program = capture(*nets.build("two_by_two"))
    small = reduce_program(program, calls_of(program), holding(aten.sigmoid.default))
    assert (len(small.calls[0]), len(small.program(*small.calls[0]))) == (1, 1)


def test_nothing_to_reduce_and_no_time_to_do_it() -> None:
    program = capture(*nets.build("two_by_two"))
    with pytest.raises(ValueError, match="does not fail as it is"):
        reduce_program(program, calls_of(program), lambda _program, _calls: False)
    whole = reduce_program(program, calls_of(program), holding(aten.sigmoid.default), seconds=-1.0)
    assert whole.size[0] == sum(program.operators().values())


def test_a_part_begins_with_what_was_recorded() -> None:
    program = capture(*nets.build("hybrid"))
    whole = Subprogram(program, tuple(calls_of(program, 2)))
    middle = next(node for node in whole.operators if node.target is aten.scaled_dot_product_attention.default)
    part = carve(whole, cuts=set(middle.all_input_nodes))
    assert part is not None
    assert part.size[0] < whole.size[0]
    for whole_call, call in zip(whole.calls, part.calls, strict=True):
        torch.testing.assert_close(part.program(*call)[0], program(*whole_call)[0])


# --- trials -----------------------------------------------------------------------------------------------------------


def test_the_limit_allows_for_a_program_that_amplifies_rounding() -> None:
    calm = program_of(lambda _self, x: torch.relu(x) * 2, (1, 3, 8, 8))
    wild = program_of(lambda _self, x: (x + 3e4) - 3e4, (1, 3, 8, 8))
    assert limit_db(calm, calls_of(calm), "fp32") == 90.0
    assert limit_db(calm, calls_of(calm), "fp32", exact=100.0) == 85.0  # what it is held against strays
    assert limit_db(wild, calls_of(wild), "fp32") < 60.0


def test_the_limit_of_int8_is_what_rounding_costs() -> None:
    program = capture(*nets.build("resnet"))
    found = limit_db(program, calls_of(program), "int8")
    assert 5.0 < found < 45.0
    assert found < limit_db(program, calls_of(program), "bf16") + 30.0


def test_stacked_calls_are_one_call() -> None:
    calls = [(torch.full((1, 2), float(i)),) for i in range(3)]
    assert stacked(calls)[0][:, 0].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite", "reference"])
def test_a_sound_backend_holds_and_a_refusal_is_told(backend: str) -> None:
    need(backend, backends.load(backend).missing())
    program = capture(*nets.build("two_by_two"))
    with TrialBench(converter=False) as bench:
        found = bench.judge(program, calls_of(program), Setting(backend, passes=("fold_batchnorm",)))
        assert found.outcome == "holds", found.line
        assert found.sqnr_db is not None
        assert found.sqnr_db >= 90.0
        if backend == "tflite":
            odd = program_of(lambda _self, x: torch.erfinv(x.tanh() / 2), (1, 3, 8, 8))
            refused = bench.judge(odd, calls_of(odd), Setting(backend))
            assert (refused.outcome, refused.failed) == ("refused", False)
            assert "erfinv" in refused.line


def test_an_error_of_a_runtime_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    program = capture(*nets.build("two_by_two"))
    write = onnx_file.write_program

    def truncated(program, path, *args, **kwargs):
        write(program, path, *args, **kwargs)
        path.write_bytes(path.read_bytes()[:100])

    monkeypatch.setattr(onnx_file, "write_program", truncated)
    with TrialBench() as bench:
        found = bench.judge(program, calls_of(program), Setting("onnxruntime"))
    assert found.outcome == "broken"
    assert "cannot open" in found.line


def test_settings_name_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="no precision 'int4'"):
        Setting("onnxruntime", "int4")
    with pytest.raises(ValueError, match="no pass 'fold_maps'; known: drop_dropout"):
        _ = Setting("onnxruntime", passes=("fold_maps",)).chosen


# --- saved ------------------------------------------------------------------------------------------------------------


def test_a_converter_that_is_not_installed_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise Unavailable("nncf is not installed")

    monkeypatch.setattr(trial, "make_artifact", missing)
    program = capture(nn.Linear(3, 2), torch.zeros(1, 3))
    with TrialBench() as bench, pytest.raises(Unavailable, match="nncf is not installed"):
        bench.judge(program, calls_of(program), Setting("openvino"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a reduced failure of a converter that writes SiLU for hard-swish."""
    need("onnxruntime", backends.load("onnxruntime").missing())
    folder = tmp_path_factory.mktemp("found") / "small"
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.ReLU(), nn.Flatten(), nn.Linear(200, 4))
    program = capture(net, torch.randn(1, 3, 7, 7, generator=torch.Generator().manual_seed(0)))
    calls, setting = calls_of(program), Setting("onnxruntime")
    with pytest.MonkeyPatch.context() as patched, TrialBench() as bench:
        patched.setattr(onnx_file, "write_program", onnx_file.write_program)
        faults.install()
        verdict = bench.judge(program, calls, setting)
        assert verdict.outcome == "mismatch"
        left, last = reproduction.reduce_and_save(folder, program, calls, setting, bench, verdict)
    assert (left, last.outcome) == (1, "mismatch")
    return folder


@pytest.fixture
def saved(found: Path, tmp_path: Path) -> Path:
    """Copy that folder, for a test that damages it."""
    return Path(shutil.copytree(found, tmp_path / "small"))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_it_fails_again_in_a_new_process_and_holds_where_the_fault_is_mended(saved: Path) -> None:
    program, calls, record = reproduction.read_reproduction(saved)
    assert program.operators() == {"aten.hardswish.default": 1}
    assert (len(calls), calls[0][0].numel(), record.outcome) == (1, 1, "mismatch")
    again = run("-m", "tests.export.faults", "verify", saved, "--json")
    assert again.returncode == 1, again.stderr
    (row,) = json.loads(again.stdout)["rows"]
    assert row["line"] == row["was"] == record.line
    mended = run("-c", MENDED, "verify", saved)
    assert mended.returncode == 0, mended.stderr
    assert f"when it was saved: {record.line}" in mended.stdout


MENDED = "import sys; from hnas.cli import deploy_main; sys.exit(deploy_main(sys.argv[1:]))"


def _unpacked(file: Path) -> None:
    """Write a small archive whose directory states an array of four gigabytes."""
    np.savez_compressed(file, call0_input0=np.zeros(2**18, np.float32))
    data = bytearray(file.read_bytes())
    size = data.rindex(b"PK\x01\x02") + 24
    data[size : size + 4] = struct.pack("<I", 2**32 - 2)
    file.write_bytes(data)


def test_a_folder_from_elsewhere_is_read_with_care(saved: Path) -> None:
    with pytest.raises(ValueError, match="is not empty"):
        reproduction.write_reproduction(saved, *reproduction.read_reproduction(saved)[:2], Setting("onnxruntime"), None)
    calls = (saved / "calls.npz").read_bytes()
    np.savez(saved / "calls.npz", call0_input0=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"calls\.npz is not a file of saved calls"):
        reproduction.read_reproduction(saved)
    np.savez(saved / "calls.npz", other=np.zeros(1, np.float32))
    with pytest.raises(ValueError, match=r"calls\.npz is not a file of saved calls"):
        reproduction.read_reproduction(saved)
    for spoil, reason in ((sparse, "bytes, at most"), (_unpacked, "its arrays have more than"), (fifo, "plain file")):
        spoil(saved / "calls.npz")
        with pytest.raises(ValueError, match=rf"calls\.npz is not a file of saved calls: .*{reason}"):
            reproduction.read_reproduction(saved)
    (saved / "calls.npz").unlink()
    (saved / "calls.npz").write_bytes(calls)
    record = json.loads((saved / "reproduction.json").read_text())
    for changed, reason in (
        ({"schema": 2}, "schema is 2, known: 1"),
        ({"setting": {**record["setting"], "precision": "int4"}}, "no precision 'int4'"),
        ({"setting": {**record["setting"], "shell": "rm"}}, "setting.shell is not known"),
    ):
        (saved / "reproduction.json").write_text(json.dumps({**record, **changed}))
        with pytest.raises(ValueError, match=reason):
            reproduction.read_reproduction(saved)
    (saved / "reproduction.json").write_text(json.dumps(record))
    graph = saved / "program" / "graph.json"
    graph.write_text(graph.read_text().replace("aten.hardswish.default", "aten.from_file.default"))
    with pytest.raises(ValueError, match="was changed"):
        reproduction.read_reproduction(saved)
