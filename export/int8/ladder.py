"""What int8 lost, won back: edits of the float graph in order of their cost, each kept only where it helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hnas.export.device.records import JSON
from hnas.export.graph.program import Program
from hnas.export.graph.samples import Arrays
from hnas.export.int8.calibration import activation_ranges
from hnas.export.int8.equalisation import equalise
from hnas.export.int8.finetuning import finetune
from hnas.export.int8.policy import LADDER
from hnas.export.int8.rounding import correct_biases, round_weights
from hnas.export.int8.simulation import outputs, simulate, sqnr_db

Edit = Callable[[Program, Sequence[Arrays]], Program]

# The edits of a rung in the order in which they are made. Nothing rounds after `finetune`: it has trained the weights
# for the nearest level, and turning them over cost 6 dB on a hybrid net.
RUNGS: Mapping[str, tuple[Edit, ...]] = {
    "bias": (correct_biases,),
    "equalise": (equalise, correct_biases),
    "round": (equalise, round_weights),
    "finetune": (equalise, correct_biases, finetune),
}
assert tuple(RUNGS) == LADDER


def recover(program: Program, data: Sequence[Arrays], rung: str) -> tuple[Program, list[JSON]]:
    """The program with the edits of ``rung``, and what each of them did to the simulated int8 output.

    Edits are fitted to three quarters of ``data`` and judged on the rest: one that does not raise the signal-to-noise
    ratio of the simulated int8 outputs there is left out. With fewer than 16 samples both are all of them.
    ValueError for an unknown rung.
    """
    if rung not in RUNGS:
        raise ValueError(f"no rung {rung!r} to recover int8 accuracy; known: {', '.join(RUNGS)}")
    cut = len(data) * 3 // 4 if len(data) >= 16 else len(data)
    fitted, held = data[:cut], data[cut:] or data
    expected = outputs(program, held)

    def level(candidate: Program) -> float:
        ranges = activation_ranges(candidate, data)
        return sqnr_db(expected, outputs(simulate(candidate, ranges), held))

    teacher, best = program, level(program)
    edits: list[JSON] = []
    for edit in RUNGS[rung]:
        candidate = finetune(program, fitted, teacher=teacher) if edit is finetune else edit(program, fitted)
        found = level(candidate)
        kept = found > best
        edits.append({"edit": edit.__name__, "sqnr_db": [round(best, 1), round(found, 1)], "kept": kept})
        if kept:
            program, best = candidate, found
    return program, edits
