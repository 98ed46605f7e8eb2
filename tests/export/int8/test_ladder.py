"""Test the recovery of int8 accuracy: each edit on a net that needs it, and that the ladder keeps only useful edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hnas import export
from hnas.export.backends.onnxruntime import convert as onnxruntime_backend
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import Program, capture
from hnas.export.int8 import ladder as recovery
from hnas.export.int8 import rounding
from hnas.export.int8.calibration import activation_ranges
from hnas.export.int8.equalisation import equalise, pairs
from hnas.export.int8.finetuning import finetune
from hnas.export.int8.policy import LADDER
from hnas.export.int8.rounding import correct_biases, round_weights
from hnas.export.int8.simulation import quantised_layers, rounded, run_samples, simulate, sqnr_db, weight_steps
from tests.conftest import need
from tests.export import nets
from tests.export.compile_flat import compile_flat
from tests.export.programs import normal_noise

Sample = tuple[NDArray[np.float32], ...]


class Skewed(nn.Module):
    """Convolutions whose channels have very different magnitudes, as after folding a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = nn.Conv2d(8, 12, 3, stride=2)
        self.head = nn.Linear(12, 6)
        sizes = torch.logspace(-1.5, 1.5, 8)
        with torch.no_grad():
            self.first.weight *= sizes.reshape(-1, 1, 1, 1)
            self.first.bias *= sizes
            self.second.weight /= sizes.reshape(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.first(x)), 2)
        return self.head(torch.relu(self.second(torch.relu(self.depth(x)))).mean((2, 3)))


def skewed() -> tuple[Program, list[Sample]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        program = fuse(capture(Skewed(), torch.randn(1, 1, 16, 16)))
    return program, calls(program, 32)


def named(name: str) -> tuple[Program, list[Sample]]:
    program = fuse(capture(*nets.build(name)))
    return program, calls(program, 24)


def calls(program: Program, count: int) -> list[Sample]:
    return [tuple(value.numpy() for value in normal_noise(program.inputs, seed)) for seed in range(1, count + 1)]


def level(program: Program, data: Sequence[Sample], reference: Program, ranges: str = "minmax") -> float:
    """Return the signal-to-noise ratio of simulated int8 against the float reference, in dB."""
    int8 = simulate(program, activation_ranges(program, data, ranges))
    return sqnr_db(run_samples(reference, data), run_samples(int8, data))


# --- equalisation -----------------------------------------------------------------------------------------------------


def test_equalised_channels_share_their_grid_and_the_function_stays() -> None:
    program, data = skewed()
    equal = equalise(program, data)
    assert equal.fired[-1] == ("equalise", 2)
    expected, got = run_samples(program, data), run_samples(equal, data)
    assert sqnr_db(expected, got) > 100
    assert level(equal, data, program) > level(program, data, program) + 6


def test_equalisation_cases() -> None:
    class Cases(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 1) for _ in range(4))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = torch.relu(self.a(x))  # 1. two layers read it
            return self.b(y), self.c(y) + x, self.d(nn.functional.relu6(self.b(x)))

    program = fuse(capture(Cases().eval(), torch.randn(1, 4, 5, 5)))
    found = [(first.name, len(ends)) for first, ends in pairs(program.module)]
    assert found == []  # 3. b's weight is shared, so that a may not rescale it

    class Plain(Cases):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = torch.relu(self.a(x))
            z = nn.functional.relu6(self.b(y))  # 2. knows a scale
            return self.c(y) + x, self.d(z)

    program = fuse(capture(Plain().eval(), torch.randn(1, 4, 5, 5)))
    assert [len(ends) for _, ends in pairs(program.module)] == [2]
    data = calls(program, 4)
    assert sqnr_db(run_samples(program, data), run_samples(equalise(program, data), data)) > 100


def test_a_dead_channel_is_left_as_it_is() -> None:
    program, data = skewed()
    first = quantised_layers(program.module)[0]
    first.weight[3] = 0.0
    assert first.bias is not None
    first.bias[3] = -1.0
    got = run_samples(equalise(program, data), data)
    assert all(bool(torch.isfinite(part).all()) for call in got for part in call)
    assert sqnr_db(run_samples(program, data), got) > 100


