"""Convert and quantise programs with LiteRT's own tools, if hnas's own writer lacks one of their operators.

``convert_program(program, path, layout)`` writes fp32. ``quantise_file(source, target, samples)`` converts it to int8.
"""

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
from hnas.export.graph.samples import Samples
from hnas.export.remote.quiet import quiet

if TYPE_CHECKING:
    from hnas.export.graph.program import Program

# Operators that XNNPACK runs in int8. Left out on purpose:
# - HARD_SWISH, the parts of LayerNorm, GELU, SOFTMAX, BATCH_MATMUL: XNNPACK has no int8 kernels for them. A small
#   MobileNetV3 became fourteen delegates instead of one, and ten times slower.
# - MEAN: its int8 form adds noise if the sum before it stays float.
_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_2D_TRANSPOSE")
_MOVES = ("PAD", "MUL", "RESHAPE", "TRANSPOSE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "CONCATENATION", "LOGISTIC", "TANH")
_CORE: tuple[str, ...] = (*_LAYERS, *_MOVES)
ELEMENTWISE = (*_MOVES, "ADD")  # all operators of the policies without weights
# int8 ADD suits residuals, but not the epsilon of a LayerNorm. The first list that does not split the graph into more
# delegates than fp32 is used.
_POLICIES = ((*_CORE, "ADD"), _CORE)


def package_versions(*, quantiser: bool) -> dict[str, str]:
    """Return the versions of the packages that take part in a conversion."""
    found = {"litert-torch": version("litert-torch")}
    return found | ({"ai-edge-quantizer": version("ai-edge-quantizer")} if quantiser else {})


def convert_program(program: Program, path: Path, layout: Sequence[JSON]) -> None:
    """Write the fp32 model of a program.

    layout: for each input the permutation of its axes, or None for no permutation.

    Raises:
        Unavailable: litert-torch is not installed.
        ExportError: litert-torch cannot convert the graph.
    """
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the converter prints operation counts on stderr
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # otherwise the import prints a line
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


def quantise_file(source: Path, target: Path, samples: Samples, leave: Sequence[str] = ()) -> JSON:
    """Write the int8 form of ``source`` and return how it was quantised.

    Ranges are the minimum and maximum over all samples. The quantiser's default is a moving average, which clips larger
    values: 10 dB worse on networks without a norm at the end.

    samples: calibration samples, in the layout of the runtime.
    leave: operators that stay in float, by the names of ai-edge-quantizer.

    Raises:
        Unavailable: ai-edge-quantizer is not installed.
    """
    try:
        from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
        from ai_edge_quantizer.utils import qsv_utils
    except ImportError:
        raise Unavailable("ai-edge-quantizer is not installed; pip install 'hnas[tflite-litert]'") from None
    key, names = _signature(source)
    fed = {key: [dict(zip(names, sample, strict=True)) for sample in samples]}
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
        "samples": len(samples),
    }


@contextmanager
def _without_progress() -> Iterator[None]:
    """Hide the progress bar of the quantiser during the block. The quantiser has no option for that."""
    from ai_edge_quantizer.utils.progress_utils import ProgressBar

    draw = ProgressBar.__init__
    ProgressBar.__init__ = lambda self, total_steps, *_, **__: draw(self, total_steps, enable=False)
    try:
        yield
    finally:
        ProgressBar.__init__ = draw


def _signature(model: Path) -> tuple[str, list[str]]:
    """Return the name of the model's only signature, and the names of its inputs in the order of the module.

    The order is that of the numbers in the names: args_10 follows args_9.
    """
    ((key, value),) = interpreter(model, 1).get_signature_list().items()
    return key, sorted(value["inputs"], key=lambda name: int(name.rsplit("_", 1)[1]))
