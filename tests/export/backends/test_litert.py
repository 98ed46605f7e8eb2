"""Test LiteRT's own converter: where the emitter lacks an operator, and against the emitter's models."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hnas.export.backends.tflite import convert as tflite
from hnas.export.backends.tflite import delegation, litert
from hnas.export.backends.tflite import writer as emitter
from hnas.export.backends.tflite.writer.int8 import quantise_operators
from hnas.export.backends.tflite.writer.model import Model, Operator, Value, pack_model
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import capture
from hnas.export.int8.calibration import activation_ranges
from tests.conftest import need
from tests.export import nets
from tests.export.backends.operators import OPERATORS
from tests.export.backends.test_operators import Arrays, level, outputs
from tests.export.backends.test_writer import Of, compiled, kinds, program

# Held against the converter in fp32 and int8.
HELD = (
    *("group_norm", "mish", "conv_transposed_padded", "conv_transposed_output_padding", "instance_norm", "prelu"),
    *("elu", "pixel_shuffle", "conv_1d", "max_pool_1d", "avg_pool_1d", "roll", "pad_reflect", "gt", "argmax"),
    *("gru_cell", "lstm_cell", "attention_causal"),
)
REFUSED = ("conv_transposed_output_padding",)  # of those, what litert-torch does not convert


@pytest.fixture(autouse=True)
def runtime() -> None:
    need("tflite", tflite.missing())
    torch.set_num_threads(1)


def test_what_it_lacks_is_converted_by_another_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = program(Of(lambda x: x.logcumsumexp(1)), (2, 3))
    stand_in = emitter.emit(program(Of(lambda x: x * 2), (2, 3)))
    monkeypatch.setattr(litert, "convert_program", lambda _program, path, _layout: path.write_bytes(stand_in))
    monkeypatch.setattr(
        litert, "package_versions", lambda *, quantiser: {"litert-torch": "0", "quantiser": str(quantiser)}
    )
    notes = compiled(source, tmp_path).notes
    assert (notes["converter"], notes["lacks"]) == ("litert-torch", "logcumsumexp")


def test_what_it_lacks_is_named_where_no_converter_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(
        Unavailable, match=r"no logcumsumexp, and litert-torch is not installed; pip install 'hnas\[tflite-l"
    ):
        compiled(program(Of(lambda x: x.logcumsumexp(1)), (2, 3)), tmp_path)


def test_a_file_that_the_runtime_refuses_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a sum of a float and a whole number, for which no kernel exists."""
    number, whole = Value((2, 3)), Value((2, 3), "int32")
    total = Value((2, 3))
    bad = pack_model(Model([number, whole], [total], [Operator("ADD", [number, whole], [total])]))
    monkeypatch.setattr(emitter, "emit", lambda *_given, **_named: bad)
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(
        Unavailable, match=r"has no form that LiteRT opens \(.*ADD.*\), and litert-torch is not installed"
    ):
        compiled(program(Of(lambda x: x + 1), (2, 3)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", nets.SHAPES)
def test_never_more_operators_nor_noise_than_the_converter_makes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    source = fuse(capture(*nets.build(name)))
    theirs, artifact = tmp_path / "theirs.tflite", compiled(source, tmp_path)
    litert.convert_program(source, theirs, artifact.notes["layout"])
    assert len(kinds(source)) <= _operators(theirs)
    assert delegation.pieces(artifact.model) <= delegation.pieces(theirs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export of recurrent layers
@pytest.mark.parametrize("name", HELD)
def test_operators_compute_what_those_of_the_converter_do(name: str, tmp_path: Path) -> None:
    """fp32: the same values. int8: at most half a decibel, or half of one per cent of whole values, below theirs."""
    pytest.importorskip("litert_torch")
    operator = OPERATORS[name]
    source, theirs = operator.program(), tmp_path / "theirs.tflite"
    layout = [[0, 2, 3, 1] if value.ndim == 4 else None for value in source.inputs]
    if name in REFUSED:
        with pytest.raises(ExportError, match="litert-torch cannot convert this graph"):
            litert.convert_program(source, theirs, layout)
        return
    litert.convert_program(source, theirs, layout)
    whole = emitter.prepare(source)
    ours = emitter.emit(whole)
    assert _closeness(outputs(theirs.read_bytes(), operator, tmp_path, 1), outputs(ours, operator, tmp_path, 1)) >= 100
    samples = [tuple(value.numpy() for value in operator.values(seed)) for seed in range(10, 74)]
    model = emitter.lower(whole, activation_ranges(whole, samples))
    quantise_operators(model)
    fed = [tuple(np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x for x in each) for each in samples]
    quantised = tmp_path / "int8.tflite"
    litert.quantise_file(theirs, quantised, fed)
    wanted = source.arrays(*(value.numpy() for value in operator.values(1)))
    own, other = (
        _closeness(wanted, outputs(content, operator, tmp_path, 1))
        for content in (emitter.pack_model(model), quantised.read_bytes())
    )
    assert own >= other - 0.5, f"int8: {own:.1f} dB or %, the converter's {other:.1f}"


def _closeness(wanted: Arrays, found: Arrays) -> float:
    """Return the SQNR of floats in dB, or the smallest share of equal values in per cent; their type may differ."""
    if wanted[0].dtype == np.float32:
        return level(wanted, found)
    return min(100.0 * float(np.mean(a == b)) for a, b in zip(wanted, found, strict=True))


def _operators(model: Path) -> int:
    from ai_edge_litert.schema_py_generated import Model as Schema

    return int(Schema.GetRootAs(model.read_bytes(), 0).Subgraphs(0).OperatorsLength())
