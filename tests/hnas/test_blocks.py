"""Subnets joined from blocks that were converted once."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import hw_profiles
from export import backends
from export.artifact import Tensor
from export.backends import tflite
from export.fusion import fuse
from export.manifest import Machine
from export.program import as_tuple, capture
from hnas.deployment import blocks, pricing
from hnas.deployment.blocks import BlockTable, Models, sections, stand_in
from hnas.ops.slot import Slot
from hnas.study import Study
from hnas.supernet import Supernet
from tests.conftest import need
from tests.hnas import tiny

DEVICE = hw_profiles.load("tflite-cpu")


class Fake:
    """A backend whose models are names, and which notes what it was asked for."""

    def __init__(self):
        self.converted, self.assembled = [], []

    def toolchain(self):
        return {"fake": "1"}

    versions = toolchain

    def convert_many(self, programs):
        self.converted.append(len(programs))
        return [program.digest.encode() for program in programs]

    def assemble(self, parts, path, *, inputs, outputs, device, threads):
        self.assembled.append(len(parts))
        return SimpleNamespace(parts=parts, inputs=inputs, outputs=outputs)


class FakeWorker:
    """Takes a millisecond for each part."""

    def __init__(self, artifact):
        self.artifact = artifact

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass


class TwoEnds(nn.Module):
    """Two inputs, two outputs, and a value that passes by a slot."""

    def __init__(self):
        super().__init__()
        self.first = Slot({"conv": nn.Conv2d(3, 3, 1)}, residual=True)
        self.nothing = Slot({}, residual=True)
        self.second = Slot({"conv": nn.Conv2d(3, 3, 1)}, residual=False)

    def forward(self, x, y):
        a = self.first(x + y)
        b = self.second(self.nothing(a) * y)
        return (a + b).mean((2, 3)), b


def cut(space, arch):
    net, inputs = stand_in(lambda: space.build(arch), [(1, *shape) for shape in space.example(arch)])
    return net, inputs, *sections(net, inputs)


def run(found, reads, writes):
    """The outputs of sections that are run one after the other."""
    values = dict(reads)
    for section in found:
        results = as_tuple(section.module(*(values[name] for name in section.inputs)))
        values |= zip(section.outputs, results, strict=True)
    return tuple(values[name] for name in writes)


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Makes tables of a tiny space on the fake backend, with one cache for all."""
    fake = Fake()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backends, "load", lambda _: fake)
    monkeypatch.setattr(pricing, "Worker", FakeWorker)
    monkeypatch.setattr(pricing, "measure", lambda *_, **__: SimpleNamespace(median_ms=10.0))

    def compare(a, b, inputs, *, blocks):
        ratio = len(a.artifact.parts) / len(b.artifact.parts)
        return SimpleNamespace(ratio=ratio, low=ratio * 0.9, high=ratio * 1.1)

    monkeypatch.setattr(pricing, "compare", compare)

    def make():
        made = BlockTable(Study(Supernet(tiny.space()), tiny.task()), DEVICE, 1)
        return made, fake

    return make


def test_sections_compute_what_the_network_computes():
    rng = Random(0)
    for arch in [tiny.space().sample(rng) for _ in range(5)]:
        net, inputs, found, reads, writes = cut(tiny.space(), arch)
        assert len(found) == 2 + sum(isinstance(part, Slot) and bool(part.branches) for part in net.modules())
        with torch.no_grad():
            torch.testing.assert_close(run(found, reads, writes)[0], net(*inputs), rtol=0, atol=0)


def test_sections_of_several_inputs_and_outputs():
    net, inputs = stand_in(TwoEnds, [(1, 3, 4, 4)] * 2)
    found, reads, writes = sections(net, inputs)
    assert len(reads) == len(writes) == 2
    with torch.no_grad():
        torch.testing.assert_close(run(found, reads, writes), net(*inputs), rtol=0, atol=0)


def test_equal_descriptions_are_equal_programs_and_the_other_way_round():
    rng, digests = Random(1), {}
    for arch in [tiny.space().sample(rng) for _ in range(4)]:
        for section in cut(tiny.space(), arch)[2]:
            digest = capture(section.module, section.examples).digest
            assert digests.setdefault(blocks._described(section), digest) == digest
    assert len(set(digests.values())) == len(digests)