# --- biases and rounding ----------------------------------------------------------------------------------------------


def mean_error(program: Program, data: Sequence[Sample], reference: Program) -> float:
    int8 = simulate(program, activation_ranges(reference, data))
    pairs_ = zip(run_samples(reference, data), run_samples(int8, data), strict=True)
    shift = torch.stack([have[0] - want[0] for want, have in pairs_]).mean(0)
    return float(shift.abs().max())


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "hybrid"])
def test_corrected_biases_take_the_mean_error_out(name: str) -> None:
    program, data = named(name)
    corrected = correct_biases(program, data)
    assert corrected.fired[-1] == ("correct_biases", len(quantised_layers(program.module)))
    assert mean_error(corrected, data, program) < 0.5 * mean_error(program, data, program)


@pytest.mark.parametrize("name", ["resnet", "convnext", "hybrid"])
def test_rounded_weights_lie_on_the_grid_that_a_quantiser_derives(name: str) -> None:
    program, data = named(name)
    for before, after in zip(
        quantised_layers(program.module), quantised_layers(round_weights(program, data).module), strict=True
    ):
        assert torch.allclose(weight_steps(after.weight), weight_steps(before.weight), rtol=1e-5)
        assert torch.allclose(rounded(after.weight), after.weight, rtol=1e-5, atol=1e-8)
        turned = ((after.weight - before.weight) / weight_steps(before.weight)).abs()
        assert float(turned.max()) < 1.001  # up or down, never farther


def test_turned_weights_serve_the_output_better_than_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = named("hybrid")
    data = calls(program, 48)
    turned = round_weights(program, data)
    monkeypatch.setattr(rounding, "_unfoldable", lambda _: False)  # the same correction of biases
    nearest = round_weights(program, data)
    assert level(turned, data, program) > level(nearest, data, program) + 0.2


def test_a_layer_in_one_dimension_in_groups_and_one_that_is_shared() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv1d(4, 8, 3, padding=1, groups=2, bias=False)
            self.b = nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.b(torch.relu(self.a(x)).transpose(1, 2))))

    program = fuse(capture(Mixed().eval(), torch.randn(1, 4, 10)))
    data = calls(program, 16)
    fitted = round_weights(program, data)
    assert fitted.fired[-1] == ("round_weights", 1)  # b is read twice: case 3
    assert level(fitted, data, program) > 25


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def test_fine_tuning_brings_int8_nearer_to_the_teacher() -> None:
    program, data = named("hybrid")
    before = {key: value.clone() for key, value in program.module.state_dict().items()}
    tuned = finetune(program, data, epochs=20, rate=3e-5)
    assert level(tuned, data, program) > level(program, data, program) + 1
    assert all(torch.equal(value, before[key]) for key, value in program.module.state_dict().items())


def test_the_teacher_may_be_another_program_than_the_one_that_is_trained() -> None:
    program, _ = named("hybrid")
    data = calls(program, 48)
    start = correct_biases(program, data)
    taught, untaught = (finetune(start, data, teacher=teacher) for teacher in (program, None))
    assert level(taught, data, program) > level(untaught, data, program) + 1


