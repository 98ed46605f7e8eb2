"""Gather the samples of one compilation, and judge artifacts on them.

``gather(source, calibration, "int8", options).judge(artifact, Worker)``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hnas.export.compiling import contradiction
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import Unfaithful
from hnas.export.graph.samples import to_samples
from hnas.export.proof.verification import Check, Limits, check

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnas.export.compiling.options import CompileOptions
    from hnas.export.compiling.originals import Captured
    from hnas.export.graph.samples import Sample, SampleLike, Samples
    from hnas.export.proof.verification import Outputs
    from hnas.export.remote.worker import Worker

_BROKEN_DB = 10.0  # below this, int8 is broken on the examples: the noise is more than a tenth of the signal
_ALIKE_DB = 200.0
_FITTED = "graded on the calibration samples, to which int8 was fitted; other samples may fare worse"


@dataclass(frozen=True)
class Judgement:
    """Hold the result of one artifact.

    check: the comparison with the network.
    examples_db: SQNR on the example inputs; None where they are among the other samples.
    """

    check: Check
    examples_db: float | None


@dataclass(frozen=True)
class EvidenceSet:
    """Hold the samples of one compilation, and what an artifact must reach on them.

    calibration: the samples that int8 is fitted to; None if there are none.
    samples: the samples on which an artifact is verified.
    examples: the example inputs, where int8 is judged on them apart from ``samples``; else None.
    clash: the difference of scale between calibration and examples; None if there is none.
    """

    source: Captured
    calibration: Samples | None
    samples: Samples
    examples: Sample | None
    clash: contradiction.Contradiction | None
    classifier: bool
    limits: Limits | None

    @cached_property
    def expected(self) -> Outputs:
        """Return the outputs of the original network, those on ``examples`` last."""
        return self.source.outputs(self._inputs)

    @cached_property
    def sensitivity_db(self) -> float:
        """Return the smaller of two SQNRs of the network in dB.

        1. Against itself, with inputs that are changed by one unit in the last place.
        2. Of float32 against float64.
        """
        rng = np.random.default_rng(0)
        moved = [tuple(_by_one_unit(value, rng) for value in sample) for sample in self._inputs]
        levels = [_level(self.expected, self.source.outputs(moved)), *self.source.rounding_db(self._inputs)]
        return min(levels)

    def remarks(self, precision: str) -> list[str]:
        """Return sentences on what this evidence cannot show of an artifact in ``precision``."""
        found = []
        if self.calibration is not None and contradiction.carries_nothing(self.source.examples):
            found.append("the example inputs are constant, so the calibration samples could not be compared with them")
        if precision == "int8" and set(map(_digest, self.samples)) == set(map(_digest, self.calibration or ())):
            found.append(_FITTED)
        return found

    def judge(self, artifact: Artifact, open_worker: Callable[[Artifact], Worker]) -> Callable[..., Judgement]:
        """Run the artifact in a new process. Return a function from indices of ``samples`` to the judgement on them."""
        with open_worker(Artifact.read(artifact.source)) as worker:
            got = worker.outputs(self._inputs)
        level = self._examples_level(got)

        def on(indices: Sequence[int]) -> Judgement:
            found = self._check(artifact, got, indices, None)
            if artifact.precision == "fp32" and not found.passed:
                found = self._check(artifact, got, indices, self.sensitivity_db)
            return Judgement(found, level)

        return on

    def on_examples(self, judged: Judgement) -> tuple[str, ...]:
        """Return a remark where int8 is broken on the example inputs.

        1. The examples have another scale than the calibration samples: refused.
        2. The examples are no noise: refused.
        3. The examples may be noise, which is no input of the network: a remark.

        Raises:
            Unfaithful: cases 1 and 2.
        """
        if judged.examples_db is None or judged.examples_db >= _BROKEN_DB:
            return ()
        found = f"int8 has {judged.check.sqnr_db:.1f} dB on the calibration samples, {judged.examples_db:.1f} dB on the"
        if self.clash is not None and self.clash.ratio > contradiction.SUSPICIOUS:  # case 1
            raise Unfaithful(f"{found} example inputs: {self.clash.words}; calibrate on inputs like the examples")
        if not contradiction.is_placeholder(self.source.examples):  # case 2
            raise Unfaithful(f"{found} example inputs; calibrate on inputs like the examples")
        return (f"{found} example inputs, which seem to be noise; pass real ones",)

    def fitting(self, precision: str) -> Samples | None:
        """Return the samples that ``precision`` is fitted to: int8 its ranges, fp16 what must stay in fp32."""
        return {"int8": self.calibration, "fp16": self.calibration or self.samples}.get(precision)

    def unseen(self, fitted: Samples) -> list[int]:
        """Return the indices of the samples that are not among ``fitted``."""
        known = {_digest(sample) for sample in fitted}
        return [index for index, sample in enumerate(self.samples) if _digest(sample) not in known]

    @property
    def _inputs(self) -> Samples:
        return self.samples if self.examples is None else [*self.samples, self.examples]

    def _check(self, artifact: Artifact, got: Outputs, indices: Sequence[int], sensitivity_db: float | None) -> Check:
        return check(
            [self.expected[index] for index in indices],
            [got[index] for index in indices],
            artifact.precision,
            names=[tensor.name for tensor in artifact.outputs],
            classifier=self.classifier,
            limits=self.limits,
            sensitivity_db=sensitivity_db,
        )

    def _examples_level(self, got: Outputs) -> float | None:
        if self.examples is None:
            return None
        clashes = self.clash is not None and self.clash.ratio > contradiction.SUSPICIOUS
        return _level(self.expected[-1:], got[-1:], () if clashes else self.expected)


def gather(
    source: Captured,
    calibration: Iterable[SampleLike] | None,
    precision: str,
    options: CompileOptions,
) -> EvidenceSet:
    """Return the evidence of one compilation. The samples are ``options.evidence``, else the calibration samples.

    Without both, the samples are the examples, and noise like them.

    Raises:
        ValueError: wrong samples; int8 calibration that contradicts the example inputs.
    """
    names = [tensor.name for tensor in source.program.signature[0]]
    fitting = None if calibration is None else to_samples(calibration, source.examples, "calibration", names)
    given = None if options.evidence is None else to_samples(options.evidence, source.examples, "evidence", names)
    samples = given or fitting or source.probes()
    clash = _clash(fitting, source.examples) if fitting and precision == "int8" else None
    shown = _digest(source.examples) in map(_digest, samples)
    apart = precision == "int8" and not shown
    samples = samples if shown or apart else [*samples, source.examples]
    limits = Limits.parse(options.limits) if isinstance(options.limits, str) else options.limits
    classifier = source.classifies if options.classifier is None else options.classifier
    return EvidenceSet(source, fitting, samples, source.examples if apart else None, clash, classifier, limits)


def _clash(calibration: Samples, examples: Sample) -> contradiction.Contradiction | None:
    found = contradiction.contradiction(calibration, examples)
    if found is not None and found.certain:
        raise ValueError(f"calibration contradicts the example inputs: {found.words}; give both in the same scale")
    return found


def _digest(sample: Sample) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for value in sample:
        found.update(f"{value.dtype}{value.shape}".encode())
        found.update(np.ascontiguousarray(value).data)
    return found.digest()


def _by_one_unit(value: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Return the value with each element moved to the next number above or below, or left alone."""
    if value.dtype.kind != "f":
        return value
    towards = rng.choice([-np.inf, np.inf], value.shape).astype(value.dtype)
    moved: NDArray[Any] = np.where(value == 0, value, np.nextafter(value, towards)).astype(value.dtype)
    return moved


def _level(expected: Outputs, got: Outputs, typical: Outputs = ()) -> float:
    """Return the SQNR of the worst output in dB. The signal is the mean power of ``typical``, where that is larger."""
    levels = [_ALIKE_DB]
    for index in range(len(expected[0])):
        want = [np.asarray(each[index], np.float64) for each in expected]
        noise = _power([np.asarray(have[index], np.float64) - each for have, each in zip(got, want, strict=True)])
        signal = max(_power(want), _power([np.asarray(each[index], np.float64) for each in typical]))
        if not math.isfinite(noise):
            return -_ALIKE_DB
        if noise > 0.0:
            levels.append(10.0 * math.log10(max(signal, 1e-300) / noise))
    return min(levels)


def _power(values: Sequence[NDArray[Any]]) -> float:
    """Return the mean square of the finite values; NaN where a difference of finite values is none."""
    flat = np.concatenate([value.ravel() for value in values]) if values else np.zeros(0)
    flat = flat[np.isfinite(flat)]
    return float(np.square(flat).mean()) if flat.size else 0.0
