"""Recover accuracy that int8 lost, by edits of the float graph: ``Ladder(program, samples).climb("equalise")``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from hnas.export.device.records import JSON
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Samples
from hnas.export.int8.calibration import activation_ranges
from hnas.export.int8.equalisation import equalise
from hnas.export.int8.finetuning import finetune
from hnas.export.int8.policy import LADDER
from hnas.export.int8.rounding import correct_biases, round_weights
from hnas.export.int8.simulation import run_samples, simulate, sqnr_db

_Edit = Callable[[Program, Samples], Program]

# The edits of each rung, in order. `finetune` trains weights for rounding to the nearest level, so no edit rounds them
# after it: that cost 6 dB on a hybrid network.
RUNGS: Mapping[str, tuple[_Edit, ...]] = {
    "bias": (correct_biases,),
    "equalise": (equalise, correct_biases),
    "round": (equalise, round_weights),
    "finetune": (equalise, correct_biases, finetune),
}
assert tuple(RUNGS) == LADDER

_SPLIT = 16  # samples from which a quarter is held out


@dataclass(frozen=True)
class _Step:
    """Hold a program after some edits, its quality, and the record of each edit."""

    program: Program
    level: float
    edits: tuple[dict[str, JSON], ...] = ()


class Ladder:
    """Edit one program for int8. Rungs that begin with the same edits share them.

    Edits are fitted to three quarters of ``samples`` and tested on the rest: every fourth. An edit is kept only if it
    raises the signal-to-noise ratio of the simulated int8 outputs on the rest. Fewer than 16 samples are used for both.

    The attribute ``fitted`` holds the samples that edits are fitted to.

    Example: ``Ladder(program, samples).climb("bias")[1]`` is
    ``({"edit": "correct_biases", "sqnr_db": [24.1, 27.3], "kept": True},)``.
    """

    def __init__(self, program: Program, samples: Samples) -> None:
        whole = len(samples) < _SPLIT
        self.fitted = list(samples) if whole else [s for index, s in enumerate(samples) if index % 4 != 3]
        self._held = list(samples) if whole else list(samples[3::4])
        self._samples, self._teacher = samples, program
        self._steps: dict[tuple[str, ...], _Step] = {}

    def climb(self, rung: str, seconds: float = float("inf")) -> tuple[Program, tuple[dict[str, JSON], ...]]:
        """Return the program with the edits of ``rung``, and a record of each edit for the artifact's notes.

        Raises:
            ValueError: the rung is unknown.
            TimeoutError: the edits took longer than ``seconds``.
        """
        if rung not in RUNGS:
            raise ValueError(f"no rung {rung!r} to recover int8 accuracy; known: {', '.join(RUNGS)}")
        with _time_limit(seconds):
            found = self._after(RUNGS[rung])
        return found.program, found.edits

    def _after(self, edits: Sequence[_Edit]) -> _Step:
        key = tuple(edit.__name__ for edit in edits)
        if key not in self._steps:
            self._steps[key] = self._edited(self._after(edits[:-1]), edits[-1]) if edits else self._start()
        return self._steps[key]

    def _start(self) -> _Step:
        self._expected = run_samples(self._teacher, self._held)
        return _Step(self._teacher, self._quality(self._teacher))

    def _edited(self, before: _Step, edit: _Edit) -> _Step:
        if edit is finetune:
            candidate = finetune(before.program, self.fitted, teacher=self._teacher)
        else:
            candidate = edit(before.program, self.fitted)
        level = self._quality(candidate)
        kept = level > before.level
        levels: list[JSON] = [round(before.level, 1), round(level, 1)]
        record: dict[str, JSON] = {"edit": edit.__name__, "sqnr_db": levels, "kept": kept}
        chosen = (candidate, level) if kept else (before.program, before.level)
        return _Step(*chosen, (*before.edits, record))

    def _quality(self, candidate: Program) -> float:
        ranges = activation_ranges(candidate, self._samples)
        return sqnr_db(self._expected, run_samples(simulate(candidate, ranges), self._held))


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError at the first operator of torch after ``seconds``. No limit costs nothing."""
    if seconds == float("inf"):
        yield
        return
    with _Deadline(time.monotonic() + seconds):
        yield


class _Deadline(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, end: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._end = end

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.monotonic() > self._end:
            raise TimeoutError("the time limit of accuracy recovery is over")
        return func(*args, **(kwargs or {}))
