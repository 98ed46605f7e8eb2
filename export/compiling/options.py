"""Define the options of `hnas.export.compile` that most callers leave at their defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnas.export.int8.policy import TRIALS

if TYPE_CHECKING:
    from hnas.export.compiling.compiler import Compiler
    from hnas.export.device.artifact import Artifact
    from hnas.export.graph.samples import SampleLike
    from hnas.export.proof.verification import Limits
    from hnas.export.remote.worker import Worker


@dataclass(frozen=True)
class CompileOptions:
    """Hold the less common options of `hnas.export.compile`.

    Example: ``compile(net, x, path="net", options=CompileOptions(backend="reference"))``.

    ``evidence``: samples on which the artifact is verified. Default: the calibration samples. If there are none either:
    the example inputs, and a few random inputs with the same mean and spread.
    ``backend``: the backend to compile with. Default: the first of the device's profile.
    ``recover``: how graph edits recover int8 accuracy. "auto" (default): first no edit, then each rung, until the
    result is close to float. If none is close, the best result is kept. "none": no edit. Or one of the rungs "bias",
    "equalise", "round", "finetune".
    ``recover_seconds``: the time after which "auto" starts nothing more, and keeps the best result. Default: 600.
    ``limits``: figures that the result must reach, such as "25dB|97%". Default: it must not be broken.
    ``classifier``: whether the first output holds class scores. Default: if softmax or argmax is the last operator.
    ``progress``: called with (stage, steps done, steps in total). Default: once "auto" has taken 5 s, a line
    on standard error for each rung.
    ``keep_float``: names of blocks that stay in float in an int8 artifact, see `hnas.export.int8.mixed.blocks`.
    ``dynamic``: the axis of each input whose size callers choose, ``{"x": {0: "batch"}}``, or ``{0: "batch=1..32"}``
    with a range. The artifact is verified at several sizes. Default: every size is fixed, which is fastest.
    ``open_worker``: opens the artifact on a device. The artifact is then verified there a second time.
    ``compiler``: converts in its child process, within its limits, to the same bytes. Default: a module is converted
    in this process; an ONNX file in a child process that has half of the machine's memory, and 15 minutes.
    """

    evidence: Iterable[SampleLike] | None = None
    backend: str | None = None
    recover: str = "auto"
    recover_seconds: float = 600.0
    limits: Limits | str | None = None
    classifier: bool | None = None
    progress: Callable[[str, int, int], None] | None = None
    keep_float: Sequence[str] = ()
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    open_worker: Callable[[Artifact], Worker] | None = None
    compiler: Compiler | None = None

    def __post_init__(self) -> None:
        """Raise TypeError where a value is not what its name says, which would fail only after the conversion."""
        if isinstance(self.keep_float, str) or not isinstance(self.keep_float, Iterable):
            raise TypeError(f"keep_float is {self.keep_float!r}, expected a list of names of blocks")
        if self.open_worker is not None and not callable(self.open_worker):
            raise TypeError(f"open_worker is {self.open_worker!r}, expected a function of an artifact")
        _check_dynamic({} if self.dynamic is None else self.dynamic)
        if self.compiler is not None and not hasattr(self.compiler, "convert"):
            raise TypeError(f"compiler is {self.compiler!r}, expected export.Compiler()")
        if self.progress is not None and not callable(self.progress):
            raise TypeError(f"progress is {self.progress!r}, expected a function of (stage, done, total)")
        if not self.recover_seconds > 0:
            raise ValueError(f"recover_seconds is {self.recover_seconds!r}, expected a number of seconds above 0")
        if self.evidence is not None and not isinstance(self.evidence, Iterable):
            raise TypeError(f"evidence is {self.evidence!r}, expected samples")


def _check_dynamic(asked: object) -> None:
    """Raise TypeError where the option ``dynamic`` has another form than its example."""
    if not (isinstance(asked, Mapping) and all(isinstance(axes, Mapping) for axes in asked.values())):
        raise TypeError(f"dynamic is {asked!r}, expected a dict like {{'x': {{0: 'batch'}}}}")


@dataclass(frozen=True)
class MixedOptions(CompileOptions):
    """Hold the options of `hnas.export.compile_mixed`: those of ``compile`` without ``keep_float``, and ``trials``.

    Example: ``compile_mixed(net, x, accept=accept, calibration=images, path="net", options=MixedOptions(trials=8))``.

    ``recover``: default "none", because blocks in float recover the accuracy.
    ``trials``: the largest number of assignments of blocks to precisions that are built, 1 or more.
    ``plain``: the artifact with all blocks in int8, made before by `compile` of the same network with the same options.
    Default: it is compiled first.
    ``slow``: names of layers in a profile of ``plain`` that are slower than in float, the slowest first. Only their
    blocks are tried in float for speed. Default: every block.
    """

    recover: str = "none"
    trials: int = TRIALS
    plain: Artifact | None = None
    slow: Sequence[str] = ()
