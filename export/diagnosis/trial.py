"""One question to one backend: does the file that it writes compute what the program says, at its precision?

What fuzzing asks thousands of times and a reduction asks of every candidate, so the workers that run files stay warm.
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
from hnas.export.int8.simulation import outputs, quantised, simulate, sqnr_db
from hnas.export.proof.verification import LIMITS, check
from hnas.export.remote.worker import Worker

Call = tuple[Tensor, ...]
Arrays = tuple[NDArray[Any], ...]
Outcome = Literal["holds", "mismatch", "refused", "broken", "unjudged"]

_ANYWHERE = "onnxruntime-cpu"  # the profile for the reference backend, which has none of its own

# What a runtime may lose beyond the coarser of two simulations: it rounds where they do not, and scales differ.
_MARGIN_DB = 10.0
_GRID_DB = 40.0  # no more is asked of eight bits: on few values a simulation is exact by chance
_WIDER = (1.0, 1.07)  # grids that are tried: what is exact by chance on one is not on the other
_EXACT_DB = 110.0  # of eager float32 against float64; a program that reaches less amplifies any rounding
_SLACK_DB = 15.0  # below its own float32 rounding, for a program that amplifies it


@dataclass(frozen=True)
class Setting:
    """How a program becomes a file. ``passes``: the names of those to run, in order; None for those of the backend."""

    backend: str
    precision: str = "fp32"
    device: str = ""
    passes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.precision not in LIMITS:
            raise ValueError(f"no precision {self.precision!r}; known: {', '.join(LIMITS)}")

    @property
    def profile(self) -> hw_profiles.Device:
        """The device that the file is for: by default this machine."""
        if not self.device and (here := hw_profiles.local_devices().get(self.backend)):
            return here
        return hw_profiles.load(self.device or (_ANYWHERE if self.backend == "reference" else f"{self.backend}-cpu"))

    @property
    def chosen(self) -> tuple[Pass, ...]:
        """The passes; any of any backend can be named."""
        if self.passes is None:
            return passes_for(self.backend)
        known = {each.__name__: each for backend in backends.names() for each in passes_for(backend)}
        for name in self.passes:
            if name not in known:
                raise ValueError(f"no pass {name!r}; known: {', '.join(known)}")
        return tuple(known[name] for name in self.passes)

    def words(self) -> str:
        """The setting for a person."""
        passes = "" if self.passes is None else f", passes: {', '.join(self.passes) or 'none'}"
        return f"{self.backend} {self.precision}{passes}"

    def to_json(self) -> dict[str, JSON]:
        """The fields as plain values."""
        return {**asdict(self), "passes": None if self.passes is None else list(self.passes)}


@dataclass(frozen=True)
class Verdict:
    """What came of a trial.

    1. holds: the file computes what the program says.
    2. mismatch: it does not, and nothing told so.
    3. refused: one line says what cannot be compiled.
    4. broken: a converter or runtime failed without such a line, by an error of its own, a crash, a hang.
    5. unjudged: int8 by itself leaves so little of the signal here that nothing can be told.

    ``sqnr_db`` is that of the worst output, ``limit_db`` what it had to reach; None where no file ran.
    """

    outcome: Outcome
    line: str
    sqnr_db: float | None = None
    limit_db: float | None = None

    @property
    def failed(self) -> bool:
        """Whether this is a fault."""
        return self.outcome in ("mismatch", "broken")


class Bench:
    """Trials in turn, with one warm worker a backend; a context manager.

    converter: a program that our own TFLite emitter does not cover goes through litert-torch, which takes seconds;
    otherwise it is refused.
    """

    def __init__(self, timeout: float = 60.0, *, converter: bool = True) -> None:
        self._timeout, self._converter = timeout, converter
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        while self._workers:
            self._workers.popitem()[1].close()

    def judge(
        self,
        program: Program,
        calls: Sequence[Call],
        setting: Setting,
        expected: Sequence[Call] | None = None,
        exact: float = math.inf,
    ) -> Verdict:
        """Compile the program, run the saved file on ``calls``, and hold it against ``expected`` (None: eager torch).

        exact: how near ``expected`` is to what float64 would say, in dB, where another program gave it. int8 is
        calibrated on the calls themselves, so that no value is out of range. Unavailable where the runtime is.
        """
        wanted = [program(*call) for call in calls] if expected is None else expected
        limit = limit_db(program, calls, setting.precision, exact)
        try:
            got = self._outputs(program, calls, setting)
        except Unavailable:
            raise
        except _Refused as error:
            return Verdict("refused", str(error))
        except Exception as error:  # noqa: BLE001  # passes, converters and runtimes raise whatever they like
            return Verdict("broken", f"{setting.words()}: {one_line(error, 400)}")
        try:
            found = check([tuple(value.numpy() for value in each) for each in wanted], got, setting.precision)
        except ValueError as error:  # other shapes, or another number of outputs
            return Verdict("mismatch", f"{setting.words()}: {error}")
        line = f"{setting.words()}: SQNR {found.sqnr_db:.1f} dB, at least {limit:.1f} dB expected"
        if found.max_error == float("inf"):
            line = f"{setting.words()}: the output is not finite where the program's is"
        outcome: Outcome = "holds" if found.sqnr_db >= limit else "mismatch"
        if outcome == "mismatch" and setting.precision == "int8" and limit < LIMITS["int8"].sqnr_db:
            outcome = "unjudged"
        return Verdict(outcome, line, found.sqnr_db, limit)

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
    """A line of our own says what cannot be compiled."""


def _require_emitter(program: Program) -> None:
    """ExportError names what our own emitter lacks."""
    from hnas.export.backends.tflite import writer as emitter

    try:
        emitter.lower(emitter.prepare(program))
    except emitter.Unsupported as error:
        raise ExportError(f"our emitter has no {error}") from None


def limit_db(program: Program, calls: Sequence[Call], precision: str, exact: float = math.inf) -> float:
    """The signal to noise that a right file reaches on these calls, in dB.

    1. Float: the limit of the precision; less where float32 itself strays that far from float64 on this program, or
       strayed in what the file is held against (``exact``, as in ``Bench.judge``).
    2. int8: that of the coarser simulation less a margin. One rounds what layers and additions read (`simulate`), the
       other every value of the graph: runtimes lie between the two. What int8 loses by itself is no fault of a file.
       Each is run on two grids, and no more than GRID_DB counts: few values lie on a grid by chance.
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
        reached += [sqnr_db(expected, outputs(rounded, data)), sqnr_db(expected, every)]
    return min(reached) - _MARGIN_DB


def exactness_db(program: Program, calls: Sequence[Call]) -> float:
    """How near eager float32 is to float64 on these calls, in dB; 200 where the graph insists on its types."""
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
    """Calls of batch 1 as one call of a batch."""
    return tuple(torch.cat(values) for values in zip(*calls, strict=True))
