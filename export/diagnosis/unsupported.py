"""Name the operators that a backend refuses, where they are in the user's network, and the backends that take them.

Call ``unsupported(program, "openvino")`` after a failed compilation. Each kind of operator is compiled and run alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.diagnosis.refusals import RefusalTest
from hnas.export.graph.program import Program
from hnas.export.graph.subgraph import isolate

SECONDS = 10.0  # time limit of a diagnosis; the refused operators are searched in the first half


def unsupported(program: Program, name: str, precision: str = "fp32", error: str = "") -> str | None:
    """Return a line that names the operators that backend ``name`` refuses, their modules, and who takes them.

    Never raise an error.

    0. The backend has no profile on this machine, such as TensorRT for a Jetson: nothing is tried on it. The line has
       the operators that the error names. None if it names none.
    1. The error names one kind of operator, by itself or by one that it is decomposed into: it is not tried again.
    2. The backend takes each kind of operator alone: the line says so.
    3. Time is over, or the diagnosis itself fails: the line says what could not be tested. It has the operators that
       the error names.

    error: the error of the compilation. Operators that it names are tried first.
    """
    began = monotonic()
    alone = _Alone(program, began + SECONDS / 2)
    try:
        if name not in hw_profiles.local_devices():
            return _from_error(alone, name, precision, error, began + SECONDS)  # case 0
        return _diagnosis(alone, name, precision, error, began + SECONDS)
    except Exception as failure:  # noqa: BLE001 - a failed diagnosis must not hide the error of the compilation
        with suppress(Exception):
            if accused := _accused(_kinds(program, error), alone, error):
                named = ", ".join(kind.line() for kind in accused)
                return f"{name} refuses {named}; who takes it could not be tested: {failure}"  # case 3
        return f"which operator {name} refuses could not be tested: {failure}"


def _from_error(alone: _Alone, name: str, precision: str, error: str, end: float) -> str | None:
    """Return a line with the operators that the error names, and who takes them; None if it names none."""
    accused = _accused(_kinds(alone.program, error), alone, error)
    if not accused:
        return None
    parts = [_part_of(kind, alone) for kind in accused]
    return f"{name} refuses {', '.join(kind.line() for kind in accused)}; {_others(parts, name, precision, end)}"


@dataclass(frozen=True)
class _Kind:
    """Hold the operators of a graph that differ in sizes alone.

    name: the name of the operator, such as "aten.index.Tensor".
    nodes: its calls in the graph.
    """

    name: str
    nodes: tuple[fx.Node, ...]

    def line(self) -> str:
        """Return the name and the place of the first call in the user's network, and the number of further places."""
        places = list(dict.fromkeys(map(_place, self.nodes)))
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        return f"{self.name} in {places[0]}{more}"


class _Alone:
    """Hold operators of ``program`` as programs of their own. The first call makes them, before ``end``.

    The whole network runs for them, and its values are copied, so this is done once in a diagnosis.
    """

    def __init__(self, program: Program, end: float) -> None:
        self.program, self.end = program, end
        self._parts: Mapping[fx.Node, Program] | None = None

    def parts(self, kinds: Sequence[_Kind]) -> Mapping[fx.Node, Program]:
        """Return the first operator of each of ``kinds`` by its node, as far as there was time."""
        if self._parts is None:
            self._parts = isolate(self.program, [kind.nodes[0] for kind in kinds], self.end)
        return self._parts

    def why_not(self) -> str:
        """Return why there is no part."""
        return f"{SECONDS:g} s are over" if monotonic() > self.end else "no operator can be run alone"


def _accused(kinds: Sequence[_Kind], alone: _Alone, error: str) -> list[_Kind]:
    """Return the kinds that the error names with their namespace, such as "aten::index".

    A converter may decompose an operator, and name a part of it, such as "prims.lgamma". An error about complex numbers
    accuses the operators that make complex numbers from real ones.
    """
    if "complex" in error.lower():
        return [kind for kind in kinds if _makes_complex(kind.nodes[0])]
    named = set(re.findall(r"(?:aten|prims)(?:::|\.)(\w+)", error))
    if not named:
        return []
    if direct := [kind for kind in kinds if kind.name.split(".")[1] in named]:
        return direct
    parts = alone.parts(kinds)
    return [kind for kind in kinds if kind.nodes[0] in parts and named & _decomposed(parts[kind.nodes[0]])]


def _makes_complex(node: fx.Node) -> bool:
    def is_complex(each: fx.Node) -> bool:
        value = each.meta.get("val")
        return isinstance(value, Tensor) and value.is_complex()

    return is_complex(node) and not any(map(is_complex, node.all_input_nodes))


