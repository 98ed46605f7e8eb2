"""A pass that makes an artifact wrong is left out and named. Runtimes are played here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hnas.export.compiling.attempts import Attempt
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError, Unfaithful
from hnas.export.graph.samples import Samples
from tests.export.compiling.playing import Fault, Net, Outputs, exact, noisy


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
