"""Whatever a converter does in the compiler's process, the next conversion succeeds, with the bytes of a local one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from hnas import export, hw_profiles
from hnas.export import backends
from hnas.export.compiling import compiler
from hnas.export.compiling.compiler import Compiler
from hnas.export.compiling.conversion import convert
from hnas.export.device.artifact import Artifact
from hnas.export.device.errors import ExportError
from hnas.export.graph.fusion import fuse, passes_for
from hnas.export.graph.marks import kept_float
from hnas.export.graph.program import Program, capture
from hnas.export.graph.wire import pack, unpack
from hnas.export.int8.mixed import blocks, keep_float
from hnas.export.remote.process import ChildProcess
from tests.conftest import need
from tests.export import fake_compiler, nets

MEMORY = 3000  # MB, a part of which torch needs


def program(name: str = "two_by_two", backend: str = "reference") -> Program:
    net, inputs = nets.build(name)
    return fuse(capture(net, inputs), passes_for(backend))


def options(device: str = "onnxruntime-cpu", precision: str = "fp32", calibration: Any = None) -> dict[str, Any]:
    return {"device": hw_profiles.load(device), "precision": precision, "threads": 1, "calibration": calibration}


def samples(found: Program, count: int = 4) -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [tuple(torch.randn(x.shape, generator=generator).numpy() for x in found.inputs) for _ in range(count)]


@pytest.fixture(scope="module")
def fake() -> Iterator[Compiler]:
    with Compiler(timeout=300, memory_mb=MEMORY, transport=cast("Any", fake_compiler)) as found:
        yield found


def folder(path: Path) -> Path:
    path.mkdir()
    return path


# --- a program travels whole ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(nets.SHAPES))
def test_a_program_arrives_as_it_was(name: str) -> None:
    sent = program(name)
    got = unpack(*pack(sent))
    assert got.digest == sent.digest
    assert got.module.code == sent.module.code
    assert got.fired == sent.fired
    assert got.operators() == sent.operators()
    for a, b in zip(got.module.graph.nodes, sent.module.graph.nodes, strict=True):
        assert (a.op, a.name, str(a.target)) == (b.op, b.name, str(b.target))
        if isinstance(b.meta.get("val"), torch.Tensor):
            value, wanted = a.meta["val"], b.meta["val"]
            assert (value.shape, value.dtype, value.stride()) == (wanted.shape, wanted.dtype, wanted.stride())
    for one, two in zip(got(*sent.inputs), sent(*sent.inputs), strict=True):
        assert torch.equal(one, two)


class Odd(nn.Module):
    """Combine tied weights, rare kinds of buffers, another memory format and infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.conv = nn.Conv2d(2, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.register_buffer("two", torch.tensor(2.0, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.tensor([True, False, True, False]))
        self.register_buffer("wide", torch.ones(4, 1).expand(4, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x.masked_fill(self.mask, float("-inf")).clamp(min=-1.0))
        return self.second(self.first(y) @ self.wide), y.to(torch.bfloat16) * self.two


def test_rare_tensors_arrive_as_they_were() -> None:
    sent = capture(Odd(), torch.randn(1, 2, 4, 4))
    got = unpack(*pack(sent))
    before, after = (dict(each.module.named_parameters(remove_duplicate=False)) for each in (sent, got))
    assert list(after) == list(before)
    assert len({id(value) for value in after.values()}) == len({id(value) for value in before.values()})
    before, after = (each.module.state_dict() for each in (sent, got))
    for name, value in before.items():
        assert torch.equal(after[name], value)
        assert after[name].dtype == value.dtype
    assert after["conv.weight"].stride() == before["conv.weight"].stride()
    for one, two in zip(got(*sent.inputs), sent(*sent.inputs), strict=True):
        assert torch.equal(one, two)


def test_blocks_marked_to_stay_in_float_arrive_marked() -> None:
    plain = program("resnet")
    sent = keep_float(plain, list(blocks(plain))[:2])
    assert kept_float(unpack(*pack(sent))) == kept_float(sent) != ()


def test_what_cannot_travel_is_named() -> None:
    found = program()
    for node in found.module.graph.nodes:
        if node.op == "call_function":
            node.target = torch.ops.aten.from_file.default
            break
    with pytest.raises(ExportError, match=rf"node {node.name} cannot go to another process: operator 'aten.from_file"):
        pack(found)


def test_what_cannot_travel_is_converted_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Program) -> None:
        raise ExportError("node box cannot go to another process: operator 'vision.box' is not one of torch's")

    monkeypatch.setattr("hnas.export.graph.wire.pack", refuse)
    with Compiler(transport=cast("Any", None)) as found:  # no process could be started
        assert found.convert("reference", program(), folder(tmp_path / "a"), **options()).source == tmp_path / "a"


# --- a converter that misbehaves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("crash", r"the compiler died with SIGSEGV on 'compile' \(memory limit 3000 MB\): about to go"),
        ("hang", "the compiler gave no answer to 'compile' in 2 s"),
        ("memory", r".*MemoryError.*\(memory limit 3000 MB\)"),
        ("frame", "the compiler broke the protocol: no frame starts with b'garb'"),
        ("raise", "RuntimeError: boom"),
        ("lie", "ValueError: .*absent.bin is missing"),
    ],
)
def test_a_disaster_is_one_line_and_the_next_conversion_succeeds(
    fake: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, says: str
) -> None:
    found = program()
    fake.convert("fine", found, folder(tmp_path / "before"), **options())
    assert fake._process is not None
    ask = fake._process.ask

    def impatient(header: Any, arrays: Any = ()) -> Any:
        """Wait 2 s for a conversion that hangs. Only that request: others answer, but a busy machine may be slow."""
        return ask(header, arrays, timeout=2.0 if how == "hang" and header["do"] == "compile" else None)

    monkeypatch.setattr(fake._process, "ask", impatient)
    with pytest.raises(ExportError, match=rf"^{how} cannot compile Net to fp32: {says}$"):
        fake.convert(how, found, folder(tmp_path / "during"), **options(), called="Net")
    after = fake.convert("fine", found, folder(tmp_path / "after"), **options())
    assert after.digest == Artifact.read(tmp_path / "before").digest