def test_fine_tuning_is_reproducible() -> None:
    program, data = named("two_by_two")
    first, second = (finetune(program, data, epochs=1, seed=3) for _ in range(2))
    states = zip(first.module.state_dict().values(), second.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


# --- the ladder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", LADDER)
def test_a_rung_never_makes_it_worse_and_says_what_it_did(rung: str) -> None:
    program, data = skewed()
    found, edits = recovery.Ladder(program, data).climb(rung)
    assert [edit["edit"] for edit in edits] == [edit.__name__ for edit in recovery.RUNGS[rung]]
    assert all(edit["kept"] == (edit["sqnr_db"][1] > edit["sqnr_db"][0]) for edit in edits)
    assert any(edit["kept"] for edit in edits)
    assert level(found, data, program) > level(program, data, program)


@pytest.mark.parametrize("start", [skewed, partial(named, "hybrid")])
def test_the_signal_after_round_is_not_below_that_after_bias(start: Callable[[], tuple[Program, list[Sample]]]) -> None:
    program, data = start()
    ladder = recovery.Ladder(program, data)
    bias, rounded_ = (level(ladder.climb(rung)[0], data, program) for rung in ("bias", "round"))
    assert rounded_ >= bias


def test_an_edit_that_does_not_help_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(program: Program, _data: object) -> Program:
        return simulate(program, dict.fromkeys(activation_ranges(program, calls(program, 1)), (0.0, 0.1)))

    monkeypatch.setattr(recovery, "RUNGS", {"bias": (spoil,)})
    program, data = skewed()
    found, edits = recovery.Ladder(program, data).climb("bias")
    assert found is program
    assert edits[0]["kept"] is False


def test_rungs_share_their_first_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    program, data = skewed()
    counted: list[str] = []

    def counting(edit: Callable[..., Program]) -> Callable[..., Program]:
        def run(*arguments: object) -> Program:
            counted.append(edit.__name__)
            return edit(*arguments)

        run.__name__ = edit.__name__
        return run

    first, second, third = map(counting, (recovery.equalise, recovery.correct_biases, recovery.round_weights))
    monkeypatch.setattr(recovery, "RUNGS", {"equalise": (first, second), "round": (first, third)})
    ladder = recovery.Ladder(program, data)
    ladder.climb("equalise")
    ladder.climb("round")
    assert counted == ["equalise", "correct_biases", "round_weights"]


def test_edits_are_judged_on_every_fourth_sample() -> None:
    program, data = skewed()
    ladder = recovery.Ladder(program, (data * 16)[:16])
    assert len(ladder.fitted) == 12
    assert recovery.Ladder(program, data[:3]).fitted == data[:3]


def test_the_time_limit_ends_an_edit() -> None:
    program, data = skewed()
    with pytest.raises(TimeoutError, match="the time limit of accuracy recovery is over"):
        recovery.Ladder(program, data).climb("finetune", seconds=1e-3)


def test_an_unknown_rung_is_one_line() -> None:
    program, data = skewed()
    with pytest.raises(ValueError, match=r"^no rung 'luck' to recover int8 accuracy; known: bias, equalise, round"):
        recovery.Ladder(program, data).climb("luck")


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., export.Artifact]:
    need("onnxruntime", onnxruntime_backend.missing())
    pytest.importorskip("onnxscript")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Skewed().eval()
    data = [(torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(seed)),) for seed in range(32)]

    def compile_(**options: object) -> export.Artifact:
        common = {"device": "onnxruntime-cpu", "precision": "int8", "calibration": data, "path": tmp_path / "int8"}
        return compile_flat(net, data[0], **{**common, **options})

    return compile_


def sqnr(artifact: export.Artifact) -> float:
    verification = artifact.notes["verification"]
    assert isinstance(verification, dict)
    return float(verification["sqnr_db"])


def test_auto_climbs_until_the_artifact_verifies_and_its_notes_say_how(
    compiled: Callable[..., export.Artifact],
) -> None:
    with pytest.raises(export.ExportError, match=r"does not compute what Skewed does: int8 fails .* \(limit 10\)"):
        compiled(recover="none")
    found = compiled()
    assert sqnr(found) > 15
    quantisation = found.notes["quantisation"]
    assert isinstance(quantisation, dict)
    assert quantisation["rung"] == "equalise"  # with the biases corrected alone, a slice stays below its limit
    edits = [record["edit"] for record in quantisation["recovery"]]
    assert edits == ["equalise", "correct_biases"]


def test_a_rung_that_is_asked_for_is_made(compiled: Callable[..., export.Artifact]) -> None:
    found = compiled(recover="equalise")
    assert found.notes["quantisation"]["rung"] == "equalise"
    assert sqnr(found) > 30


def test_wrong_use_of_recover_is_one_line(compiled: Callable[..., export.Artifact]) -> None:
    with pytest.raises(ValueError, match=r"^no recover='luck'; known: auto, none, bias, equalise, round, finetune$"):
        compiled(recover="luck")
    with pytest.raises(ValueError, match=r"^recover='bias' is for int8, got precision fp32$"):
        compiled(recover="bias", precision="fp32")
