"""Define the options of `hnas.export.compile` that most callers leave at their defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnas.export.int8.policy import TRIALS

if TYPE_CHECKING:
    from hnas.export.compiling.compiler import Compiler
    from hnas.export.device.artifact import Artifact
    from hnas.export.graph.samples import SampleLike
    from hnas.export.remote.worker import Worker


@dataclass(frozen=True)
class CompileOptions:
    """Hold the less common options of `hnas.export.compile`.

    Example: ``compile(net, x, path="net", options=CompileOptions(backend="reference"))``.

    ``evidence``: samples on which the artifact is verified. Default: the calibration samples; without those, the
    example inputs and a few random inputs of the same mean and spread.
    ``backend``: the backend to compile with. Default: the first of the device's profile.
    ``recover``: a rung of the ladder of edits by which int8 loses less accuracy: "bias", "equalise", "round" or
    "finetune". "auto" uses no edit if the verification passes without, else the first rung with which it passes.
    ``keep_float``: names of blocks that stay in float in an int8 artifact, see `hnas.export.int8.mixed.blocks`.
    ``open_worker``: opens the artifact on a device, where the artifact is verified a second time.
    ``compiler``: converts in a process of its own, within its limits, to the same bytes. Default: in this process.
    """

    evidence: Iterable[SampleLike] | None = None
    backend: str | None = None
    recover: str | None = None
    keep_float: Sequence[str] = ()
    open_worker: Callable[[Artifact], Worker] | None = None
    compiler: Compiler | None = None


@dataclass(frozen=True)
class MixedOptions(CompileOptions):
    """Hold the options of `hnas.export.compile_mixed`: those of ``compile`` without ``keep_float``, and ``trials``.

    Example: ``compile_mixed(net, x, accept=accept, calibration=images, path="net", options=MixedOptions(trials=8))``.

    ``trials``: how many assignments of blocks to precisions are built at most, 1 or more.
    """

    trials: int = TRIALS
