"""Convert and quantise with the tools that the documentation of each runtime names: ``PEERS``, ``TUNED``.

`PEERS` are at their defaults, `TUNED` has other settings of their quantisers.

Only the thread count (one) and the precision are pinned. The process that converts imports the heavy packages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from hnas.export.graph.samples import Sample

    Convert = Callable[[torch.nn.Module, Sequence[torch.Tensor], Path], None]
    Quantise = Callable[..., None]

_NHWC = [0, 2, 3, 1]


@dataclass(frozen=True)
class Peer:
    """A converter and a quantiser.

    files: the files that they write, the model first.
    needs: the packages that they import.
    convert: called with (module, inputs, model file).
    quantise: called with (fp32 model file, calibration samples, int8 model file), and settings of `TUNED`.
    channels_last: whether 4-D inputs of the model are channels-last.
    """

    files: tuple[str, ...]
    needs: tuple[str, ...]
    convert: Convert
    quantise: Quantise
    channels_last: bool = False

    @property
    def missing(self) -> str | None:
        """Return which packages are not installed, or None."""
        absent = [name for name in self.needs if find_spec(name) is None]
        return f"{', '.join(absent)} not installed" if absent else None

    def layout(self, sample: Sample) -> list[list[int] | None]:
        """Return the order of the axes of each input; None where the order is that of the module."""
        return [_NHWC if self.channels_last and array.ndim == 4 else None for array in sample]


def _torch_onnx(module: torch.nn.Module, inputs: Sequence[torch.Tensor], model: Path) -> None:
    """Run ``torch.onnx.export`` with its defaults; write one file."""
    import torch

    torch.onnx.export(module, tuple(inputs), str(model), external_data=False, verbose=False)


def _quantize_static(source: Path, data: Sequence[Sample], model: Path, ranges: str = "") -> None:
    """Run ``onnxruntime.quantization.quantize_static`` with its defaults; or per channel, with ``ranges``, on u8.

    With ``ranges`` the file is first prepared by ``quant_pre_process``, as the documentation advises.
    """
    import onnxruntime
    from onnxruntime import quantization

    if ranges:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = model.with_suffix(".prepared.onnx")
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        source = prepared
    names = [value.name for value in onnxruntime.InferenceSession(str(source)).get_inputs()]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Sample] = iter(data)

        def get_next(self) -> dict[str, Any] | None:
            sample = next(self._left, None)
            return None if sample is None else dict(zip(names, sample, strict=True))

    settings: dict[str, Any] = {}
    if ranges:
        method = quantization.CalibrationMethod[ranges]
        settings = {
            "per_channel": True,
            "calibrate_method": method,
            "activation_type": quantization.QuantType.QUInt8,
        }
    quantization.quantize_static(str(source), str(model), Reader(), **settings)


def _olive_int8(source: Path, data: Sequence[Sample], model: Path) -> None:
    """Run Olive's OnnxStaticQuantization with its defaults, on the same samples."""
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"  # read when olive is imported
    import onnxruntime
    import torch
    from olive.data.registry import Registry
    from olive.workflows import run

    names = [value.name for value in onnxruntime.InferenceSession(str(source)).get_inputs()]

    class Measured(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> Any:
            return dict(zip(names, data[index], strict=True)), 0

    Registry.register_dataset("measured")(lambda **_: Measured())
    config = {
        "input_model": {"type": "ONNXModel", "model_path": str(source)},
        "systems": {"host": {"type": "LocalSystem", "accelerators": [{"device": "cpu"}]}},
        "data_configs": [{"name": "data", "type": "DummyDataContainer", "load_dataset_config": {"type": "measured"}}],
        "passes": {"quantise": {"type": "OnnxStaticQuantization", "data_config": "data"}},
        "target": "host",
        "output_dir": str(model.parent / "olive"),
        "cache_dir": str(model.parent / "olive-cache"),
    }
    run(config)
    (found,) = sorted((model.parent / "olive").rglob("*.onnx"))
    found.rename(model)


def _openvino_convert(module: torch.nn.Module, inputs: Sequence[torch.Tensor], model: Path) -> None:
    """Run ``openvino.convert_model`` from torch with static shapes; weights are kept in fp32."""
    import openvino
    import torch

    given = inputs[0] if len(inputs) == 1 else tuple(inputs)
    shapes = [tuple(value.shape) for value in inputs]
    with torch.no_grad():  # otherwise two traces of torch's own encoder differ, and OpenVINO refuses the module
        converted = openvino.convert_model(module, example_input=given, input=shapes)
    openvino.save_model(converted, model, compress_to_fp16=False)


def _nncf_quantize(
    source: Path, data: Sequence[Sample], model: Path, *, fast: bool = True, preset: str = "PERFORMANCE"
) -> None:
    """Run ``nncf.quantize`` with its defaults; or with its slower correction of biases, or another preset."""
    import nncf
    import openvino

    converted = openvino.Core().read_model(source)
    quantised = nncf.quantize(
        converted,
        nncf.Dataset(list(data), list),
        fast_bias_correction=fast,
        preset=nncf.QuantizationPreset[preset],
    )
    openvino.save_model(quantised, model, compress_to_fp16=False)


def _litert_convert(module: torch.nn.Module, inputs: Sequence[torch.Tensor], model: Path) -> None:
    """Run ``litert_torch.convert`` with channels-last inputs, as ours has them; others would cost it a transpose."""
    import litert_torch

    last = [index for index, value in enumerate(inputs) if value.ndim == 4]
    given = tuple(value.permute(_NHWC).contiguous() if value.ndim == 4 else value for value in inputs)
    wrapped = litert_torch.to_channel_last_io(module, args=last).eval() if last else module
    litert_torch.convert(wrapped, given).export(str(model))


def _ai_edge_quantize(source: Path, data: Sequence[Sample], model: Path, *, extremes: bool = False) -> None:
    """Run ai-edge-quantizer's own static recipe, with float inputs and outputs as in all the models here.

    ``extremes``: ranges are the extremes over all samples; the default is a moving average.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import qtyping, quantizer, recipe, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    ((key, signature),) = Interpreter(str(source)).get_signature_list().items()
    names = sorted(signature["inputs"], key=lambda name: int(name.rsplit("_", 1)[1]))
    rules = recipe_manager.RecipeManager()
    rules.load_quantization_recipe(recipe.static_wi8_ai8())
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        rules.add_quantization_config(regex=".*", operation_name=end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    work = quantizer.Quantizer(str(source))
    work.load_quantization_recipe(rules.get_quantization_recipe())
    moved = [tuple(np.ascontiguousarray(a.transpose(_NHWC)) if a.ndim == 4 else a for a in sample) for sample in data]
    fed = {key: [dict(zip(names, sample, strict=True)) for sample in moved]}
    if extremes:
        from ai_edge_quantizer import calibrator
        from ai_edge_quantizer.utils import qsv_utils

        seen = calibrator.Calibrator(str(source), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
        seen.calibrate(fed, rules)
        ranges = seen.get_model_qsvs()
    else:
        ranges = work.calibrate(fed)
    work.quantize(ranges).export_model(str(model), overwrite=True)


_ONNX = ("onnx", "onnxscript", "onnxruntime")
# runtime -> name of the peer -> peer. The name stands in the column "maker" of the table.
PEERS: dict[str, dict[str, Peer]] = {
    "onnxruntime": {
        "torch.onnx": Peer(("model.onnx",), _ONNX, _torch_onnx, _quantize_static),
        "olive": Peer(("model.onnx",), (*_ONNX, "olive"), _torch_onnx, _olive_int8),
    },
    "openvino": {"ov+nncf": Peer(("model.xml", "model.bin"), ("openvino", "nncf"), _openvino_convert, _nncf_quantize)},
    "tflite": {
        "litert-torch": Peer(
            ("model.tflite",),
            ("litert_torch", "ai_edge_quantizer"),
            _litert_convert,
            _ai_edge_quantize,
            channels_last=True,
        )
    },
}
# name of the peer -> label -> settings other than the defaults, for `hnas.benchmarks.peers.accuracy`
TUNED: dict[str, dict[str, dict[str, Any]]] = {
    "torch.onnx": {f"per channel, {ranges}": {"ranges": ranges} for ranges in ("MinMax", "Percentile", "Entropy")},
    "ov+nncf": {
        "mixed": {"preset": "MIXED"},
        "slow correction": {"fast": False},
        "mixed, slow correction": {"fast": False, "preset": "MIXED"},
    },
    "litert-torch": {"extremes": {"extremes": True}},
}
