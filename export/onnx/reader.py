"""Check, copy and run the user's ONNX file, in a separate process.

``python -m hnas.export.onnx.reader`` serves `hnas.export.onnx.source.Original` in the parent process, over stdin and
stdout. The file runs in ONNX Runtime with all graph optimisations off, so its outputs are a reference for the optimised
artifact of the same runtime. Without ONNX Runtime, the file runs in ONNX's own evaluator, which is slow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hnas.export.device.artifact import TensorSpec
from hnas.export.device.dynamic import DynamicSize, resized
from hnas.export.device.errors import ExportError, one_line
from hnas.export.device.frames import Arrays, Frame, Header, dispatch, serve
from hnas.export.device.opening import limit_memory
from hnas.export.device.records import encode
from hnas.export.graph.agreement import HALF_DB, least_of_double, same_values
from hnas.export.graph.samples import random_sample
from hnas.export.graph.sizes import parse_dynamic
from hnas.export.onnx.checks import OnnxFile, read_onnx
from hnas.export.onnx.given import arrange, in_order
from hnas.export.onnx.opening import open_size
from hnas.export.onnx.single import in_single
from hnas.export.onnx.sizes import ShapeAndType, fix_inputs, fix_outputs, open_axes
from hnas.export.onnx.source import UNTOUCHED, OnnxSource

_Run = Callable[[dict[str, Any]], Any]  # from inputs by name to a list of outputs


class Reader:
    """Hold one file, ready to run, and answer the parent's requests."""

    def __init__(self) -> None:
        self._source: OnnxSource | None = None
        self._run: _Run | None = None

    def do_read(self, header: Header, arrays: Arrays) -> Frame:
        """Check the file at ``path`` within ``memory_mb``, write a clean copy to ``copy``, and run it.

        The reply has the example inputs in the order and the types of the file.

        ``arrays``: example inputs, which fix dynamic sizes. If there are none, the examples are random.
        ``names``: the name of each of ``arrays`` or ``shapes``; None: they are in the order of the file.
        ``shapes``: the shapes of the random inputs, which fix dynamic sizes; None: the shapes in the file.
        ``dynamic``: the option of this name as pairs of input and (axis, text) pairs; None: all sizes are fixed.
        """
        limit_memory(header["memory_mb"])
        path, copy = Path(header["path"]), Path(header["copy"])
        asked = None if header["dynamic"] is None else {name: dict(axes) for name, axes in header["dynamic"]}
        try:
            file = read_onnx(path)
            last = _last_operator(file)  # before casts are added
            converted = in_single(file)
            examples = arrange(file, arrays, header["names"]) if arrays else ()
            inputs = fix_inputs(file, _given(file, examples, header), asked)
        except (AttributeError, TypeError) as error:  # a name that is not UTF-8 is parsed to bytes
            raise ValueError(f"{path.name} is not a valid ONNX file: a name in it is not UTF-8 text") from error
        size = None if asked is None else parse_dynamic(asked, [tensor.name for tensor in inputs], inputs)
        examples = examples or random_sample(inputs)
        _write(file, copy)
        names = [value.name for value in file.model.graph.output]
        self._run, by = _runner(copy, path.name, names)
        notes = {**file.notes, "held_against": by, "passes": UNTOUCHED}
        remarks = tuple(f"{name} parts are computed in float32" for name in converted)
        self._source = OnnxSource(str(copy), path.name, inputs, (), notes, remarks=remarks, last=last)
        outputs = _stated(path.name, names, seen := self._outputs(examples, " on its example inputs"))
        if converted:
            self._compare_types(path, copy, examples, seen, converted)
        if size is not None:
            size = self._open_size(file, size, examples)
            open_axes(file, outputs, size, "output")
        elif not fix_outputs(file, outputs):
            return self._read(outputs, file, None), examples
        _write(file, copy)
        return self._read(outputs, file, size), examples

    def _read(self, outputs: tuple[TensorSpec, ...], file: OnnxFile, size: DynamicSize | None) -> Header:
        """Complete the record of the file, and return it as a reply."""
        assert self._source is not None
        notes = {**self._source.notes, "changes": file.changes}
        self._source = replace(self._source, outputs=outputs, notes=notes, dynamic=size)
        return {"source": encode(self._source)}

    def _compare_types(self, path: Path, copy: Path, examples: Arrays, seen: Arrays, kinds: Sequence[str]) -> None:
        """Compare the values in float32 with those of the file as it was, in the float types ``kinds``.

        A remark says so where the reference runtime does not run the file as it was.

        Raises:
            ExportError: the values differ.
        """
        assert self._source is not None
        moved = tuple(np.nextafter(x, np.float32(np.inf)) if x.dtype == np.float32 else x for x in examples)
        before = _outputs_before(path, copy.with_name("before.onnx"), examples, moved)
        if before is None:
            said = f"the values were not compared with those in {kinds[0]}, which the reference runtime does not run"
            self._source = replace(self._source, remarks=(*self._source.remarks, said))
        elif not same_values(before[0], seen, least_of_double(*before) if kinds == ("float64",) else HALF_DB):
            raise ExportError(f"{path.name} computes other values in float32 than in {kinds[0]}")

    def _open_size(self, file: OnnxFile, size: DynamicSize, examples: Arrays) -> DynamicSize:
        """Open a size of the file, run it from now on, and return the size with the axes of the outputs."""
        assert self._source is not None
        run, inputs = self._run, self._source.inputs
        copy, names = Path(self._source.path), [value.name for value in file.model.graph.output]
        stated = [file.stated[tensor.name] for tensor in inputs]
        symbolic = all(
            axis is None or sizes is None or isinstance(sizes[axis], str)
            for sizes, axis in zip(stated, size.inputs, strict=True)
        )

        def opened() -> Callable[[Arrays], Arrays]:
            _write(file, copy)
            self._run = _runner(copy, file.name, names)[0]
            return self._outputs

        closed = None if symbolic else lambda arrays: self._outputs(arrays, run=run)
        return open_size(file, inputs, examples, size, opened, closed)

    def do_run(self, _: Header, arrays: Arrays) -> Frame:
        """Return the outputs for ``arrays``. Raise ValueError if a shape is none that the example inputs foretell."""
        assert self._source is not None
        source = self._source
        outputs, shapes = self._outputs(arrays), [tensor.shape for tensor in source.outputs]
        if source.dynamic is not None:
            pairs = zip(arrays, source.dynamic.inputs, strict=True)
            count = next(value.shape[axis] for value, axis in pairs if axis is not None)
            shapes = resized(shapes, source.dynamic.outputs, count)
        for value, tensor, shape in zip(outputs, source.outputs, shapes, strict=True):
            if value.shape != shape:
                both = f"{list(shape)} on the example inputs, {list(value.shape)} on others"
                raise ValueError(f"{tensor.name} of {source.name} is {both}; an artifact has fixed sizes")
        return {}, outputs

    def do_nan(self, _: Header, arrays: Arrays) -> Frame:
        """Return as ``value`` the name of the first value in the graph that is NaN for ``arrays``; empty if none is."""
        import onnx

        assert self._source is not None
        model, every = onnx.load(self._source.path), Path(self._source.path).with_name("every.onnx")
        names = [name for node in model.graph.node for name in node.output if name]
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        onnx.save(model, every)
        values = self._outputs(arrays, run=_runner(every, self._source.name, names)[0])
        pairs = zip(names, values, strict=True)
        return {"value": next((name for name, v in pairs if v.dtype.kind == "f" and np.isnan(v).any()), "")}, ()

    def _outputs(self, arrays: Arrays, where: str = "", run: _Run | None = None) -> Arrays:
        run = run or self._run
        assert self._source is not None
        assert run is not None
        name, tensors = self._source.name, self._source.inputs
        try:
            outputs = run({tensor.name: value for tensor, value in zip(tensors, arrays, strict=True)})
        except Exception as error:  # a runtime raises any type
            raise ExportError(f"{name} does not run{where}: {_reason(error)}") from error
        odd = next((value for value in outputs if not isinstance(value, np.ndarray)), None)
        if odd is not None:
            raise ExportError(f"{name} returns a {type(odd).__name__}; an artifact returns tensors of numbers")
        return tuple(outputs)


