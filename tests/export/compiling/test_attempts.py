"""int8 climbs by itself, within its time, and shows what it tries. Runtimes are played here."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from hnas.export.compiling import attempts as room
from hnas.export.compiling.attempts import Attempt
from hnas.export.device.errors import Unfaithful
from hnas.export.int8.policy import LADDER
from hnas.export.proof.verification import Limits
from tests.export.compiling.playing import FITTED, exact, graded, images


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
        (0.0, {"recover_seconds": float("inf")}, list(LADDER)),
        (1e9, {}, []),
        (0.0, {"progress": lambda *_: None}, []),
        (0.0, {"recover": "bias"}, []),
    ],
)
def test_slow_recovery_shows_its_rungs_where_the_caller_does_not(
    play: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch, quiet: float, options: Any, shown: list[str]
) -> None:
    said = shown_rungs(play, monkeypatch, quiet, lambda _: None, **options)
    left = "" if "recover_seconds" in options else ", at most 600 s left"
    assert said == [f"int8: trying {rung}{left}" for rung in shown]


def test_a_rung_that_is_long_is_shown_while_it_lasts(
    play: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch, grades: None
) -> None:
    """No clock: the quiet time ends while "equalise" is tried."""
    waiting: list[Callable[[], None]] = []

    class Timer:
        def __init__(self, _: float, function: Callable[[], None]) -> None:
            self.function = function

        def start(self) -> None:
            waiting.append(self.function)

        def cancel(self) -> None:
            waiting.clear()

    def climb(rung: str) -> None:
        if rung == "equalise":
            waiting.pop()()
            monkeypatch.setattr(room, "_QUIET", 0.0)

    monkeypatch.setattr(room, "threading", SimpleNamespace(Timer=Timer))
    said = shown_rungs(play, monkeypatch, 1e9, climb)
    assert said == [f"int8: trying {rung}, at most 600 s left" for rung in ("equalise", "round", "finetune")]


def shown_rungs(
    play: Callable[..., Attempt],
    monkeypatch: pytest.MonkeyPatch,
    quiet: float,
    work: Callable[[str], None],
    **options: Any,
) -> list[str]:
    """Return the lines on rungs, of which none is good; ``work`` is done while one is tried."""
    said: list[str] = []

    class Slow:
        fitted = ()

        def climb(self, rung: str, _: float) -> Any:
            work(rung)
            return program, ({"edit": rung, "kept": True},)

    program = play(exact, "int8", calibration=images()).program
    monkeypatch.setattr(room, "_QUIET", quiet)
    monkeypatch.setattr(room, "_ladder", lambda *_: Slow())
    monkeypatch.setattr(room, "tell", said.append)
    play(graded([15] * 5), "int8", calibration=images(), **options)
    return [re.sub(r"5\d\d s", "600 s", line) for line in said if line != FITTED]


@pytest.mark.usefixtures("grades")
def test_limits_of_the_user_decide(play: Callable[..., Attempt]) -> None:
    found = play(graded([15] * 5), "int8", calibration=images(), limits=Limits(12.0, 0.0, strict=True))
    assert found.rung == "none"
