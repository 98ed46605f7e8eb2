"""LiteRT (TensorFlow Lite) with XNNPACK on the CPU: model.tflite, in fp32 or int8, channels last inside."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from export.artifact import Artifact, Tensor, digest_files
from export.errors import ExportError, Unavailable, one_line
from export.flatbuffer import Part, join, split
from export.quantisation import Sample, samples
from export.quiet import quiet, quiet_stderr
from export.schema import JSON
from export.signature import describe, fit
from export.verification import check

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from export.program import Program
    from hw_profiles import Device

precisions: tuple[str, ...] = ("fp32", "int8")
requires: tuple[str, ...] = ("tflite",)

MODEL = "model.tflite"
NHWC = (0, 2, 3, 1)
# What XNNPACK has int8 kernels for and what does not fall out of its delegate. Never on it: HARD_SWISH and the parts of
# LayerNorm (no int8 kernels: a small MobileNetV3 in fourteen pieces, not one, and ten times slower), GELU, SOFTMAX and
# BATCH_MATMUL (the same), MEAN (noise in place of a signal where the sum before it stayed float).
CORE: tuple[str, ...] = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "CONV_2D_TRANSPOSE",
    "PAD",
    "MUL",
    "RESHAPE",
)
CORE += ("TRANSPOSE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "CONCATENATION", "LOGISTIC", "TANH")
# ADD is right for residuals and wrong for the epsilon of a LayerNorm: the first list that leaves the graph in one piece
# is taken.
POLICIES = ((*CORE, "ADD"), CORE)


def missing() -> str | None:
    """None where a LiteRT runtime is installed, else the line that installs it."""
    if find_spec("ai_edge_litert") or find_spec("tflite_runtime"):
        return None
    return "ai-edge-litert is not installed; pip install 'hnas[tflite]' or choose another backend"


def versions() -> dict[str, str]:
    """The version of the runtime that would be used."""
    name = "ai-edge-litert" if find_spec("ai_edge_litert") else "tflite-runtime"
    return {name: version(name)}


def toolchain() -> dict[str, str]:
    """The versions of all that makes a model what it is."""
    return {**versions(), "torch": version("torch"), "litert-torch": version("litert-torch")}


def compile(
    program: Program,
    path: Path,
    *,
    precision: str,
    device: Device,
    threads: int,
    calibration: Sequence[tuple[NDArray[Any], ...]] | None,
) -> Artifact:
    """Write model.tflite, which takes 4-D inputs channels last; int8 takes ``calibration`` and keeps float at its ends.

    ``notes["layout"]`` has the permutation of every input (None: as it is); outputs are in the module's own layout.
    """
    if precision not in precisions:
        raise ValueError(f"tflite runs {', '.join(precisions)} on a CPU, got {precision!r}")
    inputs, outputs = describe(program)
    layout = _layout(tensor.shape for tensor in inputs)
    notes: dict[str, JSON] = {"layout": layout}
    found = toolchain()
    if precision == "int8":
        data = samples(calibration, inputs)
        found["ai-edge-quantizer"] = version("ai-edge-quantizer")
        with TemporaryDirectory() as folder:
            source = Path(folder) / MODEL
            _convert(program, source, layout)
            notes["quantisation"] = _quantise(source, path / MODEL, [_to_runtime(sample, layout) for sample in data])
    else:
        _convert(program, path / MODEL, layout)
    notes["delegates"], notes["undelegated"] = _delegation(path / MODEL)
    artifact = Artifact(
        path=path,
        backend="tflite",
        precision=precision,
        device=device.name,
        threads=threads,
        inputs=inputs,
        outputs=outputs,
        files=digest_files(path, MODEL),
        versions=found,
        notes=notes,
    )
    artifact.write()
    return artifact


def convert_many(programs: Sequence[Program]) -> list[bytes]:
    """Each of ``programs`` as an fp32 model of its own, for little more than the price of one conversion.

    They are converted side by side as one module and split. 4-D inputs and outputs are channels last, so that models
    can be joined without transposes. Each is checked against its program; ExportError where one computes otherwise.
    """
    inputs = [value for program in programs for value in program.inputs]
    outputs = [program(*program.inputs) for program in programs]
    flat = [value for values in outputs for value in values]
    last = [index for index, value in enumerate(flat) if value.ndim == 4]
    with TemporaryDirectory() as folder:
        whole = Path(folder) / MODEL
        _lower(_side_by_side(programs), inputs, _layout(value.shape for value in inputs), last, whole)
        ends = [(len(program.inputs), len(values)) for program, values in zip(programs, outputs, strict=True)]
        models = split(whole.read_bytes(), ends)
        for model, program, values in zip(models, programs, outputs, strict=True):
            whole.write_bytes(model)
            runner = TfLite(_joined(whole, *describe(program), device="any", threads=1))
            found = check([tuple(v.numpy() for v in values)], [runner(*(x.numpy() for x in program.inputs))], "fp32")
            if not found.passed:
                raise ExportError(f"a part of a split model computes otherwise than its program: {found.line()}")
    return models


def assemble(
    parts: Sequence[Part],
    path: Path,
    *,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    device: Device,
    threads: int,
) -> Artifact:
    """Write the fp32 artifact of models of ``convert_many``, joined by the names that they and its ends share."""
    joined = join(parts, [tensor.name for tensor in inputs], [tensor.name for tensor in outputs])
    (path / MODEL).write_bytes(joined)
    artifact = _joined(path / MODEL, tuple(inputs), tuple(outputs), device=device.name, threads=threads)
    artifact.write()
    return artifact


def _joined(
    model: Path, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], *, device: str, threads: int
) -> Artifact:
    """The record of a model that is channels last at both ends."""
    notes: dict[str, JSON] = {
        "layout": _layout(tensor.shape for tensor in inputs),
        "outputs_layout": _layout(tensor.shape for tensor in outputs),
    }
    files = digest_files(model.parent, model.name)
    return Artifact(model.parent, "tflite", "fp32", device, threads, inputs, outputs, files, versions(), notes)


def load(artifact: Artifact) -> TfLite:
    """Open ``artifact`` with XNNPACK and exactly its threads."""
    return TfLite(artifact)


class TfLite:
    """A Runner: one interpreter. It takes and gives the module's own layout; ``bind`` times the runtime's."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._layout = artifact.notes.get("layout")
        self._outputs_layout = artifact.notes.get("outputs_layout")
        self._interpreter = _interpreter(artifact.model, artifact.threads)
        self._inputs = _indices(self._interpreter.get_input_details())
        self._outputs = _indices(self._interpreter.get_output_details())

    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """The outputs for ``inputs``."""
        self.bind(*inputs)()
        outputs = tuple(self._interpreter.get_tensor(index) for index in self._outputs)
        return _from_runtime(outputs, self._outputs_layout)

    def bind(self, *inputs: NDArray[Any]) -> Callable[[], object]:
        """A call on ``inputs``, which are transposed and set once."""
        values = _to_runtime(fit(inputs, self.artifact.inputs), self._layout)
        for index, value in zip(self._inputs, values, strict=True):
            self._interpreter.set_tensor(index, value)
        invoke: Callable[[], object] = self._interpreter.invoke
        return invoke


