"""int8 climbs by itself, guilty passes are left out, evidence says what it cannot show. Runtimes are played here."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.compiling import attempts as room
from hnas.export.compiling.attempts import Attempt, Attempts, Job
from hnas.export.compiling.conversion import convert
from hnas.export.compiling.evidence import gather
from hnas.export.compiling.options import CompileOptions
from hnas.export.compiling.originals import capture_network
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unfaithful
from hnas.export.graph.samples import Samples
from hnas.export.int8.policy import LADDER
from hnas.export.proof.verification import Check, Limits

Outputs = list[tuple[NDArray[Any], ...]]
Fault = Callable[[Artifact, Samples, Outputs], Outputs]
FITTED = "graded on the calibration samples, to which int8 was fitted; other samples may fare worse"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def images(count: int = 16, factor: float = 1.0) -> list[tuple[NDArray[np.float32]]]:
    rng = np.random.default_rng(0)
    return [((rng.standard_normal((1, 2, 8, 8)) * factor).astype(np.float32),) for _ in range(count)]


def noisy(outputs: Sequence[tuple[NDArray[Any], ...]], level: float) -> Outputs:
    """Return the outputs with noise of ``level`` dB below each of them."""
    rng = np.random.default_rng(1)
    scale = 10 ** (-level / 20)

    def add(value: NDArray[Any]) -> NDArray[Any]:
        return value + (scale * np.sqrt(np.square(value).mean()) * rng.standard_normal(value.shape)).astype(value.dtype)

    return [tuple(map(add, each)) for each in outputs]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Attempt]:
    """Return a function that makes the best attempt by the reference backend, with a fault planted in its runtime."""

    def best(
        fault: Fault, precision: str = "fp32", net: nn.Module | None = None, calibration: Any = None, **options: Any
    ) -> Attempt:
        reference = backends.load("reference")

        class Player:
            def __init__(self, artifact: Artifact) -> None:
                self.artifact = artifact

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def outputs(self, samples: Samples) -> Outputs:
                runner = reference.load(self.artifact)
                return fault(self.artifact, samples, [runner(*sample) for sample in samples])

        class Converter:
            def convert(self, *arguments: Any, **named: Any) -> Artifact:
                made = convert(*arguments, **named)
                made.write()
                return made

        monkeypatch.setattr(room, "Worker", Player)
        monkeypatch.setattr(reference, "precisions", ("fp32", "int8"))
        torch.manual_seed(0)
        chosen = CompileOptions(compiler=Converter(), **options)  # type: ignore[arg-type]
        rungs = ("none", *LADDER) if chosen.recover == "auto" and precision == "int8" else (chosen.recover,)
        job = Job("reference", hw_profiles.load("openvino-cpu"), precision, 1, rungs, chosen)
        with capture_network(net or Net(), images(1)[0], "openvino") as source:
            return Attempts(
                job, gather(source, calibration, precision, chosen), Path(tempfile.mkdtemp(dir=tmp_path)), "net"
            ).best()

    return best


def exact(_: Artifact, __: Samples, outputs: Outputs) -> Outputs:
    return outputs


def graded(levels: Sequence[float]) -> Fault:
    """Return a fault with a level for each artifact, in the order in which they are made."""
    seen: list[Path] = []

    def fault(artifact: Artifact, _: Samples, outputs: Outputs) -> Outputs:
        if artifact.path not in seen:
            seen.append(artifact.path)
        return noisy(outputs, levels[seen.index(artifact.path)])

    return fault


@pytest.fixture
def grades(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grade by level alone."""
    monkeypatch.setattr(Check, "passed", property(lambda self: self.sqnr_db >= 10))
    grade = property(lambda self: "broken" if self.sqnr_db < 10 else "degraded" if self.sqnr_db < 25 else "close")
    monkeypatch.setattr(Check, "grade", grade)


