"""Write one step of an LSTM with the LSTM operator of a runtime: ``write_own_lstm(step, "onnxruntime", folder)``.

The file is made with the tools of the runtime and not by hnas, so that the operator is certainly in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_Array = NDArray[np.float32]
_GATES = ("i", "f", "g", "o")  # in the order of torch: input, forget, cell, output
_WIDEST = 512


class LstmStep(nn.Module):
    """One step of torch's LSTM with a linear readout: x [1, F], h and c [1, H] -> y [1, D], h, c."""

    def __init__(self, features: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(features, hidden)
        self.readout = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the outputs of a row, and the next state."""
        h, c = self.cell(x, (h, c))
        return self.readout(h), h, c


def lstm_of_size(features: int, outputs: int, weights: int, seed: int) -> LstmStep:
    """Return the untrained LSTM whose number of weights is nearest to ``weights``."""

    def distance(hidden: int) -> int:
        return abs(4 * hidden * (features + hidden + 2) + outputs * (hidden + 1) - weights)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LstmStep(features, outputs, min(range(1, _WIDEST + 1), key=distance)).eval()


def write_own_lstm(step: LstmStep, backend: str, folder: Path) -> tuple[Path, str]:
    """Write the model file of a step into ``folder``; return its path and the operator's name in a profile.

    1. "onnxruntime": x [1, 1, F], h and c [1, 1, H] -> y [1, 1, D], h, c. The operator LSTM of ONNX.
    2. "openvino": x [1, F], h and c [1, H] -> y [1, D], h, c. The operator LSTMCell, RNNCell in a profile.
    3. "tflite": x [1, 1, F] -> y [1, D]. The operator UNIDIRECTIONAL_SEQUENCE_LSTM, which keeps its state.
    """
    writers: Mapping[str, Callable[[LstmStep, Path], tuple[Path, str]]] = {
        "onnxruntime": _write_onnx,
        "openvino": _write_openvino,
        "tflite": _write_tflite,
    }
    return writers[backend](step, folder)


def first_inputs(step: LstmStep, backend: str, x: _Array) -> list[_Array]:
    """Return the inputs of a file's first step: the row x [1, F], and zero states where the file takes them."""
    state: list[_Array] = [np.zeros((1, step.cell.hidden_size), np.float32)] * 2
    if backend == "openvino":
        return [x, *state]
    return [x[None], *([each[None] for each in state] if backend == "onnxruntime" else [])]


def _parts(step: LstmStep, order: str) -> tuple[_Array, _Array, _Array, _Array]:
    """Return the two matrices [4 H, F] and [4 H, H] and the two biases [4 H], with the gates in ``order``."""
    cell = step.cell
    found = []
    for tensor in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh):
        gates = dict(zip(_GATES, tensor.detach().chunk(4), strict=True))
        found.append(torch.cat([gates[gate] for gate in order]).numpy())
    into, back, first, second = found
    return into, back, first, second


def _readout(step: LstmStep) -> tuple[_Array, _Array]:
    return step.readout.weight.detach().numpy(), step.readout.bias.detach().numpy()


# --- ONNX Runtime -----------------------------------------------------------------------------------------------------