def test_a_residual_block_is_not_the_same_one_without(tmp_path):
    models = Models(tmp_path, Fake())
    conv = nn.Conv2d(3, 3, 1)
    slots = [Slot({"conv": conv}, residual=residual).eval() for residual in (True, False, True)]
    x = (torch.ones(1, 3, 2, 2),)
    keys = [models.key(blocks.Section(slot, x, ("x",), ("y",))) for slot in slots]
    assert keys[0] == keys[2] != keys[1]


def test_every_block_is_converted_once_and_every_subnet_measured_once(table):
    made, fake = table()
    rng = Random(0)
    archs = [made.largest, *(made.study.supernet.space.sample(rng) for _ in range(2))]
    made.prepare(archs)
    assert len(fake.converted) == 1
    prices = [made(arch) for arch in archs]
    assert len(fake.converted) == 1
    assert prices[0].value == 10.0
    assert all(price.kind == "measured" and price.low <= price.value <= price.high for price in prices)
    assembled = len(fake.assembled)
    made.close()

    again, _ = table()
    again.prepare(archs)
    assert [again(arch) for arch in archs] == prices
    assert len(fake.converted) == 1
    assert len(fake.assembled) == assembled + 1  # the largest one, for the baseline of the new journal
    again.close()


@pytest.mark.parametrize(
    ("where", "other"),
    [
        (pricing, {"version": lambda _: "99.0"}),
        (pricing.Machine, {"here": lambda: Machine("another CPU", 2, "Linux", "3")}),
        (Fake, {"versions": lambda _: {"fake": "2"}}),
    ],
    ids=["hnas", "cpu", "runtime"],
)
def test_a_latency_is_measured_anew_after_an_upgrade_or_elsewhere(table, monkeypatch, where, other):
    made, fake = table()
    arch = made.study.supernet.space.smallest
    made(arch)
    made.close()
    assembled = len(fake.assembled)
    for name, value in other.items():
        monkeypatch.setattr(where, name, value)
    pricing.builder.cache_clear()
    again, _ = table()
    assert not again._turns.known(arch)
    again(arch)
    assert len(fake.assembled) == assembled + 2
    again.close()
    monkeypatch.undo()
    pricing.builder.cache_clear()


def test_the_code_that_builds_is_part_of_the_key(monkeypatch, tmp_path):
    before = pricing.builder()
    (tmp_path / "passes.py").write_text("1\n")
    monkeypatch.setattr(pricing.export, "__path__", [str(tmp_path)])
    pricing.builder.cache_clear()
    one = pricing.builder()
    (tmp_path / "passes.py").write_text("2\n")
    pricing.builder.cache_clear()
    assert len({before["export"], one["export"], pricing.builder()["export"]}) == 3
    pricing.builder.cache_clear()


def test_a_damaged_block_is_converted_again(table, tmp_path):
    made, fake = table()
    made.prepare([made.largest])
    file = min((tmp_path / "hnas" / "blocks").glob("*.block"))
    file.write_bytes(file.read_bytes()[:-1])
    made.prepare([made.largest])
    assert fake.converted[1:] == [1]
    made.close()


def test_a_cache_that_cannot_be_written_is_done_without(table, tmp_path):
    (tmp_path / "hnas").write_text("in the way")
    made, _ = table()
    assert made(made.study.supernet.space.smallest).value > 0
    made.close()


def test_a_backend_that_cannot_join_is_refused_in_one_line():
    with pytest.raises(ValueError, match="backend onnxruntime cannot join blocks"):
        BlockTable(Study(Supernet(tiny.space()), tiny.task()), hw_profiles.load("onnxruntime-cpu"), 1)


@pytest.mark.slow
def test_tflite_joins_what_it_would_convert_whole(tmp_path: Path):
    need("tflite", tflite.missing())
    net, inputs = stand_in(TwoEnds, [(1, 3, 4, 4)] * 2)
    found, *ends = sections(net, inputs)
    models = tflite.convert_many([fuse(capture(section.module, section.examples)) for section in found])
    parts = [blocks.Part(m, s.inputs, s.outputs) for m, s in zip(models, found, strict=True)]
    described = [[Tensor(name, tuple(x.shape), "float32") for name, x in end.items()] for end in ends]
    artifact = tflite.assemble(parts, tmp_path, inputs=described[0], outputs=described[1], device=DEVICE, threads=1)
    got = tflite.load(artifact)(*(x.numpy() for x in inputs))
    with torch.no_grad():
        for want, have in zip(net(*inputs), got, strict=True):
            np.testing.assert_allclose(have, want.numpy(), rtol=1e-4, atol=1e-5)
