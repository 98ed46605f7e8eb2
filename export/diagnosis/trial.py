"""Test one program on one backend: does the written file compute what the program does, at its precision?

Call ``TrialBench.judge``. Fuzzing makes thousands of trials, and a reduction one for each candidate; so the workers
that run the files stay open between trials.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Literal, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.backends.artifacts import make_artifact
from hnas.export.device.errors import ExportError, Unavailable, one_line
from hnas.export.device.records import JSON
from hnas.export.graph.fusion import Pass, fuse, passes_for
from hnas.export.graph.program import Program
from hnas.export.int8.calibration import Range, activation_ranges
from hnas.export.int8.simulation import quantised, run_samples, simulate, sqnr_db
from hnas.export.proof.verification import LIMITS, check
from hnas.export.remote.worker import Worker

Call = tuple[Tensor, ...]
Arrays = tuple[NDArray[Any], ...]
Outcome = Literal["holds", "mismatch", "refused", "broken", "unjudged"]

_ANYWHERE = "onnxruntime-cpu"  # the profile for the reference backend, which has none of its own

# Tolerance below the worse of two simulations: runtimes also round elsewhere, and at other scales.
_MARGIN_DB = 10.0
_GRID_DB = 40.0  # most that is required of int8: with few values a simulation can be exact by chance
_WIDER = (1.0, 1.07)  # factors on the ranges: a value that is exact by chance on one grid is not on the other
_EXACT_DB = 110.0  # eager float32 against float64; below it, a program amplifies rounding
_SLACK_DB = 15.0  # tolerance below its own float32 rounding, for a program that amplifies rounding


@dataclass(frozen=True)
class Setting:
    """The options for compiling a program.

    device: name of a profile; empty for this machine.
    passes: names of the passes to run, in order; None for the backend's own.
    """

    backend: str
    precision: str = "fp32"
    device: str = ""
    passes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.precision not in LIMITS:
            raise ValueError(f"no precision {self.precision!r}; known: {', '.join(LIMITS)}")

    @property
    def profile(self) -> hw_profiles.Device:
        """The device that the file is compiled for; default this machine."""
        if not self.device and (here := hw_profiles.local_devices().get(self.backend)):
            return here
        return hw_profiles.load(self.device or (_ANYWHERE if self.backend == "reference" else f"{self.backend}-cpu"))

    @property
    def chosen(self) -> tuple[Pass, ...]:
        """The passes; those of every backend can be named."""
        if self.passes is None:
            return passes_for(self.backend)
        known = {each.__name__: each for backend in backends.names() for each in passes_for(backend)}
        for name in self.passes:
            if name not in known:
                raise ValueError(f"no pass {name!r}; known: {', '.join(known)}")
        return tuple(known[name] for name in self.passes)

    def line(self) -> str:
        """Return the setting in one line for a person."""
        passes = "" if self.passes is None else f", passes: {', '.join(self.passes) or 'none'}"
        return f"{self.backend} {self.precision}{passes}"

    def to_json(self) -> dict[str, JSON]:
        """Return the fields as JSON values."""
        return {**asdict(self), "passes": None if self.passes is None else list(self.passes)}


@dataclass(frozen=True)
class TrialVerdict:
    """The result of a trial; ``outcome`` is one of:

    1. holds: the file computes what the program does.
    2. mismatch: it does not, and no error was raised.
    3. refused: one line of ours says what cannot be compiled.
    4. broken: a converter or runtime failed without such a line: by its own error, a crash, or a timeout.
    5. unjudged: int8 itself leaves so little of the signal here that nothing can be concluded.

    sqnr_db: of the worst output; None where no file ran.
    limit_db: the SQNR that was required.
    """

    outcome: Outcome
    line: str
    sqnr_db: float | None = None
    limit_db: float | None = None

    @property
    def failed(self) -> bool:
        """True for a fault: a mismatch, or broken."""
        return self.outcome in ("mismatch", "broken")


class TrialBench:
    """Run trials one after the other, with one open worker for each backend. A context manager.

    timeout: seconds for one answer of a worker.
    converter: allow litert-torch, which takes seconds, for a program that our TFLite emitter does not cover. If False,
    such a program is refused.

    Example: ``with TrialBench() as bench: print(bench.judge(program, calls, Setting("openvino")).line)``
    """

    def __init__(self, timeout: float = 60.0, *, converter: bool = True) -> None:
        self._timeout, self._converter = timeout, converter
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the workers."""
        while self._workers:
            self._workers.popitem()[1].close()

    def judge(
        self,
        program: Program,
        calls: Sequence[Call],
        setting: Setting,
        expected: Sequence[Call] | None = None,
        exact: float = math.inf,
    ) -> TrialVerdict:
        """Compile the program, run the saved file on ``calls``, and compare its outputs with the expected ones.

        int8 is calibrated on ``calls``, so that no value is out of range.

        calls: inputs, one tuple for each call.
        expected: outputs for each call; None for those of eager torch.
        exact: SQNR of ``expected`` against float64 in dB, where another program computed it.

        Raises:
            Unavailable: the runtime is missing.
        """
        wanted = [program(*call) for call in calls] if expected is None else expected
        limit = limit_db(program, calls, setting.precision, exact)
        try:
            got = self._outputs(program, calls, setting)
        except Unavailable:
            raise
        except _Refused as error:
            return TrialVerdict("refused", str(error))
        except Exception as error:  # noqa: BLE001  # passes, converters and runtimes may raise anything
            return TrialVerdict("broken", f"{setting.line()}: {one_line(error, 400)}")
        try:
            found = check([tuple(value.numpy() for value in each) for each in wanted], got, setting.precision)
        except ValueError as error:  # other shapes, or another number of outputs
            return TrialVerdict("mismatch", f"{setting.line()}: {error}")
        line = f"{setting.line()}: SQNR {found.sqnr_db:.1f} dB, at least {limit:.1f} dB expected"
        if found.max_error == float("inf"):
            line = f"{setting.line()}: the output is not finite where the program's is"
        outcome: Outcome = "holds" if found.sqnr_db >= limit else "mismatch"
        if outcome == "mismatch" and setting.precision == "int8" and limit < LIMITS["int8"].sqnr_db:
            outcome = "unjudged"
        return TrialVerdict(outcome, line, found.sqnr_db, limit)

    def _outputs(self, program: Program, calls: Sequence[Call], setting: Setting) -> list[Arrays]:
        arrays = [tuple(value.numpy() for value in call) for call in calls]
        fused = fuse(program, setting.chosen)
        with TemporaryDirectory() as folder:
            try:
                if setting.backend == "tflite" and not self._converter:
                    _require_emitter(fused)
                artifact = make_artifact(
                    setting.backend,
                    fused,
                    Path(folder),
                    precision=setting.precision,
                    device=setting.profile,
                    calibration=arrays if setting.precision == "int8" else None,
                )
            except ExportError as error:
                raise _Refused(str(error)) from error
            worker = self._workers.get(setting.backend)
            if worker is None or not worker.alive:
                worker = self._workers[setting.backend] = Worker(artifact, timeout=self._timeout)
            else:
                worker.open(artifact)
            return worker.outputs(arrays)