@pytest.mark.usefixtures("grades")
def test_case_1_a_good_plain_int8_costs_one_conversion(play: Callable[..., Attempt]) -> None:
    stages: list[tuple[str, int, int]] = []
    found = play(graded([30]), "int8", calibration=images(), progress=lambda *stage: stages.append(stage))
    assert (found.rung, found.edits, found.remarks) == ("none", (), (FITTED,))
    assert stages == [("int8", 0, 5)]


@pytest.mark.usefixtures("grades")
def test_case_1_the_first_good_rung_is_taken(play: Callable[..., Attempt]) -> None:
    found = play(graded([15, 30, 40, 40, 40]), "int8", calibration=images())
    assert found.rung == "bias"
    assert found.judged.check.n == 16


@pytest.mark.usefixtures("grades")
def test_case_2_the_best_is_kept_and_learned_edits_are_verified_on_other_samples(play: Callable[..., Attempt]) -> None:
    found = play(graded([15, 15, 15, 22, 18]), "int8", calibration=images(32))
    assert found.judged.check.grade == "degraded"
    learned = any(edit["edit"] == "round_weights" and edit["kept"] for edit in found.edits)
    assert found.judged.check.n == (8 if learned else 32)


@pytest.mark.usefixtures("grades")
def test_too_few_samples_to_hold_some_out_are_said(play: Callable[..., Attempt]) -> None:
    found = play(graded([30] * 5), "int8", calibration=images(8), recover="round")
    if any(edit["edit"] == "round_weights" and edit["kept"] for edit in found.edits):
        assert found.remarks == (
            FITTED,
            "verified on the samples that int8 was fitted to; give 16 or more calibration samples",
        )


@pytest.mark.usefixtures("grades")
def test_all_broken_is_refused_with_what_was_tried(play: Callable[..., Attempt]) -> None:
    with pytest.raises(Unfaithful, match=r"does not compute what Net does: .*; recovery tried bias"):
        play(graded([5] * 10), "int8", calibration=images())
    with pytest.raises(Unfaithful, match=r"does not compute what Net does: [^;]*$"):
        play(graded([5]), "int8", calibration=images(), recover="none")


@pytest.mark.usefixtures("grades")
def test_the_time_limit_keeps_what_there_is(play: Callable[..., Attempt]) -> None:
    found = play(graded([15] * 5), "int8", calibration=images(), recover_seconds=1e-6)
    assert found.rung == "none"
    assert found.remarks == (FITTED, "accuracy recovery stopped in 'bias' after its limit of 1e-06 s")


@pytest.mark.usefixtures("grades")
@pytest.mark.parametrize(
    ("quiet", "options", "shown"),
    [
        (0.0, {}, list(LADDER)),
        (2.0, {}, ["equalise", "round", "finetune"]),  # "equalise" begins before and lasts longer
        (0.0, {"recover_seconds": float("inf")}, list(LADDER)),
        (30.0, {}, []),
        (0.0, {"progress": lambda *_: None}, []),
        (0.0, {"recover": "bias"}, []),
    ],
)
def test_slow_recovery_shows_its_rungs_where_the_caller_does_not(
    play: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch, quiet: float, options: Any, shown: list[str]
) -> None:
    said: list[str] = []

    class Slow:
        fitted = ()

        def climb(self, rung: str, __: float) -> Any:
            for _ in range(400 if quiet == 2.0 and rung == "equalise" else 0):
                time.sleep(0.0 if said else 0.05)
            return program, ({"edit": rung, "kept": True},)

    program = play(exact, "int8", calibration=images()).program
    monkeypatch.setattr(room, "_QUIET", quiet)
    monkeypatch.setattr(room, "_ladder", lambda *_: Slow())
    monkeypatch.setattr(room, "tell", said.append)
    play(graded([15] * 5), "int8", calibration=images(), **options)
    left = "" if "recover_seconds" in options else ", at most 600 s left"
    lines = [re.sub(r"5\d\d s", "600 s", line) for line in said if line != FITTED]
    assert lines == [f"int8: trying {rung}{left}" for rung in shown]


