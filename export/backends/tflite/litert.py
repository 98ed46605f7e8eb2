"""LiteRT's own converter and quantiser, for the programs that the emitter does not cover."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas.export.backends.tflite.delegation import pieces
from hnas.export.device.errors import ExportError, Unavailable, one_line
from hnas.export.device.records import JSON
from hnas.export.device.runtimes.tflite import interpreter
from hnas.export.graph.samples import Arrays
from hnas.export.remote.quiet import quiet

if TYPE_CHECKING:
    from hnas.export.graph.program import Program

# What XNNPACK has int8 kernels for and what does not fall out of its delegate. Never on it: HARD_SWISH and the parts of
# LayerNorm (no int8 kernels: a small MobileNetV3 in fourteen pieces, not one, and ten times slower), GELU, SOFTMAX and
# BATCH_MATMUL (the same), MEAN (noise in place of a signal where the sum before it stayed float).
_CORE: tuple[str, ...] = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "CONV_2D_TRANSPOSE",
    "PAD",
    "MUL",
    "RESHAPE",
)
_CORE += ("TRANSPOSE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "CONCATENATION", "LOGISTIC", "TANH")
# ADD is right for residuals and wrong for the epsilon of a LayerNorm: the first list that leaves the graph in one piece
# is taken.
_POLICIES = ((*_CORE, "ADD"), _CORE)


def versions(*, quantiser: bool) -> dict[str, str]:
    """What takes part in a conversion."""
    found = {"litert-torch": version("litert-torch")}
    return found | ({"ai-edge-quantizer": version("ai-edge-quantizer")} if quantiser else {})


def convert(program: Program, path: Path, layout: Sequence[JSON]) -> None:
    """Write the fp32 model of ``program``; inputs are permuted as ``layout`` says (None: as they are)."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the converter counts operations on stderr
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # or it says on import that it is on
    module: Any = program.module
    with quiet():
        try:
            import litert_torch
        except ImportError:
            raise Unavailable("litert-torch is not installed; pip install 'hnas[tflite-litert]'") from None
        last = [index for index, order in enumerate(layout) if order]
        if last:
            module = litert_torch.to_channel_last_io(module, args=last).eval()
        pairs = zip(program.inputs, layout, strict=True)
        inputs = tuple(
            value.permute(order).contiguous() if isinstance(order, list) else value for value, order in pairs
        )
        try:
            converted = litert_torch.convert(module, inputs)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise ExportError(f"litert-torch cannot convert this graph: {one_line(error)}") from error
        converted.export(str(path))


def quantise(source: Path, target: Path, data: Sequence[Arrays], leave: Sequence[str] = ()) -> JSON:
    """Write the int8 form of ``source``, and return the policy that left it in one piece; ``leave`` are operators.

    Ranges are minmax over all samples: the quantiser's default is a moving average that clips what is more than
    average, 10 dB worse on nets without a norm at the end.
    """
    try:
        from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
        from ai_edge_quantizer.utils import qsv_utils
    except ImportError:
        raise Unavailable("ai-edge-quantizer is not installed; pip install 'hnas[tflite-litert]'") from None
    key, names = _signature(source)
    fed = {key: [dict(zip(names, sample, strict=True)) for sample in data]}
    operators: tuple[str, ...] = ()
    for policy in _POLICIES:
        operators = tuple(operator for operator in policy if operator not in leave)
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
        if pieces(target)[0] <= pieces(source)[0]:
            break
    return {
        "quantiser": "ai-edge-quantizer",
        "operators": list(operators),
        "activations": "s8",
        "weights": "s8 per channel",
        "ranges": "minmax",
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
    ((key, value),) = interpreter(model, 1).get_signature_list().items()
    return key, sorted(value["inputs"], key=lambda name: int(name.rsplit("_", 1)[1]))
