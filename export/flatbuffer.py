"""TFLite models taken apart and put together, so that one dear conversion serves many modules.

The schema and its object API come with the LiteRT runtime; no converter is needed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.errors import one_line


@dataclass(frozen=True)
class Part:
    """A model among others: what it reads and writes, by names that the parts share."""

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def split(model: bytes, ends: Sequence[tuple[int, int]]) -> list[bytes]:
    """``model`` as one model for each of ``ends`` = (number of inputs, of outputs), in the order of its signature.

    ValueError unless the ends are all those of the model and no part reads an input of another.
    """
    whole = _Source(model)
    inputs, outputs = whole.inputs(), whole.outputs()
    if (sum(n for n, _ in ends), sum(n for _, n in ends)) != (len(inputs), len(outputs)):
        raise ValueError(f"the model has {len(inputs)} inputs and {len(outputs)} outputs, the parts have others")
    parts = []
    for reads, writes in ends:
        own_inputs, inputs = inputs[:reads], inputs[reads:]
        own_outputs, outputs = outputs[:writes], outputs[writes:]
        target = _Target()
        where = {index: target.tensor(whole, index) for index in own_inputs}
        target.extend(whole, whole.operators_to(own_outputs, own_inputs), where)
        parts.append(target.finish([where[i] for i in own_inputs], [where[i] for i in own_outputs]))
    return parts


def join(parts: Iterable[Part], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """One model of ``parts``, each of which reads what ``inputs`` or parts before it give; the inverse of ``split``.

    ValueError where a part reads what nobody gives, or ``inputs`` or ``outputs`` name what no part has.
    """
    target, values = _Target(), dict[str, int]()
    for part in parts:
        source = _Source(part.model)
        where: dict[int, int] = {}
        for name, index in zip(part.inputs, source.inputs(), strict=True):
            if name not in values and name not in inputs:
                raise ValueError(
                    f"no part before gives {name!r}; known: {', '.join(dict.fromkeys([*inputs, *values]))}"
                )
            where[index] = values.setdefault(name, -1)
            if where[index] < 0:
                where[index] = values[name] = target.tensor(source, index)
        target.extend(source, source.graph.operators, where)
        values |= {name: where[index] for name, index in zip(part.outputs, source.outputs(), strict=True)}
    for verb, names in (("reads", inputs), ("gives", outputs)):
        if lacking := [name for name in names if name not in values]:
            raise ValueError(f"no part {verb} {lacking[0]!r}; known: {', '.join(values)}")
    return target.finish([values[name] for name in inputs], [values[name] for name in outputs])


class _Source:
    """A model as objects; its one subgraph is what is copied from."""

    def __init__(self, model: bytes) -> None:
        from ai_edge_litert.schema_py_generated import ModelT

        try:
            self.model = ModelT.InitFromPackedBuf(model, 0)
            found = len(self.model.subgraphs)
        except Exception as error:  # struct.error, IndexError, ...: generated code reads offsets that it never checks
            raise ValueError(f"not a whole TFLite model: {one_line(error)}") from error
        if found != 1:
            raise ValueError(f"the model has {found} subgraphs, expected one")
        self.graph = self.model.subgraphs[0]

    def inputs(self) -> list[int]:
        """The tensors of the inputs in the module's order: by the signature's numbers where there is a signature."""
        return self._ordered("inputs")

    def outputs(self) -> list[int]:
        """As ``inputs``."""
        return self._ordered("outputs")

    def operators_to(self, outputs: Sequence[int], inputs: Sequence[int]) -> list[Any]:
        """The operators that ``outputs`` need, in their order; ValueError if they need more than ``inputs``."""
        makers = {int(index): i for i, operator in enumerate(self.graph.operators) for index in operator.outputs}
        foreign = {int(index) for index in self.graph.inputs} - set(inputs)
        needed: set[int] = set()
        pending = list(outputs)
        while pending:
            index = pending.pop()
            if index in foreign:
                raise ValueError("a part reads an input of another part")
            if index in makers and makers[index] not in needed:
                needed.add(makers[index])
                pending += [int(i) for i in self.graph.operators[makers[index]].inputs]
        return [self.graph.operators[i] for i in sorted(needed)]

    def _ordered(self, side: str) -> list[int]:
        if not self.model.signatureDefs:
            return [int(index) for index in getattr(self.graph, side)]
        maps = getattr(self.model.signatureDefs[0], side)
        found = {int(re.findall(rb"\d+", entry.name)[-1]): int(entry.tensorIndex) for entry in maps}
        return [found[number] for number in sorted(found)]


class _Target:
    """A model that is being written."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._model, self._graph = schema.ModelT(), schema.SubGraphT()
        self._model.version, self._model.subgraphs = 3, [self._graph]
        self._model.operatorCodes, self._model.buffers = [], [schema.BufferT()]  # the first one is empty by contract
        self._graph.tensors, self._graph.operators = [], []
        self._codes: dict[tuple[Any, ...], int] = {}

    def tensor(self, source: _Source, index: int) -> int:
        """A copy of a tensor with its constant data; its index here."""
        own = copy(source.graph.tensors[index])
        buffer = source.model.buffers[own.buffer]
        own.buffer = 0
        if buffer.data is not None and len(buffer.data):
            own.buffer = len(self._model.buffers)
            self._model.buffers.append(buffer)
        self._graph.tensors.append(own)
        return len(self._graph.tensors) - 1

    def extend(self, source: _Source, operators: Iterable[Any], where: dict[int, int]) -> None:
        """Copies of ``operators``; ``where`` says which tensors are here already, and is completed."""
        for operator in operators:
            own = copy(operator)
            for index in map(int, (*operator.inputs, *operator.outputs)):
                if index >= 0 and index not in where:
                    where[index] = self.tensor(source, index)
            own.inputs, own.outputs = (_mapped(indices, where) for indices in (operator.inputs, operator.outputs))
            own.opcodeIndex = self._code(source.model.operatorCodes[operator.opcodeIndex])
            self._graph.operators.append(own)

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The model as bytes; inputs and outputs are named by their numbers, as the converter names them."""
        from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

        self._graph.inputs, self._graph.outputs = list(inputs), list(outputs)
        for kind, indices in (("args", inputs), ("output", outputs)):
            for number, index in enumerate(indices):
                self._graph.tensors[index].name = f"{kind}_{number}".encode()
        return bytes(convert_object_to_bytearray(self._model))

    def _code(self, code: Any) -> int:
        key = (code.builtinCode, code.customCode, code.version)
        if key not in self._codes:
            self._codes[key] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        return self._codes[key]


def _mapped(indices: Iterable[int], where: Mapping[int, int]) -> Any:
    """The tensors' indices here; -1 is an optional input that is absent."""
    return np.array([where.get(int(index), -1) for index in indices], np.int32)
