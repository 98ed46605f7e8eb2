"""Make the best attempt by the reference backend, with a fault planted in its runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import nn

from hnas import hw_profiles
from hnas.export import backends
from hnas.export.compiling import attempts as room
from hnas.export.compiling.attempts import Attempt, Attempts, Job
from hnas.export.compiling.conversion import convert
from hnas.export.compiling.evidence import gather
from hnas.export.compiling.options import CompileOptions
from hnas.export.compiling.originals import capture_network
from hnas.export.device.artifact import Artifact
from hnas.export.graph.samples import Samples
from hnas.export.int8.policy import LADDER
from hnas.export.proof.verification import Check
from tests.export.compiling.playing import Fault, Net, Outputs, images


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Attempt]:
    """Return a function that makes the best attempt by the reference backend, with a fault planted in its runtime."""

    def best(
        fault: Fault, precision: str = "fp32", net: nn.Module | None = None, calibration: Any = None, **options: Any
    ) -> Attempt:
        reference = backends.load("reference")

        class Player:
            def __init__(self, artifact: Artifact) -> None:
                self.artifact = artifact

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def outputs(self, samples: Samples) -> Outputs:
                runner = reference.load(self.artifact)
                return fault(self.artifact, samples, [runner(*sample) for sample in samples])

        class Converter:
            def convert(self, *arguments: Any, **named: Any) -> Artifact:
                made = convert(*arguments, **named)
                made.write()
                return made

        monkeypatch.setattr(room, "Worker", Player)
        monkeypatch.setattr(reference, "precisions", ("fp32", "int8"))
        torch.manual_seed(0)
        chosen = CompileOptions(compiler=Converter(), **options)
        rungs = ("none", *LADDER) if chosen.recover == "auto" and precision == "int8" else (chosen.recover,)
        job = Job("reference", hw_profiles.load("openvino-cpu"), precision, 1, rungs, chosen)
        with capture_network(net or Net(), images(1)[0], "openvino") as source:
            return Attempts(
                job, gather(source, calibration, precision, chosen), Path(tempfile.mkdtemp(dir=tmp_path)), "net"
            ).best()

    return best


@pytest.fixture
def grades(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grade by level alone."""
    monkeypatch.setattr(Check, "passed", property(lambda self: self.sqnr_db >= 10))
    grade = property(lambda self: "broken" if self.sqnr_db < 10 else "degraded" if self.sqnr_db < 25 else "close")
    monkeypatch.setattr(Check, "grade", grade)
