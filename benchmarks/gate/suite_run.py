"""Run a suite: calibrate, then look at every claim until its interval decides or time ends.

Call ``run_suite(Path("speed.toml"), read_suite(Path("speed.toml")), progress)``. docs/ci.md states the rules for users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hnas.benchmarks.gate import session
from hnas.benchmarks.gate.records import Ratio
from hnas.benchmarks.gate.runtimes import runtime_versions
from hnas.benchmarks.gate.suite_records import ClaimReport, SuiteReport
from hnas.benchmarks.gate.trials import LOOKS, Trial, open_trial
from hnas.benchmarks.gate.verdict import widened_ends

if TYPE_CHECKING:
    from hnas.benchmarks.gate.history import Recorded
    from hnas.benchmarks.gate.suite import Suite

_T = TypeVar("_T")
_CALIBRATION_SHARE = 0.15
_FILE_SHARE = 0.5


def run_suite(
    file: Path, suite: Suite, progress: session.Progress, recorded: Sequence[Recorded] | None = None
) -> SuiteReport:
    """Return the report on a suite.

    1. Open all files of all claims, so that a broken one is found before anything is measured.
    2. Calibrate: the first timed baseline that runs, against itself.
    3. Judge what needs no clock, and count correct answers.
    4. Look at every timed claim, and again at those that are not decided, while time is left.

    recorded: a history, with whose last comparable run each claim is compared; None: with none.

    Raises:
        ValueError: a file is broken, or a bound does not fit it.
        Unavailable: a runtime is missing.
    """
    from hnas.export.device.machine import Machine
    from hnas.export.proof.load import Watch

    clock = session.Clock(suite.seconds)
    machine = Machine.here()
    trials = [open_trial(claim, suite.seed) for claim in suite.claim]  # case 1
    timed = [trial for trial in trials if trial.claim.timed]
    for trial in timed:
        trial.width = suite.width
    if recorded is not None:
        for trial in timed:
            trial.compare_with(recorded, machine.processor)
    watch = Watch()
    tries = (_calibrate(trial, suite, clock.left, progress) for trial in timed)
    calibration = next((found for found in tries if found is not None), None)  # case 2
    low, high = widened_ends(calibration) if calibration else (1.0, 1.0)
    trusted = low <= 1 <= high
    _check_files(trials, clock, progress)  # case 3
    _look(timed, suite, clock, None if trusted else calibration, progress)  # case 4
    return SuiteReport(
        suite=str(file),
        claims=tuple(map(_report, trials)),
        calibration=calibration,
        trusted=trusted,
        seed=suite.seed,
        seconds=clock.spent,
        machine=asdict(machine),
        processor=machine.processor,
        versions=_versions(trials),
        load=watch.load() if timed else None,
    )


def _versions(trials: Sequence[Trial]) -> dict[str, str]:
    """Return the versions of the runtimes of all artifacts."""
    backends = {side.backend for trial in trials for side in (trial.artifact, trial.baseline) if side is not None}
    return {name: text for backend in sorted(backends) for name, text in runtime_versions(backend).items()}


def _check_files(trials: Sequence[Trial], clock: session.Clock, progress: session.Progress) -> None:
    """Judge what needs no clock. If a claim is timed, at most half of the time is spent on counting answers."""
    share = _FILE_SHARE if any(trial.claim.timed for trial in trials) else 1.0
    for place, trial in enumerate(trials):
        seconds = clock.left * share / (len(trials) - place)
        _guard(trial, partial(trial.check_file, session.Clock(seconds), progress))


def _calibrate(trial: Trial, suite: Suite, seconds: float, progress: session.Progress) -> Ratio | None:
    """Return the baseline of a timed claim against itself; None where its runtime fails."""
    baseline = trial.baseline
    assert baseline is not None
    found = _guard(
        trial,
        lambda: session.compare_in_rounds(
            baseline,
            (baseline,),
            trial.inputs,
            processes=suite.processes,
            clock=session.Clock(seconds * _CALIBRATION_SHARE),
            seed=suite.seed,
            compare=session.compare_fresh,
            progress=lambda doing, fraction: progress(f"calibration: {doing}", fraction),
        ),
    )
    return found[0] if found else None


def _look(
    trials: Sequence[Trial], suite: Suite, clock: session.Clock, floor: Ratio | None, progress: session.Progress
) -> None:
    """Look at each claim, up to ``LOOKS`` times.

    1. Each look has an equal share of the time, and so has its confirmation.
    2. The first look always runs. Another one runs if one process of each side fits into its share.
    """
    for look in range(LOOKS):
        undecided = [trial for trial in trials if trial.undecided]
        for place, trial in enumerate(undecided):
            share = clock.left / (len(undecided) - place) / (2 * (LOOKS - look))  # case 1
            if look and share < trial.per_process:  # case 2
                continue
            _guard(trial, partial(trial.look, share, suite.processes, floor, progress))


def _guard(trial: Trial, work: Callable[[], _T]) -> _T | None:
    """Do the work. A crash or a hang of a runtime, or inputs that it refuses, make the claim fail and return None.

    Raises:
        Unavailable: a runtime is missing.
    """
    from hnas.export.device.errors import ExportError, Unavailable

    try:
        return work()
    except Unavailable:
        raise
    except (ExportError, ValueError) as error:
        trial.fail(str(error))
        return None


def _report(trial: Trial) -> ClaimReport:
    return ClaimReport(
        name=trial.claim.name,
        measure=trial.claim.measure if trial.claim.timed else "",
        word=trial.word,
        parts=(*trial.parts, *trial.speed_parts),
        speed=trial.speed,
        noise=trial.noise,
        confirmation=trial.confirmation,
        looks=trial.looks,
        width=trial.width,
        ends=trial.ends,
        artifact=trial.artifact.digest,
        baseline=trial.baseline.digest if trial.baseline is not None else "",
    )
