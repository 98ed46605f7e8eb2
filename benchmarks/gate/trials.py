"""Open the two sides of a claim, and measure one look at them: ``open_trial(claim, seed).look(...)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.benchmarks.gate import session
from hnas.benchmarks.gate import verdict as gate
from hnas.benchmarks.gate.accuracy import LabelledSamples, count_hits, find_samples, stated_as
from hnas.benchmarks.gate.contrast import agree_on_inputs, open_side
from hnas.benchmarks.gate.gates import judge_file, judge_points
from hnas.benchmarks.gate.measures import EndsCompare, Quantile, comparer_of
from hnas.benchmarks.gate.records import Outcome, PartVerdict, Ratio
from hnas.benchmarks.gate.runtimes import require_runtime
from hnas.benchmarks.gate.suite import DELEGATED
from hnas.units import parse_shape

if TYPE_CHECKING:
    from hnas.benchmarks.gate.history import Recorded
    from hnas.benchmarks.gate.measures import EndParts
    from hnas.benchmarks.gate.suite import SuiteClaim
    from hnas.export.bundle.manifest import Manifest
    from hnas.export.device.artifact import Artifact

LOOKS = 3
LOOK_CONFIDENCE = 1 - 0.05 / LOOKS
"""Of the interval of each look, so that all looks together are wrong in at most 5 % of runs (Bonferroni)."""


@dataclass
class Trial:
    """A claim with its opened files, and what is known of it so far.

    artifact, baseline: None for a baseline that the claim does not need.
    target: of the bundle, or of the artifact.
    inputs: the seeded arrays of an artifact.
    samples: images to count on, or why there are none.
    images: how many of them.
    compare: the function that compares by the figure of the claim.
    """

    claim: SuiteClaim
    artifact: Artifact
    baseline: Artifact | None
    target: str
    inputs: Callable[[Artifact], session.Inputs]
    samples: LabelledSamples | str
    images: int
    compare: session.Compare
    seed: int
    parts: list[PartVerdict] = field(default_factory=list)
    speed_parts: list[PartVerdict] = field(default_factory=list)
    word: str = ""
    noise: Ratio | None = None
    speed: Ratio | None = None
    confirmation: Ratio | None = None
    looks: int = 0
    broken: bool = False
    reached: float | None = None  # the factor of an earlier run, less a tolerance
    width: float | None = None  # per cent by which the ends of the interval may differ
    per_process: float = 0.0  # seconds of a round, to know whether another one fits

    @property
    def undecided(self) -> bool:
        """Return whether more measurement could decide the claim, or make its interval as narrow as asked."""
        open_ = not self.speed_parts or any(part.outcome == "inconclusive" for part in self.speed_parts)
        open_ = open_ or (self.width is not None and self.speed is not None and self.speed.width > self.width)
        return self.claim.timed and not self.broken and open_ and self.confirmation is None

    @property
    def ends(self) -> dict[str, EndParts]:
        """Return the parts of a call from end to end, of the artifact and of the baseline; empty for other figures."""
        if not isinstance(self.compare, EndsCompare) or self.baseline is None:
            return {}
        sides = {"artifact": self.artifact, "baseline": self.baseline}
        found = {name: self.compare.parts(side) for name, side in sides.items()}
        return {name: parts for name, parts in found.items() if parts is not None}

    def compare_with(self, recorded: Sequence[Recorded], processor: str) -> None:
        """Require the factor of the last run that is comparable, less the tolerance of ``check``.

        1. There is no earlier timed run of this claim: not checked.
        2. All of them were on another processor, or measured another figure or another baseline: not checked.

        recorded: a history, oldest first.
        """
        asked = self.claim.measure, self.baseline.digest if self.baseline is not None else ""
        timed = [run for run in recorded if run.claim == self.claim.name and run.low is not None]
        here = [run for run in timed if run.processor == processor]
        lows = [run.low for run in here if run.low is not None and (run.measure, run.baseline) == asked]
        if lows:
            self.reached = gate.tolerated(lows[-1])
            return
        line = "every earlier run measured another figure, or against another baseline"  # case 2
        if not here:
            line = "every earlier run was on another processor" if timed else "no earlier run of this claim"
        self.parts.append(PartVerdict("record", "not checked", line))

    def check_file(self, clock: session.Clock, progress: session.Progress) -> None:
        """Judge what needs no clock, and count the correct answers of both sides if the claim bounds them."""
        progress(f"{self.claim.name}: file", 0.0)
        self.parts += judge_file(self.claim, self.artifact, self.target, self.inputs)
        if self.claim.max_points_less is not None and self.baseline is not None:
            seen, base = (
                count_hits(stated_as(each, other), each.backend, self.samples, self.images, clock, progress)
                for each, other in ((self.artifact, self.baseline), (self.baseline, self.artifact))
            )
            self.parts.append(judge_points(self.claim.max_points_less, seen, base))

    def look(self, seconds: float, processes: int, floor: Ratio | None, progress: session.Progress) -> None:
        """Measure once more in fresh processes, and judge all looks together.

        A failure is measured again, alone and in as many fresh processes. Unless that fails too, the claim is
        inconclusive.

        floor: noise that counts beside that of the baseline in the same blocks, or None.
        """
        clock = session.Clock(seconds)
        noise, speed = self._measure(seconds, processes, progress)
        self.looks += 1
        self.per_process = clock.spent / max(1, speed.processes)
        self.noise, self.speed = self._pool(self.noise, noise, processes), self._pool(self.speed, speed, processes)
        self.speed_parts = self._judge(self.speed, self.noise, floor)
        word = gate.relate(self.speed, _louder(self.noise, floor), self.claim.same_within)
        self.word = gate.worded(word, self.claim.measure)
        if any(part.outcome == "fails" for part in self.speed_parts):
            noise, self.confirmation = self._measure(seconds, self.speed.processes, progress)
            second = self._judge(self.confirmation, noise, floor)
            self.speed_parts = [_confirmed(*pair) for pair in zip(self.speed_parts, second, strict=True)]

    def fail(self, line: str) -> None:
        """Record that a runtime failed on this claim, which ends its measurement."""
        self.broken = True
        self.parts.append(PartVerdict("run", "fails", line))

    def _measure(self, seconds: float, processes: int, progress: session.Progress) -> tuple[Ratio, Ratio]:
        """Return the baseline against itself and against the artifact, from the same blocks of fresh processes."""
        assert self.baseline is not None
        self.seed += 1000  # every session has its own orders
        noise, speed = session.compare_in_rounds(
            self.baseline,
            (self.baseline, self.artifact),
            self.inputs,
            processes=processes,
            clock=session.Clock(seconds),
            seed=self.seed,
            compare=self.compare,
            progress=lambda doing, fraction: progress(f"{self.claim.name}: {doing}", fraction),
        )
        return noise, speed

    def _pool(self, before: Ratio | None, new: Ratio, planned: int) -> Ratio:
        return session.pool_rounds(
            [*(before.rounds if before else ()), *new.rounds], planned, self.seed, LOOK_CONFIDENCE
        )

    def _judge(self, speed: Ratio, noise: Ratio, floor: Ratio | None) -> list[PartVerdict]:
        """Return the verdicts on the bounds of the factor."""
        loud, found = _louder(noise, floor), list[PartVerdict]()
        if self.claim.at_least is not None:
            found.append(PartVerdict(self.claim.measure, *gate.judge_ratio(speed, loud, self.claim.at_least)))
        if self.reached is not None:
            found.append(PartVerdict("record", *gate.judge_ratio(speed, loud, self.reached)))
        if self.claim.same_within is not None:
            found.append(PartVerdict("same", *gate.judge_same(speed, loud, self.claim.same_within, self.claim.measure)))
        note = self.compare.note() if isinstance(self.compare, Quantile) else ""
        return [replace(part, line=part.line + note) for part in found]


def _louder(noise: Ratio, floor: Ratio | None) -> Ratio:
    return noise if floor is None or floor.spread < noise.spread else floor


def _confirmed(first: PartVerdict, second: PartVerdict) -> PartVerdict:
    """Return the first verdict, with a failure only where the second session fails too."""
    if first.outcome != "fails":
        return first
    if second.outcome == "fails":
        return PartVerdict(first.name, "fails", f"{first.line}; confirmed in fresh processes: {second.line}")
    outcome: Outcome = "inconclusive"
    return PartVerdict(first.name, outcome, f"{first.line}; not confirmed in fresh processes: {second.line}")


def open_trial(claim: SuiteClaim, seed: int) -> Trial:
    """Open both sides of a claim, before anything is measured.

    Raises:
        ValueError: a file is broken, a baseline is missing, inputs do not agree, or a bound does not fit the files.
        Unavailable: a runtime is missing.
    """
    own, artifact = open_side(Path(claim.artifact))
    other, baseline = open_side(Path(claim.baseline)) if claim.baseline else (own, own.baseline() if own else None)
    paired = claim.timed or claim.max_points_less is not None
    if paired and baseline is None:
        raise ValueError(f"claim {claim.name!r}: {claim.artifact} has no baseline; add baseline = ...")
    sides = [artifact, *([baseline] if paired and baseline is not None else [])]
    for backend in dict.fromkeys(side.backend for side in sides):
        require_runtime(backend)
    _check_bounds(claim, artifact)
    manifests = [bundle.manifest for bundle in (own, other) if bundle is not None]
    samples, images = _samples(claim, manifests)
    return Trial(
        claim=claim,
        artifact=artifact,
        baseline=baseline if paired else None,
        target=own.manifest.target if own else artifact.device,
        inputs=_inputs(claim, artifact, sides[-1], seed),
        samples=samples,
        images=images,
        compare=comparer_of(claim.measure, _pixels(claim, manifests, sides)),
        seed=seed,
    )


def _inputs(
    claim: SuiteClaim, artifact: Artifact, baseline: Artifact, seed: int
) -> Callable[[Artifact], session.Inputs]:
    """Return the function that makes the seeded arrays of one side.

    Raises:
        ValueError: no side states its inputs, or ``input_shapes`` differ from those that a side states.
    """
    shapes = [parse_shape(text) for text in claim.input_shapes]
    for side in (artifact, baseline) if shapes else ():
        stated = [(tensor.shape, tensor.dtype) for tensor in side.inputs]
        if stated and stated != [(shape, "float32") for shape in shapes]:
            reads = ", ".join(f"{'x'.join(map(str, shape))} {dtype}" for shape, dtype in stated)
            raise ValueError(f"claim {claim.name!r}: input_shapes do not fit {side.source}, which reads {reads}")
    if claim.run and not shapes and not artifact.inputs and not baseline.inputs:
        hint = 'add input_shapes = ["1x3x224x224"]'
        raise ValueError(f"claim {claim.name!r}: a model file does not state the shapes of its inputs; {hint}")
    read = agree_on_inputs(artifact, baseline, shapes) if claim.run else ((), ())
    return lambda each: session.seeded_inputs(read[each.digest != artifact.digest], seed)


def _check_bounds(claim: SuiteClaim, artifact: Artifact) -> None:
    """Raise ValueError if a bound cannot be checked on such a file."""
    from hnas.export import backends

    if claim.max_macs is not None and artifact.model.suffix != ".onnx":
        raise ValueError(f"claim {claim.name!r}: max_macs counts in .onnx files, {artifact.model.name} is none")
    if claim.inspected:
        backends.inspector(artifact.backend)
    for key in DELEGATED:
        if getattr(claim, key) is not None and artifact.backend != "tflite":
            told = f"the backend of {artifact.source.name} is {artifact.backend}"
            raise ValueError(f"claim {claim.name!r}: {key} is about XNNPACK in LiteRT, and {told}")


def _samples(claim: SuiteClaim, manifests: list[Manifest]) -> tuple[LabelledSamples | str, int]:
    """Return the images on which points are counted, and their number. Raise ValueError if no bundle names them."""
    if claim.max_points_less is None:
        return "no points are claimed", 0
    named = next((each for each in manifests if each.accuracy is not None), None)
    if named is None or named.accuracy is None:
        raise ValueError(f"claim {claim.name!r}: max_points_less needs a bundle, which names the images and their size")
    return find_samples(named, Path(claim.data) if claim.data else None), named.accuracy.n


def _pixels(claim: SuiteClaim, manifests: list[Manifest], sides: list[Artifact]) -> dict[str, session.Inputs]:
    """Return an image with its preprocessing for each side, where a bundle states one that fits its input."""
    from hnas.data.images import Preprocessing
    from hnas.deployment.ends import preprocessing_arrays

    stated = next((each.input.preprocessing for each in manifests if each.input and each.input.preprocessing), None)
    if claim.measure != "end_to_end" or stated is None:
        return {}
    prepare = Preprocessing.from_json(stated)
    shape = (1, prepare.channels, *prepare.size)
    fit = all([tensor.shape for tensor in side.inputs] == [shape] for side in sides)
    return {side.digest: preprocessing_arrays(prepare) for side in sides} if fit else {}
