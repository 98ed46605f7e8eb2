"""Test the baselines on a GPU as far as a machine without one can: the refusals, the ways, and the order of calls."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hnas.export.device.errors import ExportError, Unavailable

torch = pytest.importorskip("torch")

from hnas.benchmarks import cuda  # noqa: E402  # needs torch


def test_without_a_gpu_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(name: str) -> Any:
        raise ValueError(f"target {name} is the GPU of this machine, and it has none: not run on a device here; mend")

    monkeypatch.setattr(cuda.hw_profiles, "load", refuse)
    assert cuda.main([]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(cuda.hw_profiles, "load", lambda _: SimpleNamespace(title="GPU"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.main([]) == 3
    assert "has no CUDA: not run on a device here" in capsys.readouterr().err


def test_no_runs_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cuda.main(["--runs", "0"])
    assert ended.value.code == 2
    assert "argument --runs: '0' is not a whole number" in capsys.readouterr().err


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A planted GPU whose graphs replay what was captured. Return what it was asked to do."""
    said: list[str] = []

    class Graph:
        def replay(self) -> None:
            said.append("replay")

    @contextmanager
    def capture(graph: Graph) -> Any:
        said.append("capture")
        yield
        said.append("captured")

    def compiled(module: Any) -> Any:
        return lambda *inputs: (said.append("compiled"), module(*inputs))[1]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("wait"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch, "compile", compiled)
    return said


class Net(torch.nn.Module):
    """A module that tells that it ran, and stays on the CPU."""

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self.said = said

    def forward(self, x: Any) -> Any:
        self.said.append("module")
        assert torch.is_inference_mode_enabled()
        return x

    def cuda(self) -> Net:
        return self


def test_a_graph_is_captured_after_a_call_and_replayed(gpu: list[str]) -> None:
    ways = cuda._baselines(Net(gpu), [torch.zeros(1)])
    assert gpu == ["module", "wait", "capture", "module", "captured"]
    asked = {}
    for way, call in ways.items():
        gpu.clear()
        call()
        asked[way] = list(gpu)
    assert asked == {"eager": ["module"], "torch.compile": ["compiled", "module"], "CUDA graph": ["replay"]}


def test_each_call_is_timed_until_the_gpu_has_finished(gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def wait() -> None:
        clock[0] += 1.0
        gpu.append("wait")

    def call(way: str, seconds: float) -> None:
        clock[0] += seconds
        gpu.append(way)

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(cuda, "perf_counter", lambda: clock[0])
    times = cuda.time_interleaved({"a": lambda: call("a", 0.25), "b": lambda: call("b", 0.5)}, 10)
    assert times == {"a": [1.25] * 10, "b": [1.5] * 10}  # the wait is part of the time
    turn = [*["wait", "a", "wait", "a", "wait"], *["wait", "b", "wait", "b", "wait"]]
    assert gpu == ["a"] * cuda._LEAD + ["b"] * cuda._LEAD + turn * cuda._ROUNDS


@pytest.mark.parametrize("timed", [True, False])
def test_the_artifact_is_in_the_same_table(
    gpu: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], timed: bool
) -> None:
    runner = SimpleNamespace(report={"by": "python"}, bind=lambda x: lambda: gpu.append(f"engine on {x.shape}"))
    if not timed:
        runner.report, runner.times = {"by": "trtexec"}, None
    asked = {}

    def compiled(module: Any, examples: Any, **options: Any) -> str:
        asked.update(options)
        return "artifact"

    monkeypatch.setattr(cuda.hw_profiles, "load", lambda _: SimpleNamespace(title="Planted GPU"))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    net = SimpleNamespace(module=Net(gpu), examples=(torch.zeros(1, 2),), evidence=[])
    monkeypatch.setattr(cuda.nets, "load", lambda _: net)
    monkeypatch.setattr(cuda.export, "compile", compiled, raising=False)
    monkeypatch.setattr(cuda.export, "load", {"artifact": runner}.__getitem__, raising=False)
    assert cuda.main(["--runs", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    ways = [line.removeprefix("Planted GPU, resnet18, fp16, batch 1, ").partition(": ")[0] for line in lines]
    assert (asked["device"], asked["precision"]) == ("cuda", "fp16")
    if timed:
        assert ways == ["eager", "torch.compile", "CUDA graph", "hnas in python"]
        assert gpu.count("engine on (1, 2)") == cuda._LEAD + 5
        assert all(line.endswith(" ms (median, n=5)") for line in lines)
    else:
        assert ways == ["hnas", "eager", "torch.compile", "CUDA graph"]
        assert "not timed: trtexec has a clock of its own" in lines[0]


@pytest.mark.parametrize("error", [ExportError("no engine"), Unavailable("no runtime")])
def test_an_artifact_that_cannot_be_built_leaves_the_baselines(
    gpu: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(net: Any, path: Path) -> None:
        raise error

    monkeypatch.setattr(cuda, "_artifact", fail)
    monkeypatch.setattr(cuda.hw_profiles, "load", lambda _: SimpleNamespace(title="Planted GPU"))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    net = SimpleNamespace(module=Net(gpu), examples=(torch.zeros(1, 2),), evidence=[])
    monkeypatch.setattr(cuda.nets, "load", lambda _: net)
    assert cuda.main(["--runs", "5"]) == 0
    assert f"hnas: not timed: {error}" in capsys.readouterr().out