def _interpreter(model: Path, threads: int) -> Any:
    """The interpreter of ``model``, ready to be invoked; XNNPACK is its default delegate."""
    if find_spec("ai_edge_litert"):
        from ai_edge_litert.interpreter import Interpreter
    else:
        from tflite_runtime.interpreter import Interpreter
    with quiet_stderr("INFO: Created TensorFlow Lite XNNPACK delegate for CPU."):  # no setting silences it
        interpreter = Interpreter(str(model), num_threads=threads)
        interpreter.allocate_tensors()
    return interpreter


def _indices(details: Sequence[dict[str, Any]]) -> list[int]:
    """The tensors in the order of the module's: the converter numbers them, a foreign file's order is its own."""
    numbers = [re.search(r"_(\d+)(_output)?(:0)?$", detail["name"]) for detail in details]
    order = {detail["index"]: int(found[1]) for detail, found in zip(details, numbers, strict=True) if found}
    indices = [int(detail["index"]) for detail in details]
    return sorted(indices, key=order.__getitem__) if len(order) == len(details) else indices


def _to_runtime(sample: Sample, layout: JSON) -> Sample:
    """The arrays in the layout that the flatbuffer takes."""
    permutations = layout if isinstance(layout, list) else [None] * len(sample)
    pairs = zip(sample, permutations, strict=True)
    return tuple(np.ascontiguousarray(value.transpose(order)) if order else value for value, order in pairs)


def _from_runtime(outputs: Sample, layout: JSON) -> Sample:
    """The arrays in the module's layout: ``layout`` undone."""
    orders = layout if isinstance(layout, list) else [None] * len(outputs)
    inverse = [np.argsort(order).tolist() if isinstance(order, list) else None for order in orders]
    return _to_runtime(outputs, inverse)


def _layout(shapes: Iterable[Sequence[int]]) -> list[JSON]:
    """Channels last for what has four dimensions, None (as it is) for the rest."""
    return [list(NHWC) if len(shape) == 4 else None for shape in shapes]


def _side_by_side(programs: Sequence[Program]) -> torch.nn.Module:
    """One module with the inputs of all ``programs`` and a flat tuple of their outputs."""
    import torch

    class SideBySide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(program.module for program in programs)

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            results: list[torch.Tensor] = []
            left = list(inputs)
            for part, program in zip(self.parts, programs, strict=True):
                taken, left = left[: len(program.inputs)], left[len(program.inputs) :]
                result = part(*taken)
                results += result if isinstance(result, tuple) else [result]
            return tuple(results)

    return SideBySide().eval()