def _last_operator(file: OnnxFile) -> str:
    """Return the type of the operator that makes the first output, before identities and casts; empty if none does."""
    makers = {name: node for node in file.model.graph.node for name in node.output}
    found = makers.get(file.model.graph.output[0].name)
    while found is not None and found.op_type in ("Identity", "Cast"):
        found = makers.get(found.input[0])
    return "" if found is None else str(found.op_type)


def _stated(file: str, names: list[str], outputs: Arrays) -> tuple[TensorSpec, ...]:
    """Return the specs of the outputs. Raise ExportError if an output has NaN."""
    for name, value in zip(names, outputs, strict=True):
        if value.dtype.kind == "f" and np.isnan(value).any():
            raise ExportError(f"output {name} of {file} holds NaN on its example inputs")
    return tuple(TensorSpec(name, value.shape, str(value.dtype)) for name, value in zip(names, outputs, strict=True))


def _given(file: OnnxFile, examples: Arrays, header: Header) -> list[ShapeAndType] | None:
    """Return shape and type of each example input, or the shapes of random ones; None where neither is given."""
    if examples:
        return [(value.shape, str(value.dtype)) for value in examples]
    shapes = header["shapes"]
    return [(tuple(shape), "") for shape in in_order(file, shapes, header["names"])] if shapes else None


