"""Write how a bundle is used without hnas: programs for its runtime alone, and configurations of servers.

``runtime_snippet(manifest, artifact)``. The programs run in the folder of the bundle, with the runtime; those in Python
also need numpy, and Pillow for images. Tests execute all of them.
"""

from __future__ import annotations

import json
import math

from hnas.export.bundle.manifest import Manifest
from hnas.export.device.artifact import Artifact
from hnas.export.device.records import JSON

_ONNXRUNTIME = """options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}
{exact}session = onnxruntime.InferenceSession({model}, options, providers=["CPUExecutionProvider"])
outputs = session.run(None, {{value.name: x for value, x in zip(session.get_inputs(), inputs)}})"""
_EXACT = {  # by precision
    "int8": """# Without VNNI, an x86 CPU needs this for exact sums. With VNNI leave it out: it takes twice as long.
options.add_session_config_entry("session.x64quantprecision", "1")
"""
}
_OPENVINO = """hints = {{"INFERENCE_PRECISION_HINT": {hint}, "INFERENCE_NUM_THREADS": {threads}{more}}}
compiled = openvino.Core().compile_model({model}, "CPU", hints)
outputs = list(compiled(inputs).values())"""
_TFLITE = """interpreter = Interpreter({model}, num_threads={threads})
interpreter.allocate_tensors()
(given,) = interpreter.get_input_details()
interpreter.set_tensor(given["index"], np.ascontiguousarray(inputs[0]{turned}, given["dtype"]))
interpreter.invoke()
outputs = [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]"""
_CPP = """#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>

#include <openvino/openvino.hpp>

int main(int argc, char** argv) {{
  const std::string bundle = argc > 1 ? argv[1] : ".";
  ov::Core core;
  auto model = core.compile_model(bundle + {model}, "CPU", ov::AnyMap{{{hints}}});
  auto request = model.create_infer_request();
  for (std::size_t i = 0; i < model.inputs().size(); ++i) {{
    ov::Tensor input = request.get_input_tensor(i);
    std::ifstream file(static_cast<int>(i) + 2 < argc ? argv[i + 2] : "", std::ios::binary);
    if (!file.read(static_cast<char*>(input.data()), input.get_byte_size()) || file.peek() != EOF) {{
      std::cerr << "input " << i << " is a file of " << input.get_byte_size() << " bytes\\n";
      return 2;
    }}
  }}
  request.infer();
  for (std::size_t i = 0; i < model.outputs().size(); ++i) {{
    ov::Tensor output = request.get_output_tensor(i);
    std::ofstream file("output" + std::to_string(i) + ".bin", std::ios::binary);
    file.write(static_cast<const char*>(output.data()), output.get_byte_size());
    std::cout << output.get_element_type() << ' ' << output.get_shape() << '\\n';
  }}
}}"""
CPP_BUILD = """at=$(python -c 'import openvino, pathlib; print(pathlib.Path(openvino.__file__).parent)')
abi=$(grep -q N2ov4CoreC1ERKNSt7__cxx11 "$at"/libs/libopenvino.so.* && echo 1 || echo 0)  # older wheels: 0
g++ -std=c++17 -D_GLIBCXX_USE_CXX11_ABI=$abi run.cpp \\
  -I "$at/include" "$at"/libs/libopenvino.so.* -Wl,-rpath,"$at/libs" -o run"""
_PROGRAMS = {
    "onnxruntime": ("import onnxruntime", _ONNXRUNTIME),
    "openvino": ("import openvino", _OPENVINO),
    "tflite": ("from ai_edge_litert.interpreter import Interpreter", _TFLITE),
}
_IMAGE = """image = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert({mode})
pixels = np.asarray(image.resize({base}, Image.Resampling.BILINEAR), np.float32).reshape({shape})
x = ((pixels / 255 - np.float32({mean})) / np.float32({std})).transpose(2, 0, 1)
{resize}inputs = [np.repeat(x[None], {batch}, axis=0).astype(np.float32)]"""
_RESIZE = "x = np.stack([np.asarray(Image.fromarray(c).resize({size}, Image.Resampling.BILINEAR)) for c in x])\n"
_HINTS = {"fp32": "f32", "int8": "f32", "w8": "f32", "bf16": "bf16"}
_TYPES = {"float32": "FP32", "float64": "FP64", "float16": "FP16", "bool": "BOOL"}
_TRITON = {"onnxruntime": 'backend: "onnxruntime"', "openvino": 'backend: "openvino"'}

_SERVED = "/models/net"  # where a container of the model server usually has its models


def runtime_snippet(manifest: Manifest, artifact: Artifact) -> str:
    """Return a Python program that runs the artifact with its runtime alone; empty for a runtime without one.

    1. The bundle classifies images: the program takes the name of an image file and prints the likeliest class.
    2. Else it runs arrays of zeros and prints the shapes of the outputs.
    """
    imported, program = _PROGRAMS.get(artifact.backend, ("", ""))
    hint = _HINTS.get(artifact.precision)
    if (
        not program
        or hint is None
        or _open_sizes(artifact)
        or (artifact.backend == "tflite" and len(artifact.inputs) != 1)
    ):
        return ""
    layout = artifact.notes.get("layout")
    order = layout[0] if isinstance(layout, list) and layout else None
    filled = program.format(
        model=_quoted(_model(manifest, artifact)),
        threads=artifact.threads,
        hint=_quoted(hint),
        exact=_EXACT.get(artifact.precision, ""),
        more=', "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0' if artifact.precision == "w8" else "",  # else activations too
        turned=f".transpose({_whole(order)})" if order else "",
    )
    image = _image(manifest)
    if image:  # case 1
        head = ["import json", "import sys", "", "import numpy as np", imported, "from PIL import Image, ImageOps"]
        tail = 'print(json.load(open("manifest.json"))["labels"][int(outputs[0][0].argmax())])'
        return "\n".join([*head, "", image, filled, tail])
    zeros = ", ".join(f"np.zeros({_whole(spec.shape)}, {_quoted(spec.dtype)})" for spec in artifact.inputs)
    tail = "print([each.shape for each in outputs])"  # case 2
    return "\n".join(["import numpy as np", imported, "", f"inputs = [{zeros}]", filled, tail])