def _convert(program: Program, path: Path, layout: Sequence[list[int] | None]) -> None:
    _lower(program.module, program.inputs, layout, [], path)


def _lower(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    layout: Sequence[list[int] | None],
    outputs: Sequence[int],
    path: Path,
) -> None:
    """One conversion to ``path``: inputs as ``layout`` says, those ``outputs`` by position channels last."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the converter counts operations on stderr
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # or it says on import that it is on
    with quiet():
        try:
            import litert_torch
        except ImportError:
            raise Unavailable("litert-torch is not installed; pip install 'hnas[tflite-convert]'") from None
        last = [index for index, order in enumerate(layout) if order]
        if last or outputs:
            module = litert_torch.to_channel_last_io(module, args=last, outputs=list(outputs)).eval()
        try:
            converted = litert_torch.convert(module, _channels_last(inputs, layout))
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise ExportError(f"litert-torch cannot convert this graph: {one_line(error)}") from error
        converted.export(str(path))


def _channels_last(inputs: Sequence[torch.Tensor], layout: Sequence[list[int] | None]) -> tuple[torch.Tensor, ...]:
    pairs = zip(inputs, layout, strict=True)
    return tuple(value.permute(order).contiguous() if order else value for value, order in pairs)


def _quantise(source: Path, target: Path, data: Sequence[Sample]) -> JSON:
    """Write the int8 form of ``source``, and return the policy that left it in one piece.

    Ranges are min/max over all samples: the quantiser's default is a moving average that clips what is more than
    average, 10 dB worse on nets without a norm at the end.
    """
    try:
        from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
        from ai_edge_quantizer.utils import qsv_utils
    except ImportError:
        raise Unavailable("ai-edge-quantizer is not installed; pip install 'hnas[tflite-convert]'") from None
    key, names = _signature(source)
    fed = {key: [dict(zip(names, sample, strict=True)) for sample in data]}
    operators: tuple[str, ...] = ()
    for operators in POLICIES:
        recipe = recipe_manager.RecipeManager()
        for operator in operators:
            kind = qtyping.TFLOperationName(operator)
            recipe.add_static_config(regex=".*", operation_name=kind, activation_num_bits=8, weight_num_bits=8)
        with quiet(), _without_progress():
            ranges = calibrator.Calibrator(str(source), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
            ranges.calibrate(fed, recipe)
            work = quantizer.Quantizer(str(source))
            work.load_quantization_recipe(recipe.get_quantization_recipe())
            result = work.quantize(ranges.get_model_qsvs(), enable_progress_report=False)
            result.export_model(str(target), overwrite=True)
        if _delegation(target)[0] <= _delegation(source)[0]:
            break
    return {
        "quantiser": "ai-edge-quantizer",
        "operators": list(operators),
        "activations": "s8",
        "weights": "s8 per channel",
        "ranges": "min/max",
        "samples": len(data),
    }


@contextmanager
def _without_progress() -> Iterator[None]:
    """The quantiser draws a bar for every hundred operators that it calibrates, and has no setting for it."""
    from ai_edge_quantizer.utils.progress_utils import ProgressBar

    draw = ProgressBar.__init__
    ProgressBar.__init__ = lambda self, total_steps, *_, **__: draw(self, total_steps, enable=False)
    try:
        yield
    finally:
        ProgressBar.__init__ = draw


def _signature(model: Path) -> tuple[str, list[str]]:
    """The name of the model's only signature and its inputs in the module's order (args_10 comes after args_9)."""
    ((key, value),) = _interpreter(model, 1).get_signature_list().items()
    return key, sorted(value["inputs"], key=lambda name: int(name.rsplit("_", 1)[1]))


def _delegation(model: Path) -> tuple[int, int]:
    """How many pieces of the graph XNNPACK runs, and how many operators are left to the slow built-in kernels.

    1 and 0 is a whole graph. Every change of hands costs a copy; built-in kernels are several times slower.
    """
    operators = _interpreter(model, 1)._get_ops_details()  # no public call tells it
    pieces = [operator for operator in operators if operator["op_name"] == "DELEGATE"]
    made = {int(index) for piece in pieces for index in piece["outputs"]}
    read = {int(index) for piece in pieces for index in piece["inputs"]}
    singles = [operator for operator in operators if operator["op_name"] != "DELEGATE"]
    ends = {int(detail["index"]) for detail in _interpreter(model, 1).get_output_details()}
    return len(pieces), sum(_alone(operator, made, read, ends, pieces) for operator in singles)


def _alone(operator: dict[str, Any], made: set[int], read: set[int], ends: set[int], pieces: list[Any]) -> bool:
    """Whether a built-in kernel runs ``operator``: what it makes is wanted outside of it, and no piece makes it."""
    outputs = {int(index) for index in operator["outputs"]}
    return not pieces or bool(outputs & (read | ends) and not outputs & made)
