"""Test every operator of the table: written natively and right in fp32 and int8, or named with its fallback."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hnas.export.backends.tflite import convert as tflite
from hnas.export.backends.tflite import writer as emitter
from hnas.export.backends.tflite.writer.int8 import quantise_operators
from hnas.export.device.runtimes.tflite import indices, interpreter
from hnas.export.graph.program import capture
from hnas.export.int8.calibration import activation_ranges
from tests.conftest import need
from tests.export.backends.operators import OPERATORS, Operator

DOCUMENT = Path(__file__).parents[3] / "docs/tflite.md"
NATIVE = [name for name, operator in OPERATORS.items() if operator.native]
FALLBACK = [name for name in OPERATORS if name not in NATIVE]
# One of seven is in the quick tests, and all have their turn in the slow ones.
QUICK = set(NATIVE[::7])
CHOSEN = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NATIVE]
_MARKS = ("_assert_tensor_metadata", "detach", "lift_fresh_copy")  # torch.export writes them; they compute nothing
Arrays = Sequence[NDArray[np.generic]]


@pytest.fixture(autouse=True)
def runtime() -> None:
    need("tflite", tflite.missing())
    torch.set_num_threads(1)


def outputs(content: bytes, operator: Operator, folder: Path, seed: int) -> Arrays:
    """Return what LiteRT computes on the inputs of ``seed``. 4-D inputs are channels last."""
    path = folder / "model.tflite"
    path.write_bytes(content)
    opened = interpreter(path, 1)
    for index, value in zip(indices(opened.get_input_details()), operator.values(seed), strict=True):
        array = value.numpy()
        opened.set_tensor(index, np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array)
    opened.invoke()
    return [opened.get_tensor(index) for index in indices(opened.get_output_details())]


def level(right: Arrays, got: Arrays) -> float:
    """Return the SQNR in dB of the worst output. Whole numbers and conditions must be equal."""
    worst = 200.0
    for wanted, found in zip(right, got, strict=True):
        assert (wanted.dtype, wanted.shape) == (found.dtype, found.shape)
        if wanted.dtype != np.float32:
            assert np.array_equal(wanted, found)
            continue
        signal, noise = (float((part.astype(np.float64) ** 2).sum()) for part in (wanted, wanted - found))
        worst = min(worst, 10 * np.log10(signal / noise) if noise else worst)
    return worst


@pytest.mark.filterwarnings("ignore:The tensor attributes self:UserWarning")  # torch.export of recurrent layers
@pytest.mark.filterwarnings("ignore:Using padding='same' with even:UserWarning")
@pytest.mark.parametrize("name", CHOSEN)
def test_the_file_computes_what_the_module_does(name: str, tmp_path: Path) -> None:
    """In int8 the outputs are close, or the operator stays in float and is as exact as in fp32."""
    operator = OPERATORS[name]
    source = operator.program()
    whole = emitter.prepare(source)
    wanted = source.arrays(*(value.numpy() for value in operator.values(1)))
    assert level(wanted, outputs(emitter.emit(whole), operator, tmp_path, 1)) >= 100
    samples = [tuple(value.numpy() for value in operator.values(seed)) for seed in range(10, 74)]
    model = emitter.lower(whole, activation_ranges(whole, samples))
    quantise_operators(model)
    in_int8 = any(value.dtype == "int8" for each in model.operators for value in each.output)
    assert level(wanted, outputs(emitter.pack_model(model), operator, tmp_path, 1)) >= (20 if in_int8 else 100)


@pytest.mark.parametrize("name", FALLBACK)
def test_what_is_not_written_is_named_with_its_fallback(name: str) -> None:
    with pytest.raises(emitter.Unsupported, match=r"\w+") as caught:
        emitter.lower(emitter.prepare(OPERATORS[name].program()))
    assert caught.value.fallback == "litert-torch"


def test_most_operators_are_written_natively() -> None:
    assert len(NATIVE) >= 300
    assert len(FALLBACK) <= 5


def test_a_wrong_formula_would_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Plant an error of one part in 10,000 in a formula."""
    from hnas.export.backends.tflite.writer.formulas import registry

    _, always = registry._FORMULAS["mish"]
    monkeypatch.setitem(registry._FORMULAS, "mish", (lambda x: x.tanh() * 1.0001, always))
    operator = OPERATORS["mish"]
    source = operator.program()
    wanted = source.arrays(*(value.numpy() for value in operator.values(1)))
    content = emitter.emit(emitter.prepare(source))
    assert level(wanted, outputs(content, operator, tmp_path, 1)) < 100


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export of recurrent layers, and of even padding
def test_the_document_lists_every_operator() -> None:
    """The table of docs/tflite.md has a row for each family: its ATen operators, then the forms that fall back.

    ``python -m tests.export.backends.test_operators`` prints the rows.
    """
    rows = re.findall(r"^\| ([a-z, ]+) \| ([^|]*) \| ([^|]*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert {family: (native, fallback) for family, native, fallback in rows[1:]} == table()


def table() -> dict[str, tuple[str, str]]:
    """Return the rows of the table, by family. An operator is in the row of the smallest network that calls it."""
    native: dict[str, str] = {}
    fallback: dict[str, dict[str, None]] = {operator.family: {} for operator in OPERATORS.values()}
    calls = {name: aten_operators(operator) for name, operator in OPERATORS.items()}
    for name in sorted(NATIVE, key=lambda name: len(calls[name])):
        for called in calls[name]:
            native.setdefault(called, OPERATORS[name].family)
    for name in FALLBACK:
        new = [called for called in calls[name] if called not in native]
        words = ", ".join(new) or f"{calls[name][0]} as in `{name}`"
        fallback[OPERATORS[name].family][words] = None
    found = {family: ", ".join(sorted(each for each in native if native[each] == family)) for family in fallback}
    return {family: (found[family] or "-", ", ".join(fallback[family]) or "-") for family in fallback}


def aten_operators(operator: Operator) -> list[str]:
    """Return the names of the ATen operators that a network calls, without their overloads."""
    program = capture(operator.module(), operator.values(0))
    names = [name.split(".")[1] for name in program.operators() if name.startswith("aten.")]
    return [name for name in dict.fromkeys(names) if name not in _MARKS]


if __name__ == "__main__":
    for family, (written, other) in table().items():
        sys.stdout.write(f"| {family} | {written} | {other} |\n")
