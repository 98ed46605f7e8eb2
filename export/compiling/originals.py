"""Capture a network: the graph that a backend compiles, and the reference outputs for the artifact.

``with capture_network(net, example_inputs, "openvino") as captured: captured.program``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hnas.export.device.errors import one_line
from hnas.export.device.signature import leaves
from hnas.export.graph.samples import PROBES, in_words, tell, to_samples
from hnas.export.onnx.source import OnnxSource, Original

if TYPE_CHECKING:
    import torch

    from hnas.export.graph.program import Program
    from hnas.export.graph.samples import Sample, SampleLike, Samples
    from hnas.export.proof.verification import Outputs

    Module: TypeAlias = torch.nn.Module | torch.export.ExportedProgram
    Network: TypeAlias = Module | Original | Path | str


_DECISIONS = ("Softmax", "LogSoftmax", "ArgMax")  # of ONNX; those of a graph are in `hnas.export.graph.decisions`


@dataclass(frozen=True)
class Captured:
    """Hold a captured network.

    ``program``: the fused graph, or the checked ONNX file, as a backend takes it.
    ``outputs``: returns the outputs of the original network for each sample: a module in eager mode, or the ONNX file
    as it was written.
    ``probes``: returns the example inputs, and random inputs like them on which all outputs are finite.
    ``suspicion``: returns the likely cause of a mismatch as the end of an error message; empty if none is known.
    ``rounding_db``: returns the SQNR of float32 against float64 on samples; nothing where the network has no float64.
    ``classifies``: whether softmax or argmax makes the first output.
    ``without``: returns ``program`` without the named passes; None for an ONNX file.
    ``remarks``: sentences on what became constant or float32, and on passes that were left out.
    """

    name: str
    examples: Sample
    program: Program | OnnxSource
    outputs: Callable[[Samples], Outputs]
    probes: Callable[[], Samples]
    suspicion: Callable[[Samples], str]
    rounding_db: Callable[[Samples], list[float]] = lambda _: []
    classifies: bool = False
    without: Callable[[Collection[str]], Program] | None = None
    remarks: tuple[str, ...] = ()

    def keeping(self, blocks: Collection[str]) -> Captured:
        """Return the captured module with these blocks marked to stay in float.

        Raises:
            ValueError: a name is not a block.
        """
        from hnas.export.int8 import mixed

        without = self.without
        assert without is not None  # only a module has blocks
        assert not isinstance(self.program, OnnxSource)
        return replace(
            self,
            program=mixed.keep_float(self.program, blocks),
            without=lambda names: mixed.keep_float(without(names), blocks),
        )


@contextmanager
def capture_network(
    network: Network,
    example_inputs: SampleLike | None,
    backend: str,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Iterator[Captured]:
    """Yield the captured ``network``. An ONNX file stays open during the block.

    Raises:
        ValueError: a module has no example inputs.
        ExportError: the network cannot be captured.
    """
    if isinstance(network, Original):
        if dynamic is not None:
            raise ValueError("an open file has its sizes; give dynamic to Original(path, dynamic=...) or pass the path")
        yield _from_file(network, example_inputs)
    elif isinstance(network, Path | str):
        with Original(Path(network), example_inputs, dynamic=dynamic) as original:
            yield _from_file(original, None)
    elif example_inputs is None:
        raise ValueError("a module needs example inputs; pass example_inputs")
    else:
        yield _from_module(network, example_inputs, backend, dynamic)


def _from_file(original: Original, examples: SampleLike | None) -> Captured:
    given, source = original.examples, original.source
    if examples is not None:
        names = [tensor.name for tensor in source.inputs]
        pieces = to_samples([examples], given, "the given example", names)
        if len(pieces) > 1:
            shapes = ", ".join(str(list(part.shape)) for _, part in leaves(examples) if hasattr(part, "shape"))
            said = f"the given example inputs have the shape {shapes}, those of {original.name} are {in_words(given)}"
            raise ValueError(f"{said}; open the file with the examples, or give one of its own size")
        (given,) = pieces
    for line in source.remarks:
        tell(line)
    return Captured(
        original.name,
        given,
        source,
        original.outputs,
        original.probes,
        suspicion=original.suspicion,
        classifies=source.last in _DECISIONS,
        remarks=source.remarks,
    )


def _from_module(
    network: Module,
    examples: SampleLike,
    backend: str,
    dynamic: Mapping[str, Mapping[int, str]] | None,
) -> Captured:
    from hnas.export.graph.calls import flat_module
    from hnas.export.graph.decisions import ends_in_decision
    from hnas.export.graph.fusion import fuse_safely
    from hnas.export.graph.program import module_of

    module = flat_module(module_of(network), examples)
    untouched = _capture(module, module.inputs, dynamic)
    for line in untouched.remarks:
        tell(line)
    left_out: list[str] = []

    def fused(without: Collection[str] = ()) -> Program:
        program, remarks = fuse_safely(untouched, backend, without)
        left_out.extend(remarks)
        return program

    program = fused()
    reference = untouched.module if untouched.halved else module
    return Captured(
        type(module.net).__name__,
        tuple(value.numpy() for value in untouched.inputs),
        program,
        outputs=partial(run_eager, reference),
        probes=partial(_probes, program),
        suspicion=partial(_suspicion, reference, type(module.net).__name__),
        rounding_db=partial(_rounding_db, untouched),
        classifies=ends_in_decision(untouched),
        without=fused,
        remarks=(*untouched.remarks, *left_out),
    )


def _capture(module: torch.nn.Module, examples: Any, dynamic: Mapping[str, Mapping[int, str]] | None = None) -> Program:
    from hnas.export.graph.program import capture
    from hnas.export.graph.randomness import refuse_randomness

    program = capture(module, examples, dynamic)
    refuse_randomness(program)
    return program


def _suspicion(module: torch.nn.Module, name: str, samples: Samples) -> str:
    """Return a suffix that names randomness that the graph does not show, such as that of numpy in ``forward``."""
    first, second = (run_eager(module, samples[:1]) for _ in range(2))
    pairs = zip(first[0], second[0], strict=True)
    if all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs):
        return ""
    return f"; two calls of {name} on one input differ, so it draws random numbers"


def _rounding_db(program: Program, samples: Samples) -> list[float]:
    """Return the SQNR of float32 against float64 in dB; nothing if the graph does not run in float64."""
    from hnas.export.graph.fusion import rounding_db

    return [level for sample in samples[:PROBES] if (level := rounding_db(program, sample)) is not None]


def run_eager(module: torch.nn.Module, samples: Samples) -> Outputs:
    """Return the outputs of ``module`` for each sample, in eval mode."""
    import torch

    from hnas.export.graph.calls import in_single
    from hnas.export.graph.program import as_tuple, evaluating

    with evaluating(module), torch.no_grad():  # copies, because a module may write into its inputs
        try:
            runs = [module(*(torch.from_numpy(part.copy()) for part in sample)) for sample in samples]
        except Exception as error:  # the user's code may raise any type
            shapes = ", ".join(str(list(part.shape)) for part in samples[0])
            name = type(module).__name__
            raise ValueError(f"{name} does not take inputs of {shapes}: {one_line(error)}") from error
    return [tuple(in_single(output).numpy() for output in as_tuple(run)) for run in runs]


def _probes(program: Program) -> list[Sample]:
    """Return the example inputs, and random inputs like them on which all outputs are finite."""
    import torch

    from hnas.export.graph.fusion import noise_tensors

    probes = [program.inputs]
    for seed in range(1, PROBES + 1):
        probe = noise_tensors(program.inputs, seed)
        if all(bool(torch.isfinite(output).all()) for output in program(*probe) if output.is_floating_point()):
            probes.append(probe)
    return [tuple(part.numpy() for part in probe) for probe in probes]