def _outputs_before(path: Path, copy: Path, *calls: Arrays) -> list[Arrays] | None:
    """Return the outputs of the file with its own float types for each call.

    None: the reference runtime does not run these types.

    copy: where the file is written for that.
    """
    import onnx

    model = read_onnx(path).model
    onnx.save(model, copy)
    kinds = [value.type.tensor_type.elem_type for value in model.graph.input]
    types = [onnx.helper.tensor_dtype_to_np_dtype(kind) for kind in kinds]
    feeds = [
        {
            value.name: array.astype(kind) if array.dtype.kind == "f" else array
            for value, kind, array in zip(model.graph.input, types, examples, strict=True)
        }
        for examples in calls
    ]
    try:
        run, _ = _runner(copy, path.name, [value.name for value in model.graph.output])
        return [tuple(run(feed)) for feed in feeds]
    except Exception:  # noqa: BLE001  # a runtime raises any type; the caller says that nothing was compared
        return None


def _write(file: OnnxFile, copy: Path) -> None:
    """Write the file to ``copy``: the original bytes where nothing was changed."""
    copy.write_bytes(file.model.SerializeToString() if file.changes else file.data)


def _runner(copy: Path, name: str, outputs: list[str]) -> tuple[_Run, str]:
    """Return a function that runs the file, and its name for the notes."""
    if not find_spec("onnxruntime"):
        return _evaluator(copy, outputs)
    import onnxruntime as ort

    from hnas.export.device.runtimes.onnxruntime import session_options

    options = session_options(os.cpu_count() or 1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(copy), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a runtime raises any type
        raise ExportError(f"ONNX Runtime, the reference runtime, does not open {name}: {_reason(error)}") from error
    by = f"onnxruntime {version('onnxruntime')}, graph optimisations off"
    return lambda feed: session.run(outputs, feed), by


def _evaluator(copy: Path, outputs: list[str]) -> tuple[_Run, str]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load(copy))
    return lambda feed: evaluator.run(outputs, feed), f"onnx {version('onnx')}, reference evaluator"


def _reason(error: Exception) -> str:
    """Return a line on the operator or opset that the runtime lacks, else the error without source-code positions."""
    text = " ".join(str(error).split())
    if found := re.search(r"([\w.]+)[:.](\w+)\(-?\d+\) is not a registered function/op", text):
        return f"it has no operator {found[2]} of domain {found[1]}"
    if found := re.search(r"Could not find an implementation for (\w+)\((\d+)\)", text):
        return f"it has no {found[1]} of opset {found[2]} for these types"
    if found := re.search(r"Opset (\d+) is under development.* till opset (\d+)", text):
        return f"it supports opset {found[2]}, the file has opset {found[1]}"
    node = re.search(r"while running (\w+) node", text)
    plain = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed: ?", "", text)
    plain = re.sub(r"^.*/onnxruntime_src/\S+ .*\) (?=[A-Z])", "", plain)
    return (f"{node[1]}: " if node else "") + one_line(type(error)(plain)).partition(": ")[2]


if __name__ == "__main__":
    serve(dispatch(Reader()))
