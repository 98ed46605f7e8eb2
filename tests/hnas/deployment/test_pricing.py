"""The measured latency of whole subnets, and its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Self, cast

import pytest

from hnas import hw_profiles
from hnas.deployment import pricing
from hnas.deployment.pricing import MeasuredLatency
from hnas.export import backends
from hnas.export.bundle.manifest import Machine
from hnas.export.compiling.compiler import Compiler
from hnas.export.device.errors import Disconnected, ExportError
from hnas.study import Study
from hnas.supernet import Supernet
from tests.conftest import need
from tests.hnas import tiny


@pytest.mark.slow
def test_a_subnet_is_measured_once_and_its_files_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(pricing, "BLOCKS", 2)
    study = Study(Supernet(tiny.space()), tiny.task())
    compiler = Compiler()
    made = MeasuredLatency(study, hw_profiles.load("onnxruntime-cpu"), 1, compiler=compiler)
    smallest, largest = study.supernet.space.smallest, study.supernet.space.largest
    first = made(smallest)
    assert (first.kind, first.unit) == ("measured", "ms")
    assert 0 < first.low <= first.value <= first.high
    assert made(largest).value == study.journal.entries["baseline_ms"]
    monkeypatch.setattr(pricing, "compare", pytest.fail)
    assert made(smallest) == first
    folder = made.folder
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {"baseline", "candidate"}
    made.close()
    assert not folder.exists()
    again = MeasuredLatency(
        study, hw_profiles.load("onnxruntime-cpu"), 1, compiler=compiler
    )  # another run, the same cache
    assert again(smallest) == first
    again.close()
    compiler.close()


class Fake:
    """A backend and its compiler in one, whose artifact is what it was asked for, unless ``failing`` has the digest."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.failing: dict[str, ExportError] = {}
        self.drafts: dict[str, bool] = {}

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def convert(self, _: str, program: Any, path: Path, precision: str = "", **__: object) -> None:
        self.compiled.append(program.digest)
        self.drafts[precision] = program.draft
        if program.digest in self.failing:
            raise self.failing[program.digest]
        (path / "model").write_text(program.digest)


class FakeWorker:
    """Opens whatever it is given."""

    alive = True

    def __init__(self, artifact: object) -> None:
        self.artifact = artifact

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def open(self, artifact: object) -> None:
        self.artifact = artifact


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], tuple[MeasuredLatency, Fake]]]:
    """Makes tables of a tiny space on a fake backend, with one cache for all."""
    fake, made = Fake(), list[MeasuredLatency]()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backends, "load", lambda _: fake)
    monkeypatch.setattr(pricing, "Worker", FakeWorker)
    monkeypatch.setattr(pricing, "measure", lambda *_, **__: SimpleNamespace(median_ms=10.0))
    monkeypatch.setattr(pricing, "compare", lambda *_, **__: SimpleNamespace(ratio=2.0, low=1.9, high=2.1))

    def make(*precisions: str) -> tuple[MeasuredLatency, Fake]:
        study, device = Study(Supernet(tiny.space()), tiny.task()), hw_profiles.load("tflite-cpu")
        made.append(MeasuredLatency(study, device, 1, precisions or ("fp32",), compiler=cast("Any", fake)))
        return made[-1], fake

    yield make
    for each in made:
        each.close()
    pricing.builder_versions.cache_clear()


def test_subnets_are_measured_in_the_precision_in_which_the_largest_is_faster(table: Any, monkeypatch: Any) -> None:
    made, fake = table("fp32", "int8")
    assert made.precision == "int8"  # 2.0 times as fast as fp32
    assert made(made.largest).value == 5.0
    assert fake.drafts == {"fp32": False, "int8": True}  # the baseline, and the largest in int8
    assert len(fake.compiled) == 2
    assert made.study.journal.entries["searched precision"] == "int8"
    monkeypatch.setattr(pricing, "compare", lambda *_, **__: SimpleNamespace(ratio=0.9, low=0.8, high=1.0))
    monkeypatch.setattr(pricing, "version", lambda _: "another")  # nothing is in the cache
    pricing.builder_versions.cache_clear()
    slower, _ = table("fp32", "int8")
    assert slower.precision == "fp32"
    assert slower(slower.largest).value == 10.0


def test_a_precision_that_cannot_be_built_is_not_searched(table: Any) -> None:
    made, fake = table("fp32", "int8")
    fake.failing = {made._program(made.largest).digest: ExportError("no int8 here")}
    made._largest = lambda: None
    assert made.precision == "fp32"
    assert pricing.failures(made.study) == ["the largest subnet in int8: no int8 here"]
    only, _ = table("int8", "bf16")
    only._largest = lambda: None
    with pytest.raises(ExportError, match="runs in none of int8, bf16"):
        _ = only.precision


def test_a_lost_connection_does_not_decide_the_precision(table: Any) -> None:
    made, fake = table("fp32", "int8")
    fake.failing = {made._program(made.largest).digest: Disconnected("the board is away")}
    made._largest = lambda: None
    with pytest.raises(Disconnected):
        _ = made.precision
    assert "searched precision" not in made.study.journal.entries