@pytest.mark.usefixtures("grades")
def test_limits_of_the_user_decide(play: Callable[..., Attempt]) -> None:
    found = play(graded([15] * 5), "int8", calibration=images(), limits=Limits(12.0, 0.0, strict=True))
    assert found.rung == "none"


# --- the example inputs are evidence ----------------------------------------------------------------------------------


def spoiled(where: Callable[[NDArray[Any]], bool], level: float) -> Fault:
    """Return a fault on the samples that ``where`` chooses."""

    def fault(_: Artifact, samples: Samples, outputs: Outputs) -> Outputs:
        return [noisy([out], level if where(x) else 40)[0] for (x,), out in zip(samples, outputs, strict=True)]

    return fault


def test_calibration_of_another_scale_is_refused_before_any_conversion(play: Callable[..., Attempt]) -> None:
    with pytest.raises(ValueError, match=r"^calibration contradicts the example inputs: input 0 is .* in calibration"):
        play(exact, "int8", calibration=images(16, 255))


def test_a_suspicious_scale_is_refused_where_int8_fails_on_the_examples(play: Callable[..., Attempt]) -> None:
    calibration = images(16, 0.1)
    large = spoiled(lambda x: bool(np.abs(x).max() > 1), 3)
    with pytest.raises(
        Unfaithful, match=r"4\d\.\d dB on the calibration samples, .* dB on the example inputs: input 0"
    ):
        play(large, "int8", calibration=calibration, recover="none")
    assert play(exact, "int8", calibration=calibration, recover="none").remarks == (FITTED,)


def test_noise_as_an_example_is_remarked_and_not_refused(play: Callable[..., Attempt]) -> None:
    calibration = [(np.abs(x),) for (x,) in images()]
    found = play(spoiled(lambda x: bool(x.min() < 0), 3), "int8", calibration=calibration, recover="none")
    assert found.judged.examples_db is not None
    assert found.judged.examples_db < 10
    first, second = found.remarks
    assert first == FITTED
    assert second.endswith("example inputs, which seem to be noise; pass real ones")


def test_int8_graded_on_its_calibration_is_remarked_and_told_unless_evidence_is_given(
    play: Callable[..., Attempt], caplog: pytest.LogCaptureFixture
) -> None:
    def said(precision: str = "int8", **options: Any) -> tuple[tuple[str, ...], bool]:
        caplog.clear()
        found = play(exact, precision, calibration=images(), recover="none", **options)
        return found.remarks, FITTED in caplog.messages

    assert said() == ((FITTED,), True)
    assert said(evidence=images()) == ((FITTED,), False)
    assert said(evidence=images(20)[12:]) == said("fp32") == ((), False)


def test_an_example_among_the_samples_is_not_run_twice(play: Callable[..., Attempt]) -> None:
    found = play(exact, "int8", calibration=images(16), recover="none")
    assert (found.judged.examples_db, found.judged.check.n) == (None, 16)


# --- fp32: sensitivity and guilty passes ------------------------------------------------------------------------------