def _write_onnx(step: LstmStep, folder: Path) -> tuple[Path, str]:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    into, back, first, second = _parts(step, "iofg")
    matrix, bias = _readout(step)
    constants = {"w": into[None], "r": back[None], "b": np.concatenate([first, second])[None]}
    constants |= {"matrix": np.ascontiguousarray(matrix.T), "bias": bias}
    hidden = step.cell.hidden_size
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b", "", "h", "c"], ["", "h_next", "c_next"], hidden_size=hidden),
        helper.make_node("MatMul", ["h_next", "matrix"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]

    def values(sizes: Mapping[str, int]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, n]) for name, n in sizes.items()]

    graph = helper.make_graph(
        nodes,
        "lstm",
        values({"x": step.cell.input_size, "h": hidden, "c": hidden}),
        values({"y": step.readout.out_features, "h_next": hidden, "c_next": hidden}),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = folder / "lstm.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path, "LSTM"


# --- OpenVINO ---------------------------------------------------------------------------------------------------------


def _write_openvino(step: LstmStep, folder: Path) -> tuple[Path, str]:
    import openvino
    from openvino import opset13 as ops

    into, back, first, second = _parts(step, "figo")
    matrix, bias = _readout(step)
    hidden = step.cell.hidden_size
    sizes = {"x": step.cell.input_size, "h": hidden, "c": hidden}
    given = [ops.parameter([1, n], np.float32, name=name) for name, n in sizes.items()]
    cell = ops.lstm_cell(*given, into, back, first + second, hidden)
    y = ops.add(ops.matmul(cell.output(0), matrix, False, True), bias[None])
    model = openvino.Model([y.output(0), cell.output(0), cell.output(1)], given, "lstm")
    path = folder / "lstm.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    return path, "RNNCell"


# --- LiteRT -----------------------------------------------------------------------------------------------------------

_TANH = 4  # ActivationFunctionType of the schema
_EMPTY = -1  # an optional input that is not given


def _write_tflite(step: LstmStep, folder: Path) -> tuple[Path, str]:
    from ai_edge_litert import schema_py_generated as schema

    kind = "UNIDIRECTIONAL_SEQUENCE_LSTM"
    file = _Flatbuffer(schema)
    cell, hidden, outputs = step.cell, step.cell.hidden_size, step.readout.out_features
    x = file.tensor("args_0", (1, 1, cell.input_size))
    into, back, first, second = (np.split(part, 4) for part in _parts(step, "ifgo"))
    biases = [a + b for a, b in zip(first, second, strict=True)]
    weights = [file.constant(part) for part in (*into, *back)]
    states = [file.tensor(name, (1, hidden), variable=True) for name in ("h", "c")]
    h = file.tensor("h_next", (1, 1, hidden))
    peepholes, projection, norms = [_EMPTY] * 3, [_EMPTY] * 2, [_EMPTY] * 4
    given = [x, *weights, *peepholes, *map(file.constant, biases), *projection, *states, *norms]
    options = schema.UnidirectionalSequenceLSTMOptionsT(fusedActivationFunction=_TANH, timeMajor=True)
    file.operator(kind, given, h, "UnidirectionalSequenceLSTMOptions", options)
    y = file.tensor("output_0", (1, outputs))
    readout = [h, *map(file.constant, _readout(step))]
    file.operator("FULLY_CONNECTED", readout, y, "FullyConnectedOptions", schema.FullyConnectedOptionsT())
    path = folder / "lstm.tflite"
    path.write_bytes(file.pack([x], [y]))
    return path, kind


class _Flatbuffer:
    """A TFLite model that is being made, with the objects of LiteRT's schema. Tensors are known by their number.

    hnas's own writer has no tensors that keep their value between calls, as the state of this operator does.
    """

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._graph, self._model = schema.SubGraphT(), schema.ModelT()
        self._graph.tensors, self._graph.operators = [], []
        self._model.version, self._model.subgraphs, self._model.operatorCodes = 3, [self._graph], []
        self._model.buffers = [schema.BufferT()]  # buffer 0 is empty by contract

    def tensor(self, name: str, shape: Iterable[int], *, variable: bool = False, buffer: int = 0) -> int:
        """Add a float tensor and return its number. variable: it keeps its value between calls, from zero."""
        made = self._schema.TensorT()
        made.name, made.shape, made.hasRank = name.encode(), np.array([*shape], np.int32), True
        made.type, made.isVariable, made.buffer = self._schema.TensorType.FLOAT32, variable, buffer
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def constant(self, value: _Array) -> int:
        """Add a constant and return its number."""
        buffer = self._schema.BufferT()
        buffer.data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        self._model.buffers.append(buffer)
        number = len(self._model.buffers) - 1
        return self.tensor(f"constant_{number}", value.shape, buffer=number)

    def operator(self, kind: str, inputs: list[int], output: int, name: str, options: Any) -> None:
        """Add an operator of the schema. name: that of the class of its options."""
        code, made = self._schema.OperatorCodeT(), self._schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(self._schema.BuiltinOperator, kind)
        code.version = 1
        made.opcodeIndex = len(self._model.operatorCodes)
        self._model.operatorCodes.append(code)
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        made.builtinOptionsType, made.builtinOptions = getattr(self._schema.BuiltinOptions, name), options
        self._graph.operators.append(made)

    def pack(self, inputs: list[int], outputs: list[int]) -> bytes:
        """Return the bytes of the file."""
        self._graph.inputs, self._graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        builder = self._schema.flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())