def _decomposed(part: Program) -> set[str]:
    """Return the names of the operators that torch decomposes a program into; none if it does not."""
    try:
        table = {each: rule for each, rule in decomposition_table.items() if isinstance(each, torch._ops.OpOverload)}
        traced = make_fx(part.module, decomposition_table=table)(*part.inputs)
    except Exception:  # noqa: BLE001  # torch's decompositions may raise anything
        return set()
    calls = [str(node.target) for node in traced.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return {name.split(".")[1] for name in calls}


def _diagnosis(alone: _Alone, name: str, precision: str, error: str, end: float) -> str:
    kinds = _kinds(alone.program, error)
    accused = _accused(kinds, alone, error)
    if len(accused) == 1:  # case 1
        part = _part_of(accused[0], alone)
        return f"{name} refuses {accused[0].line()}; {_others([part], name, precision, end)}"
    with RefusalTest(end, name, precision) as test:
        parts = alone.parts(kinds)
        reasons = _search([kind for kind in kinds if kind.nodes[0] in parts], parts, error, test, alone.end)
    if not reasons:
        raise TimeoutError(alone.why_not())
    refused = {kind: reason for kind, reason in reasons.items() if reason is not None}
    if not refused:
        return f"{name} takes {_scope(len(reasons), len(kinds))} alone"  # case 2
    who = _others([parts[kind.nodes[0]] for kind in refused], name, precision, end)
    reason = next(iter(refused.values()))
    because = "" if reason.removesuffix("...") in error else f": {reason}"
    return f"{name} refuses {', '.join(kind.line() for kind in refused)}{because}; {who}"


def _part_of(kind: _Kind, alone: _Alone) -> Program:
    """Return the operator as a program. Raise ValueError for complex numbers, TimeoutError where it does not run."""
    if _makes_complex(kind.nodes[0]):
        raise ValueError("no file takes or returns complex numbers, so it cannot be run alone")
    part = alone.parts([kind]).get(kind.nodes[0])
    if part is None:
        raise TimeoutError(alone.why_not())
    return part


def _scope(tried: int, every: int) -> str:
    return "each operator" if tried == every else f"{tried} of {every} kinds of operators"


def _search(
    kinds: Sequence[_Kind], parts: Mapping[fx.Node, Program], error: str, test: RefusalTest, half: float
) -> dict[_Kind, str | None]:
    """Return for each kind that was tried why it is refused, or None. Stop when ``half`` has passed.

    The error may name all that is refused: then the other kinds are not tried.
    """
    found: dict[_Kind, str | None] = {}
    for kind in kinds:
        if (found and monotonic() > half) or (any(found.values()) and not _named(kind, error)):
            break
        try:
            found[kind] = test.refusal(parts[kind.nodes[0]])
        except TimeoutError:
            break
        except Unavailable:
            raise
        except (ExportError, ValueError):  # its values cannot go to another process, such as complex numbers
            continue
    return found


def _others(parts: Sequence[Program], name: str, precision: str, end: float) -> str:
    """Return a line that names the other backends here that take all of the programs, and those that do not."""

    def verdict_of(other: str) -> str:
        try:
            with RefusalTest(end, other, precision) as test:
                return "refused" if any(test.refusal(part) is not None for part in parts) else "supported"
        except Exception as failure:  # noqa: BLE001 - see ``unsupported``
            return f"could not be tested: {failure}"

    here = [other for other in hw_profiles.local_devices() if other != name and backends.load(other).missing() is None]
    with ThreadPoolExecutor(len(here) or 1) as pool:
        found = dict(zip(here, pool.map(verdict_of, here), strict=True))
    lines = []
    for verdict in ("supported", "refused"):
        if those := [other for other in here if found[other] == verdict]:
            lines.append(f"{verdict} by {' and '.join(those)}")
    for verdict in dict.fromkeys(found.values()):
        if verdict not in ("supported", "refused"):
            lines.append(f"{' and '.join(other for other in here if found[other] == verdict)} {verdict}")
    return "; ".join(lines) or "no other backend is here"


def _kinds(program: Program, error: str) -> list[_Kind]:
    """Return the kinds of operators: first those that ``error`` names, then from the rarest to the most frequent."""
    found: dict[Any, list[fx.Node]] = {}
    for node in program.module.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            found.setdefault((node.target, _pattern(node.args), _pattern(dict(node.kwargs))), []).append(node)
    kinds = [_Kind(str(target).removesuffix(".default"), tuple(nodes)) for (target, *_), nodes in found.items()]
    return sorted(kinds, key=lambda kind: (not _named(kind, error), len(kind.nodes)))


def _named(kind: _Kind, error: str) -> bool:
    """Return whether the error has the name of the operator as a word, such as "index" in "aten::index"."""
    return kind.name.split(".")[1] in re.findall(r"\w+", error)


def _pattern(value: Any) -> Any:
    """Return the arguments of an operator without sizes: types and ranks of tensors, numbers as 0, 1 or more."""
    if isinstance(value, fx.Node):
        tensor = value.meta.get("val")
        return (tensor.dtype, tensor.ndim, value.op == "get_attr") if isinstance(tensor, Tensor) else None
    if isinstance(value, tuple | list):
        return tuple(map(_pattern, value))
    if isinstance(value, dict):
        return tuple((key, _pattern(part)) for key, part in value.items())
    return max(-1, min(value, 2)) if type(value) is int else str(value)


def _place(node: fx.Node) -> str:
    """Return the path of the module that calls ``node``, such as "encoder.layers.3"; for the network itself, its class.

    A pass adds operators without a path. Such an operator gets the path of one that it is computed from, or of a
    reader.
    """
    seen, left = {node}, [node]
    for each in left:
        if stack := each.meta.get("nn_module_stack"):
            path, kind = list(stack.values())[-1]
            return str(path) or (kind if isinstance(kind, str) else kind.__qualname__).rpartition(".")[2]
        for near in (*each.all_input_nodes, *each.users):
            if near not in seen and near.op == "call_function":
                seen.add(near)
                left.append(near)
    return "the network"