class _Refused(Exception):
    """Raised with our own line on what cannot be compiled."""


def _require_emitter(program: Program) -> None:
    """Raise ExportError with the name of an operator that our emitter lacks."""
    from hnas.export.backends.tflite import writer as emitter

    try:
        emitter.lower(emitter.prepare(program))
    except emitter.Unsupported as error:
        raise ExportError(f"our emitter has no {error}") from None


def limit_db(program: Program, calls: Sequence[Call], precision: str, exact: float = math.inf) -> float:
    """Return the SQNR in dB that a correct file reaches on these calls.

    1. Float: the limit of the precision. It is lower where eager float32 differs that much from float64 on this
       program, or ``expected`` does (``exact``, see ``TrialBench.judge``).
    2. int8: the SQNR of the worse of two simulations, less a margin. One rounds the inputs of layers and additions
       (`simulate`), the other every value of the graph; runtimes lie between the two. Each simulation runs on two
       grids, and no more than ``_GRID_DB`` is required, because few values can be exact on one grid by chance.
    """
    if precision != "int8":
        exact = min(exact, exactness_db(program, calls))
        table = LIMITS[precision].sqnr_db
        return table if exact >= _EXACT_DB else min(table, exact - _SLACK_DB)
    data = [tuple(value.numpy() for value in call) for call in calls]
    ranges = activation_ranges(program, data)
    expected = [program(*call) for call in calls]
    reached = [_GRID_DB]
    for factor in _WIDER:
        wider = {name: (low * factor, high * factor) for name, (low, high) in ranges.items()}
        rounded = simulate(program, wider)
        every = [_rounded_everywhere(rounded, wider, call) for call in calls]
        reached += [sqnr_db(expected, run_samples(rounded, data)), sqnr_db(expected, every)]
    return min(reached) - _MARGIN_DB


def exactness_db(program: Program, calls: Sequence[Call]) -> float:
    """Return the SQNR of eager float32 against float64 in dB; 200 where the graph cannot be converted to float64."""
    try:
        double = copy.deepcopy(program.module).double()
        exact = [
            Program(double, ())(*(value.double() if value.is_floating_point() else value for value in call))
            for call in calls
        ]
    except RuntimeError:
        return 200.0
    return sqnr_db(exact, [program(*call) for call in calls])


def _rounded_everywhere(simulated: Program, ranges: Mapping[str, Range], call: Call) -> Call:
    class Rounded(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in ranges and isinstance(value, Tensor):
                return quantised(value, ranges[n.name])
            return value

    with torch.no_grad():
        found = Rounded(simulated.module).run(*call)
    return found if isinstance(found, tuple) else (found,)


def stacked(calls: Sequence[Call]) -> Call:
    """Return calls of batch 1 as one call of a batch."""
    return tuple(torch.cat(values) for values in zip(*calls, strict=True))