def cpp_snippet(manifest: Manifest, artifact: Artifact) -> str:
    """Return a C++ program for OpenVINO, which ``CPP_BUILD`` compiles; empty for another runtime.

    Its arguments are the bundle, and for each input a file of the raw values that ``tofile`` of a numpy array writes.
    It writes the outputs likewise, ``output0.bin`` first.
    """
    hint = _HINTS.get(artifact.precision)
    if artifact.backend != "openvino" or hint is None or _open_sizes(artifact):
        return ""
    more = ', {"DYNAMIC_QUANTIZATION_GROUP_SIZE", 0}' if artifact.precision == "w8" else ""
    hints = f'{{"INFERENCE_PRECISION_HINT", {_quoted(hint)}}}, {{"INFERENCE_NUM_THREADS", {artifact.threads}}}{more}'
    return _CPP.format(model=_quoted(f"/{_model(manifest, artifact)}"), hints=hints)


def triton_config(manifest: Manifest, artifact: Artifact) -> str:
    """Return ``config.pbtxt`` of NVIDIA's Triton for a model file that it serves; empty for another.

    The model stands in the repository as ``NAME/1/model.onnx`` or ``NAME/1/model.xml`` with its ``.bin``.
    """
    if artifact.backend not in _TRITON or not artifact.inputs or not artifact.outputs:
        return ""
    lines = [f"name: {_quoted(manifest.name)}", _TRITON[artifact.backend], "max_batch_size: 0"]
    lines.append(f"default_model_filename: {_quoted(artifact.model.name)}")
    for kind, specs in (("input", artifact.inputs), ("output", artifact.outputs)):
        said = [
            f"  {{ name: {_quoted(spec.name)} data_type: TYPE_{_TYPES.get(spec.dtype, spec.dtype.upper())} "
            f"dims: [ {', '.join(map(str, spec.shape))} ] }}"
            for spec in specs
        ]
        lines.append(f"{kind} [\n" + ",\n".join(said) + "\n]")
    lines.append("instance_group [ { kind: KIND_CPU count: 1 } ]")
    if artifact.backend == "onnxruntime":
        threads = f'{{ key: "intra_op_thread_count" value: {{ string_value: "{artifact.threads}" }} }}'
        lines.append(f"parameters {threads}")
    return "\n".join(lines)


def model_server_config(manifest: Manifest, artifact: Artifact) -> str:
    """Return ``config.json`` of OpenVINO Model Server for an OpenVINO artifact; empty for another.

    The model stands in the folder ``/models/net/1``, the ``.xml`` with its ``.bin``.
    """
    hint = _HINTS.get(artifact.precision)
    if artifact.backend != "openvino" or hint is None:
        return ""
    plugin = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": str(artifact.threads)}
    if artifact.precision == "w8":
        plugin["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"  # as in the Python program
    config = {"name": manifest.name, "base_path": _SERVED, "plugin_config": plugin}
    return json.dumps({"model_config_list": [{"config": config}]}, indent=2)


def _open_sizes(artifact: Artifact) -> bool:
    """Return whether a size of an input is open, or the inputs are not known."""
    return not artifact.inputs or any(0 in spec.shape for spec in artifact.inputs)


def _model(manifest: Manifest, artifact: Artifact) -> str:
    """Return the path of the model file in the bundle."""
    return f"{manifest.artifact}/{next(iter(artifact.files))}"


def _image(manifest: Manifest) -> str:
    """Return the lines from an image file to the inputs; empty if the bundle does not state the steps."""
    taken = manifest.input
    steps = _steps(taken.preprocessing) if taken is not None else None
    if taken is None or steps is None or not taken.shape or not manifest.labels:
        return ""
    base, size, mean, std = steps
    height, width = (int(each) for each in base)
    return _IMAGE.format(
        mode=_quoted("L" if len(mean) == 1 else "RGB"),
        base=(width, height),
        shape=(height, width, len(mean)),
        mean=mean,
        std=std,
        resize="" if base == size else _RESIZE.format(size=(int(size[1]), int(size[0]))),
        batch=int(taken.shape[0]),
    )


def _steps(record: JSON) -> tuple[list[float], ...] | None:
    """Return base, size, mean and std of a preprocessing; None if it does not have them."""
    if not isinstance(record, dict):
        return None
    found = tuple(_numbers(record.get(key)) for key in ("base", "size", "mean", "std"))
    base, size, mean, std = map(len, found)
    return found if base == size == 2 and mean == std and mean in (1, 3) else None


def _numbers(value: JSON) -> list[float]:
    """Return a list of finite numbers; an empty one for anything else, which a hostile manifest may state."""
    plain = isinstance(value, list | tuple) and all(
        type(each) in (int, float) and math.isfinite(each) for each in value
    )
    return list(value) if plain else []


def _whole(sizes: JSON) -> str:
    """Return integers as a tuple in Python."""
    return repr(tuple(int(each) for each in sizes))


def _quoted(text: str) -> str:
    """Return a string literal that Python and protobuf read alike, in printable ASCII."""
    return json.dumps(text)
