"""Test one program on one backend: check that the compiled file computes what the program computes.

Call ``TrialBench.judge``. Fuzzing runs thousands of trials, and a reduction one for each candidate. So the workers that
run the files stay open between trials.
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
from hnas.export.int8.calibration import activation_ranges
from hnas.export.int8.ranges import Range
from hnas.export.int8.simulation import quantised, run_samples, simulate, sqnr_db
from hnas.export.proof.verification import LIMITS, check
from hnas.export.remote.worker import Worker

Call = tuple[Tensor, ...]
Arrays = tuple[NDArray[Any], ...]
Outcome = Literal["holds", "mismatch", "refused", "broken", "unjudged"]

_ANYWHERE = "onnxruntime-cpu"  # the profile for the reference backend, which has none of its own

# Tolerance below the worse of two simulations: runtimes also round other values, and with other scales.
_MARGIN_DB = 10.0
_GRID_DB = 40.0  # largest SQNR that int8 must reach: with few values, a simulation can be exact by chance
_WIDER = (1.0, 1.07)  # factors on the ranges; a value that is exact by chance on one grid is not exact on the other
_EXACT_DB = 110.0  # SQNR of eager float32 against float64; a program below this limit amplifies rounding errors
_SLACK_DB = 15.0  # tolerance below the float32 SQNR of a program that amplifies rounding errors


@dataclass(frozen=True)
class Setting:
    """Hold the options for compiling a program.

    backend, precision: name of the backend, and precision of the file.
    device: name of a device profile; empty for this machine.
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
        """Return the profile of the device that the file is compiled for; default this machine."""
        if not self.device and (here := hw_profiles.local_devices().get(self.backend)):
            return here
        return hw_profiles.load(self.device or (_ANYWHERE if self.backend == "reference" else f"{self.backend}-cpu"))

    @property
    def chosen(self) -> tuple[Pass, ...]:
        """Return the passes. ``passes`` may name passes of any backend; raise ValueError for an unknown name."""
        if self.passes is None:
            return passes_for(self.backend)
        known = {each.__name__: each for backend in backends.names() for each in passes_for(backend)}
        for name in self.passes:
            if name not in known:
                raise ValueError(f"no pass {name!r}; known: {', '.join(known)}")
        return tuple(known[name] for name in self.passes)

    def check(self) -> None:
        """Raise ValueError if the name of the backend, the device or a pass is unknown."""
        backends.load(self.backend)
        _ = self.profile, self.chosen

    def line(self) -> str:
        """Return the setting in one line for a person."""
        passes = "" if self.passes is None else f", passes: {', '.join(self.passes) or 'none'}"
        return f"{self.backend} {self.precision}{passes}"

    def to_json(self) -> dict[str, JSON]:
        """Return the fields as JSON values."""
        return {**asdict(self), "passes": None if self.passes is None else list(self.passes)}


@dataclass(frozen=True)
class TrialVerdict:
    """Hold the result of a trial. ``outcome`` is one of:

    1. holds: the file computes what the program computes.
    2. mismatch: the outputs differ too much, and no error was raised.
    3. refused: hnas raised an ExportError while compiling, with one line that names the cause.
    4. broken: a pass, converter or runtime failed in any other way: another error, a crash, or a timeout.
    5. unjudged: int8 rounding alone reduces the SQNR of this program so much that nothing can be concluded.

    sqnr_db: the SQNR of the worst output; None if no file ran.
    limit_db: the SQNR that was required.
    """

    outcome: Outcome
    line: str
    sqnr_db: float | None = None
    limit_db: float | None = None

    @property
    def failed(self) -> bool:
        """Return True for the outcomes mismatch and broken."""
        return self.outcome in ("mismatch", "broken")


class TrialBench:
    """Run trials one after the other, with one open worker for each backend. A context manager.

    timeout: seconds for each request to a worker.
    converter: True uses litert-torch, which takes seconds, for a program that hnas's own TFLite writer does not cover.
        False refuses such a program.

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
            return TrialVerdict("refused", str(error))  # case 3
        except Exception as error:  # noqa: BLE001  # passes, converters and runtimes may raise anything
            return TrialVerdict("broken", f"{setting.line()}: {one_line(error, 400)}")  # case 4
        try:
            found = check([tuple(value.numpy() for value in each) for each in wanted], got, setting.precision)
        except ValueError as error:  # other shapes, or another number of outputs
            return TrialVerdict("mismatch", f"{setting.line()}: {error}")
        line = f"{setting.line()}: SQNR {found.sqnr_db:.1f} dB, at least {limit:.1f} dB expected"
        if found.max_error == float("inf"):
            line = f"{setting.line()}: the output is not finite where the program's is"
        outcome: Outcome = "holds" if found.sqnr_db >= limit else "mismatch"  # cases 1 and 2
        if outcome == "mismatch" and setting.precision == "int8" and limit < LIMITS["int8"].sqnr_db:
            outcome = "unjudged"  # case 5
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
            except Unavailable:
                raise
            except ExportError as error:
                raise _Refused(str(error)) from error
            worker = self._workers.get(setting.backend)
            if worker is None or not worker.alive:
                worker = self._workers[setting.backend] = Worker(artifact, timeout=self._timeout)
            else:
                worker.open(artifact)
            return worker.outputs(arrays)


class _Refused(Exception):
    """Signal an ExportError while compiling (case 3 of ``TrialVerdict``)."""


def _require_emitter(program: Program) -> None:
    """Raise ExportError if hnas's own TFLite writer lacks an operator of the program."""
    from hnas.export.backends.tflite import writer as emitter

    try:
        emitter.lower(emitter.prepare(program))
    except emitter.Unsupported as error:
        raise ExportError(f"hnas's own TFLite writer has no {error}") from None


def limit_db(program: Program, calls: Sequence[Call], precision: str, exact: float = math.inf) -> float:
    """Return the SQNR in dB that a correct file reaches on these calls.

    1. Float: the limit of the precision. The limit is lower if the program amplifies rounding errors: if eager float32,
       or ``expected``, is below ``_EXACT_DB`` against float64.
    2. int8: the SQNR of the worse of two simulations, minus ``_MARGIN_DB``. One simulation rounds the inputs of layers
       and additions (`simulate`), the other every value of the graph. Runtimes round something between. Each simulation
       runs on two grids, and the limit is at most ``_GRID_DB``, because few values can be exact on one grid by chance.

    exact: SQNR of ``expected`` against float64 in dB, see ``TrialBench.judge``.
    """
    if precision != "int8":  # case 1
        exact = min(exact, exactness_db(program, calls))
        table = LIMITS[precision].sqnr_db
        return table if exact >= _EXACT_DB else min(table, exact - _SLACK_DB)
    data = [tuple(value.numpy() for value in call) for call in calls]  # case 2
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
