"""Recover accuracy that int8 lost, by edits of the float graph: ``recover(program, samples, "equalise")``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def recover(program: Program, samples: Samples, rung: str) -> tuple[Program, list[JSON]]:
    """Return the program with the edits of ``rung``, and a record of each edit for the artifact's notes.

    Edits are fitted to three quarters of ``samples`` and tested on the rest. An edit is kept only if it raises the
    signal-to-noise ratio of the simulated int8 outputs on the rest. Fewer than 16 samples are used for both.

    Raises:
        ValueError: the rung is unknown.

    Example: ``recover(program, samples, "bias")[1]`` is
    ``[{"edit": "correct_biases", "sqnr_db": [24.1, 27.3], "kept": True}]``.
    """
    if rung not in RUNGS:
        raise ValueError(f"no rung {rung!r} to recover int8 accuracy; known: {', '.join(RUNGS)}")
    cut = len(samples) * 3 // 4 if len(samples) >= 16 else len(samples)
    fitted, held = samples[:cut], samples[cut:] or samples
    expected = run_samples(program, held)

    def quality(candidate: Program) -> float:
        ranges = activation_ranges(candidate, samples)
        return sqnr_db(expected, run_samples(simulate(candidate, ranges), held))

    teacher, best = program, quality(program)
    edits: list[JSON] = []
    for edit in RUNGS[rung]:
        candidate = finetune(program, fitted, teacher=teacher) if edit is finetune else edit(program, fitted)
        found = quality(candidate)
        kept = found > best
        edits.append({"edit": edit.__name__, "sqnr_db": [round(best, 1), round(found, 1)], "kept": kept})
        if kept:
            program, best = candidate, found
    return program, edits