class Amplifier(nn.Module):
    """Subtract nearly equal numbers, which leaves rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return ((y + 3000.0) - 3000.0) * 10


def test_the_network_s_own_rounding_is_measured_only_where_fp32_falls_short() -> None:
    torch.manual_seed(0)
    for net, low, high in ((Net(), 115, 160), (Amplifier(), 40, 85)):
        with capture_network(net, images(1)[0], "openvino") as source:
            evidence = gather(source, None, "fp32", CompileOptions())
            assert "sensitivity_db" not in vars(evidence)
            assert low < evidence.sensitivity_db < high


def test_an_error_like_bfloat16_is_refused_in_an_ordinary_network(play: Callable[..., Attempt]) -> None:
    with pytest.raises(Unfaithful, match="does not compute what Net does"):
        play(lambda _, __, outputs: noisy(outputs, 45))


def without(operator: str, level: float) -> Fault:
    """Return a fault in artifacts that lack ``operator``, as a pass leaves them."""

    def fault(artifact: Artifact, _: Samples, outputs: Outputs) -> Outputs:
        return outputs if operator in artifact.model.read_text() else noisy(outputs, level)

    return fault


@pytest.mark.parametrize("level", [64, 95])
def test_case_3_the_guilty_pass_is_left_out_and_named(play: Callable[..., Attempt], level: float) -> None:
    found = play(without("batch_norm", level))
    fired = dict(found.program.fired)
    assert "fold_batchnorm" not in fired
    assert fired["drop_dropout"] == 1
    assert len(found.remarks) == 1
    assert found.remarks[0].startswith(f"left out fold_batchnorm: {level} dB with it, ")
    assert found.judged.check.passed


@pytest.mark.parametrize("level", [80.0, 88.0])
def test_case_3_a_pass_that_costs_less_than_20_db_is_left_out_where_fp32_fails(
    play: Callable[..., Attempt], level: float
) -> None:
    def fault(artifact: Artifact, _: Samples, outputs: Outputs) -> Outputs:
        return noisy(outputs, 95 if "batch_norm" in artifact.model.read_text() else level)

    found = play(fault)
    assert found.judged.check.passed
    fired = dict(found.program.fired)
    assert "fold_batchnorm" not in fired
    assert fired["drop_dropout"] == 1
    assert found.remarks[0].startswith("left out fold_batchnorm: ")


def test_case_3_without_passes_it_fails_too_and_nothing_is_left_out(play: Callable[..., Attempt]) -> None:
    made: list[Path] = []

    def fault(artifact: Artifact, _: Samples, outputs: Outputs) -> Outputs:
        made.append(artifact.path)
        return noisy(outputs, 85 if "batch_norm" in artifact.model.read_text() else 80)

    with pytest.raises(Unfaithful, match="fp32 fails"):
        play(fault)
    assert len(made) == 2


def test_case_3_no_pass_is_blamed_for_what_it_has_not_done(play: Callable[..., Attempt]) -> None:
    made: list[Path] = []

    def fault(artifact: Artifact, _: Samples, outputs: Outputs) -> Outputs:
        made.append(artifact.path)
        return noisy(outputs, 95)

    found = play(fault)
    assert found.remarks == ()
    assert dict(found.program.fired)["fold_batchnorm"] == 1
    assert len(made) == 2  # with all passes, and without


def test_case_3_the_usual_level_costs_one_conversion(play: Callable[..., Attempt]) -> None:
    made: list[Path] = []

    def fault(artifact: Artifact, _: Samples, outputs: Outputs) -> Outputs:
        made.append(artifact.path)
        return noisy(outputs, 110)

    play(fault)
    assert len(made) == 1


def test_a_network_that_draws_outside_of_torch_is_said_to_be_random(play: Callable[..., Attempt]) -> None:
    rng = np.random.default_rng(0)

    class Random(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) + float(rng.standard_normal())

    with pytest.raises(ExportError, match=r"two calls of Random on one input differ, so it draws random numbers$"):
        play(exact, net=Random())


def test_a_pass_that_changes_the_outputs_is_left_out_and_named(
    play: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hnas.export.graph import fusion

    def lie(program: Any) -> Any:
        module = fusion.fold_batchnorm(program).module
        with torch.no_grad():
            next(iter(module.buffers())).mul_(1.5)
        return replace(program, module=module, fired=(*program.fired, ("lie", 1)))

    monkeypatch.setattr(fusion, "passes_for", lambda _: (fusion.drop_dropout, lie))
    found = play(exact)
    assert [name for name, _ in found.program.fired] == ["drop_dropout"]
    assert found.remarks[0].startswith("left out lie: it changed the output: error ")
