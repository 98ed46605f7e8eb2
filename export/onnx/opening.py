"""Open one size of an ONNX file, such as the batch, and find the axes of its outputs: ``open_size(file, ...)``.

A file with a symbolic size keeps it. In a file with a fixed size, reshapes that repeat the size are rewritten, and the
result is compared with the untouched file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hnas.export.device.artifact import TensorSpec
from hnas.export.device.dynamic import DynamicSize
from hnas.export.device.errors import ExportError
from hnas.export.graph.agreement import SINGLE_DB, same_values
from hnas.export.graph.samples import Sample, noise
from hnas.export.graph.sizes import find_output_axes, sample_of_size
from hnas.export.onnx.sizes import open_axes

if TYPE_CHECKING:
    import onnx

    from hnas.export.onnx.checks import OnnxFile

Run = Callable[[Sample], Sample]


def open_size(
    file: OnnxFile,
    inputs: Sequence[TensorSpec],
    examples: Sample,
    size: DynamicSize,
    opened: Callable[[], Run],
    closed: Run | None,
) -> DynamicSize:
    """Open ``size`` in the file, whose sizes are those of ``examples``. Return it with the axes of the outputs.

    opened: writes the file as it is now, and returns a function that runs it.
    closed: runs the file with fixed sizes; None: the size was symbolic in the file, which is a promise.

    1. The file runs with a size of 2 and of 3, and computes each row as ``closed`` does.
    2. Else, if its size was fixed: the constant shapes of its reshapes are rewritten, and case 1 is tried again.

    Raises:
        ValueError: the file is wrong for another size; the message names the node.
    """
    model = file.model
    ends = type(model.graph)(input=model.graph.input, output=model.graph.output, value_info=model.graph.value_info)
    del model.graph.value_info[:]  # these records repeat the sizes
    open_axes(file, inputs, size, "input")
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return _tested(opened(), examples, size, closed)
    except (ExportError, ValueError) as error:
        reason = error
    if closed is not None and _free_reshapes(model, ends):  # case 2
        file.changes.append(f"its reshapes take any {size.name}")
        try:
            return _tested(opened(), examples, size, closed)
        except (ExportError, ValueError) as error:
            reason = error
    said = str(reason).removeprefix(f"{file.name} does not run: ")
    raise ValueError(f"{file.name} is made for one {size.name}: {said}; export it with a dynamic {size.name}")


def _tested(run: Run, examples: Sample, size: DynamicSize, closed: Run | None) -> DynamicSize:
    """Case 1 of ``open_size``."""
    small, large = (run(sample_of_size([examples], size, count)) for count in (2, 3))
    found = find_output_axes(small, large, size)
    if closed is None:
        return found
    drawn = noise(examples, 1)
    other = tuple(x if axis is None else y for x, y, axis in zip(examples, drawn, size.inputs, strict=True))
    own = next(x.shape[axis] for x, axis in zip(examples, size.inputs, strict=True) if axis is not None)
    both = run(sample_of_size([examples, other], size, 2 * own))
    for half, sample in enumerate((examples, other)):
        rows = range(half * own, (half + 1) * own)
        got = [y if axis is None else np.take(y, rows, axis) for y, axis in zip(both, found.outputs, strict=True)]
        if not same_values(closed(sample), got, SINGLE_DB):
            raise ValueError(f"with a {size.name} of {2 * own} it does not compute what it does with {own}")
    return found


def _free_reshapes(model: onnx.ModelProto, ends: onnx.GraphProto) -> int:
    """Let the first size of each reshape to constant sizes follow from the others. Return the number of changes.

    ends: the inputs, outputs and values of the model with fixed sizes. With them a size of -1 may be known, and becomes
        a number.
    """
    import onnx

    graph, known, inferred = model.graph, _constants(model.graph), _inferred(model, ends)
    changes = 0
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in known:
            continue
        shape = onnx.numpy_helper.to_array(known[node.input[1]]).tolist()
        if 0 in shape and any(each.i for each in node.attribute):  # an empty tensor
            continue
        if -1 in shape[1:]:
            there = inferred.get(node.output[0], [])
            shape = [(size or -1) if each == -1 else each for each, size in zip(shape, there, strict=False)]
        if shape and shape[0] >= 1 and -1 not in shape:
            name = f"{node.output[0]}_open_sizes"
            graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, *shape[1:]], np.int64), name))
            node.input[1] = name
            changes += 1
    return changes


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the constants of a graph by name."""
    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            known[node.output[0]] = node.attribute[0].t
    return known


def _inferred(model: onnx.ModelProto, ends: onnx.GraphProto) -> dict[str, list[int]]:
    """Return the sizes of the values of a model, as far as they follow from the inputs in ``ends``; 0 is unknown."""
    import onnx

    fixed = type(model)()
    fixed.CopyFrom(model)
    for name in ("input", "output", "value_info"):
        fixed.graph.ClearField(name)
    fixed.graph.MergeFrom(ends)
    graph = onnx.shape_inference.infer_shapes(fixed).graph
    values = (*graph.value_info, *graph.output)
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