@pytest.mark.parametrize(
    ("where", "other"),
    [
        (pricing, {"version": lambda _: "99.0"}),
        (Machine, {"here": lambda: Machine("another CPU", 2, "Linux", "3")}),
        (Fake, {"versions": lambda _: {"fake": "2"}}),
    ],
    ids=["hnas", "cpu", "runtime"],
)
def test_a_latency_is_measured_anew_after_an_upgrade_or_elsewhere(
    table: Callable[[], tuple[MeasuredLatency, Fake]],
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    other: dict[str, Any],
) -> None:
    first, fake = table()
    arch = first.study.supernet.space.smallest
    released: list[int] = []
    monkeypatch.setattr(pricing, "_release_memory", lambda: released.append(len(fake.compiled)))
    assert first(arch).value == 5.0
    assert len(released) == 2, "after each capture"
    assert len(fake.compiled) == 2  # it, and the largest
    second, _ = table()
    assert second(arch).value == 5.0
    assert len(fake.compiled) == 3  # the largest one, for the baseline of the new journal
    for name, value in other.items():
        monkeypatch.setattr(where, name, value)
    pricing.builder_versions.cache_clear()
    third, _ = table()
    third(arch)
    assert len(fake.compiled) == 5


def test_a_subnet_that_cannot_be_compiled_has_no_latency_and_the_next_one_has(
    table: Callable[[], tuple[MeasuredLatency, Fake]],
) -> None:
    made, fake = table()
    space = made.study.supernet.space
    made.study.costs = {"latency_ms": made}
    digest = pricing.subnet_program(made.study, space.smallest).digest
    fake.failing[digest] = Disconnected("the device is gone")
    with pytest.raises(Disconnected):  # which says nothing about the subnet
        made.study.price(space.smallest, "latency_ms")
    fake.failing[digest] = ExportError("the compiler died with SIGSEGV")
    found = made.study.price(space.smallest, "latency_ms")
    assert found.value == found.low == found.high == float("inf")
    assert pricing.failures(made.study) == ["the compiler died with SIGSEGV"]
    drawn = (space.sample(Random(seed)) for seed in range(99))
    other = next(arch for arch in drawn if arch not in (space.smallest, space.largest))
    assert made.study.price(other, "latency_ms").value == 5.0
    asked = len(fake.compiled)
    assert made.study.price(space.smallest, "latency_ms") == found  # this run has its answer
    assert len(fake.compiled) == asked
    fake.failing.clear()
    fresh, _ = table()
    assert fresh(space.smallest).value == 5.0  # another run tries again


def test_a_latency_is_confirmed_in_new_processes_and_from_the_same_file(
    table: Callable[[], tuple[MeasuredLatency, Fake]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def compare(*pair: Any, **options: Any) -> SimpleNamespace:
        asked.append({"pair": pair[:2], **options})
        ratio = 2.5 if options.get("processes", 1) > 1 else 2.0
        return SimpleNamespace(ratio=ratio, low=ratio, high=ratio)

    monkeypatch.setattr(pricing, "compare", compare)
    made, fake = table()
    arch = made.study.supernet.space.smallest
    assert (made(arch).value, made.confirmed(arch).value, made(arch).value) == (5.0, 4.0, 5.0)
    assert asked[1]["processes"] == 3
    assert all(isinstance(file, Path) and (file / "model").is_file() for file in asked[1]["pair"])
    assert len(fake.compiled) == 2, "the largest, and the subnet once"
    again, _ = table()
    assert again.confirmed(arch).value == 4.0
    assert len(asked) == 2, "another run has both from the cache"


def test_the_code_that_builds_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pricing.builder_versions.cache_clear()
    before = pricing.builder_versions()
    (tmp_path / "passes.py").write_text("1\n")
    monkeypatch.setattr(pricing.export, "__path__", [str(tmp_path)])
    pricing.builder_versions.cache_clear()
    one = pricing.builder_versions()
    (tmp_path / "passes.py").write_text("2\n")
    pricing.builder_versions.cache_clear()
    assert len({before["export"], one["export"], pricing.builder_versions()["export"]}) == 3
    pricing.builder_versions.cache_clear()


def test_a_cache_that_cannot_be_written_is_done_without(
    table: Callable[[], tuple[MeasuredLatency, Fake]], tmp_path: Path
) -> None:
    (tmp_path / "hnas").write_text("in the way")
    made, _ = table()
    assert made(made.study.supernet.space.smallest).value > 0


@pytest.mark.parametrize("library", [SimpleNamespace(), None])
def test_memory_is_released_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    asked: list[int] = []
    monkeypatch.setattr(pricing.ctypes, "CDLL", lambda _: library or SimpleNamespace(malloc_trim=asked.append))
    pricing._release_memory()
    assert asked == ([] if library else [0])
