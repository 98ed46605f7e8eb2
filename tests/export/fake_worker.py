"""Run the real worker with a fake runtime. The artifact's note ``fake`` chooses its behaviour."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from hnas.export.device import serve_artifacts as serving
from hnas.export.device.artifact import Artifact, TensorSpec, digest_files
from hnas.export.remote.transports import local


def fake_artifact(folder: Path, fake: str = "", outputs: tuple[TensorSpec, ...] = (), **notes: object) -> Artifact:
    """Write an artifact for the fake runtime. It states no outputs but ``outputs``."""
    folder.mkdir(parents=True)
    (folder / "model").write_bytes(b"\0" * 8)
    x = TensorSpec("x", (1, 3), "float32")
    files = digest_files(folder, "model")
    artifact = Artifact(folder, "fake", "fp32", "here", 1, (x,), outputs, files, notes={"fake": fake, **notes})
    artifact.write()
    return artifact


def start(module: str, environment: Any) -> "subprocess.Popen[bytes]":
    """Start this module instead of the one that the local transport starts."""
    assert module == "hnas.export.device.serve_artifacts"
    return local.start(__name__, environment)


place, lost, where = local.place, local.lost, local.where


class FakeRunner:
    """Return twice the inputs, or fail in a chosen way."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.fake = str(artifact.notes["fake"])
        self.calls = 0
        if self.fake == "bad":
            raise RuntimeError("\n  cannot read the model\nand a page more")

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        self.calls += 1
        match self.fake:
            case "crash":
                os.write(2, b"about to go\n")
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(7)
            case "hang":
                os.write(2, b"hanging\n")
                signal.pause()
            case "slow":
                time.sleep(0.01)
            case "noise":
                os.write(1, b"progress: 100 %\n" * 10_000)
                sys.stdout.write("more of it\n")
                os.write(2, b"warning\n" * 50_000)
            case "raise":
                raise RuntimeError("kernel 'x' failed\nstack\nstack")
            case "value":
                raise ValueError("input 0 has shape (1, 2), expected (1, 3)")
            case "memory":
                np.ones(2**28)
            case "threads":
                return (np.array([self.artifact.threads, int(os.environ["OMP_NUM_THREADS"])]),)
            case "calls":
                return (np.array(self.calls),)
            case "frame":
                os.write(4, b"garbage that is longer than a prefix")  # 3 and 4 carry the frames
        return tuple(2 * value for value in inputs)

    def bind(self, *inputs: Any) -> Callable[[], object]:
        return lambda: self(*inputs)


def _load(name: str) -> Any:
    if name == "absent":
        return SimpleNamespace(missing=lambda: "absent is not installed; pip install 'hnas[absent]'")
    if name != "fake":
        raise ValueError(f"no backend {name!r}; known: absent, fake")
    return SimpleNamespace(missing=lambda: None, load=FakeRunner, versions=dict)


if __name__ == "__main__":
    serving.runtimes = SimpleNamespace(load=_load)
    serving.serve(serving.dispatch(serving.Served()))