@pytest.mark.parametrize(("how", "says"), [("nothing", "has no artifact.json"), ("cut", "was changed")])
def test_a_garbage_artifact_is_one_line(fake: Compiler, tmp_path: Path, how: str, says: str) -> None:
    with pytest.raises(ExportError, match=rf"^{how} wrote no artifact of Net in fp32: .*{says}"):
        fake.convert(how, program(), folder(tmp_path / "a"), **options(), called="Net")


def test_what_a_converter_prints_breaks_no_answer(fake: Compiler, tmp_path: Path) -> None:
    for k in range(3):
        fake.convert("noise", program(), folder(tmp_path / str(k)), **options())


def test_one_process_serves_many_and_ends_with_the_block(tmp_path: Path) -> None:
    with Compiler(transport=cast("Any", fake_compiler)) as found:
        for k in range(3):
            found.convert("process", program(), folder(tmp_path / str(k)), **options())
        process = found._process
        assert process is not None
    assert len({(tmp_path / str(k) / "process").read_text() for k in range(3)}) == 1
    assert not process.alive
    assert process._process.poll() is not None


def test_a_process_that_served_many_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_MOST", 2)
    with Compiler(transport=cast("Any", fake_compiler)) as found:
        for k in range(3):
            found.convert("process", program(), folder(tmp_path / str(k)), **options())
    one, two, three = ((tmp_path / str(k) / "process").read_text() for k in range(3))
    assert one == two != three


def test_the_calibration_is_sent_once(fake: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = program(), list[str]()
    ask = ChildProcess.ask

    def counted(self: ChildProcess, header: Any, arrays: Any = ()) -> Any:
        asked.append(header["do"])
        return ask(self, header, arrays)

    monkeypatch.setattr(ChildProcess, "ask", counted)
    one, two = samples(found, 3), samples(found, 2)[::-1]
    sums = []
    for k, data in enumerate((one, [tuple(x.copy() for x in sample) for sample in one], two, None, two)):
        to = folder(tmp_path / str(k))
        fake.convert("fine" if data is None else "calibration", found, to, **options(calibration=data))
        sums.append((to / "sum").read_text() if data else "")
    assert asked.count("sample") == 3 + 2
    assert sums[0] == sums[1] != sums[2] == sums[4] == str([float(np.sum(x)) for sample in two for x in sample])


def test_a_large_network_goes_in_pieces(fake: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = program("resnet")
    whole = fake.convert("fine", found, folder(tmp_path / "whole"), **options())
    monkeypatch.setattr(compiler, "_PIECE", 500)
    assert fake.convert("fine", found, folder(tmp_path / "pieces"), **options()).digest == whole.digest


def test_limits_must_be_limits() -> None:
    for wrong in ({"timeout": 0}, {"memory_mb": 0}, {"timeout": float("nan")}):
        with pytest.raises(ValueError, match="must be above 0"):
            Compiler(**cast("Any", wrong))


# --- the real backends ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Iterator[Compiler]:
    with Compiler(timeout=300, memory_mb=6000) as found:
        yield found


def counted_anew(text: str) -> str:
    """Renumber the names of an OpenVINO model, which count the objects of the whole process."""
    seen: dict[str, str] = {}
    return re.sub(r'"(Model\d+|\w+_\d+)"', lambda found: seen.setdefault(found[1], f'"{len(seen)}"'), text)


@pytest.mark.parametrize("backend", ["reference", "onnxruntime", "openvino", "tflite"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_bytes_are_those_of_a_conversion_in_this_process(
    real: Compiler, tmp_path: Path, backend: str, precision: str
) -> None:
    need(backend, backends.load(backend).missing())
    if precision not in backends.load(backend).precisions:
        pytest.skip(f"{backend} has no {precision}")
    found = program("mobilenet", backend)
    device = "onnxruntime-cpu" if backend == "reference" else f"{backend}-cpu"
    asked = options(device, precision, samples(found) if precision == "int8" else None)
    here = convert(backend, found, folder(tmp_path / "here"), **asked)
    there = real.convert(backend, found, folder(tmp_path / "there"), **asked)
    assert (here.inputs, here.outputs, here.notes, here.versions) == (
        *(there.inputs, there.outputs),
        *(there.notes, there.versions),
    )
    assert list(here.files) == list(there.files)
    for name in here.files:
        one, two = ((each.path / name).read_bytes() for each in (here, there))
        if name.endswith(".xml"):
            assert counted_anew(one.decode()) == counted_anew(two.decode())
        else:
            assert one == two


def test_compile_takes_a_compiler(real: Compiler, tmp_path: Path) -> None:
    net, inputs = nets.build("two_by_two")
    options = export.CompileOptions(backend="reference", evidence=[inputs])
    one = export.compile(net, inputs, path=tmp_path / "one", options=replace(options, compiler=real))
    two = export.compile(net, inputs, path=tmp_path / "two", options=options)
    assert one.digest == two.digest
    assert one.notes == two.notes
