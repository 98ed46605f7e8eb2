"""Make real bundles for tests in milliseconds: ONNX convolutions of different width, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from hnas.data import images
from hnas.export.bundle.bundle import write_bundle
from hnas.export.bundle.manifest import Accuracy, Data, Input, Latency, Machine, Manifest, Speedup
from hnas.export.device.artifact import Artifact, TensorSpec, digest_files
from hnas.export.proof.verification import check

SIZE, IMAGES = 28, 120
PREPROCESSING = images.Preprocessing((SIZE, SIZE), (SIZE, SIZE), (0.5,), (0.5,))

Make: TypeAlias = Callable[..., Path]


def network(
    path: Path, width: int, *, seed: int = 0, backend: str = "onnxruntime", batch: int = 1, side: int = 28
) -> Artifact:
    """Return the artifact of two 3x3 convolutions of ``width`` channels, a mean and a classifier of ten classes."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> object:
        return numpy_helper.from_array(
            (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name
        )

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w3"], ["y"]),
    ]
    weights = [weight("w1", width, 1, 3, 3), weight("w2", width, width, 3, 3), weight("w3", width, 10)]
    inputs, outputs = TensorSpec("x", (batch, 1, side, side), "float32"), TensorSpec("y", (batch, 10), "float32")
    x, y = (helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in (inputs, outputs))
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.mkdir(parents=True)
    onnx.save(model, path / "model.onnx")
    notes = {} if backend == "onnxruntime" else {"verify_with": "onnxruntime"}
    artifact = Artifact(
        path, backend, "fp32", "cpu", 1, (inputs,), (outputs,), digest_files(path, "model.onnx"), notes=notes
    )
    artifact.write()
    return artifact


def dataset(folder: Path) -> images.ImageData:
    """Write a folder of IDX files with seeded noise as test images; return the images."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    images.write_idx(folder / "t10k-images-idx3-ubyte.gz", rng.integers(0, 256, (IMAGES, SIZE, SIZE), np.uint8))
    images.write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.arange(IMAGES, dtype=np.uint8) % 10)
    return images.load_split(folder, "test")


def hits(artifact: Artifact, data: images.ImageData) -> float:
    """Return the top-1 of an artifact of batch 1, counted in this process, independently of the gate."""
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(artifact.model), providers=["CPUExecutionProvider"])
    pixels = PREPROCESSING(data.images)
    guesses = [int(session.run(None, {"x": image[None]})[0].argmax()) for image in pixels]
    return float(np.mean(np.array(guesses) == data.labels))


def manifest(artifact: Artifact, accuracy: float, digest: str) -> Manifest:
    """Return a manifest that claims 3x on this machine, and ``accuracy`` within 5 points."""
    outputs = [(np.eye(10, dtype=np.float32),)]
    return Manifest(
        name="tiny",
        created="2026-01-01T00:00:00+00:00",
        task="image-classification",
        target="onnxruntime-cpu",
        backend=artifact.backend,
        precision=artifact.precision,
        arch={},
        space=None,
        labels=tuple("0123456789"),
        input=Input((1, 1, SIZE, SIZE), "float32", "NCHW", PREPROCESSING.to_json()),
        accuracy=Accuracy(
            "top-1", IMAGES, "test", accuracy, accuracy, (max(0, accuracy - 0.05), min(1, accuracy + 0.05))
        ),
        verification=check(outputs, outputs, "fp32"),
        latency=Latency("measured", 1.0, 0.9, 1.1, 1, 1, 100),
        speedup=Speedup(3.0, 2.8, 3.2, "largest subnet, fp32, same backend", "measured", 5),
        machine=Machine.here(),
        versions={"onnxruntime": version("onnxruntime")},
        seeds={"search": 0},
        data=Data("noise", {"test": digest}),
        reproduce="hnas-deploy --target onnxruntime-cpu",
    )


def bundle(
    root: Path, name: str, *, light: int = 4, heavy: int | None = 48, backend: str = "onnxruntime", **claims: object
) -> Path:
    """Write a bundle in ``root``, with its data in ``root/data``; ``claims`` replace fields of its manifest."""
    data = images.load_split(root / "data", "test") if (root / "data").exists() else dataset(root / "data")
    artifact = network(root / f"{name}-artifact", light, backend=backend)
    baseline = None if heavy is None else network(root / f"{name}-baseline", heavy, backend=backend)
    claimed = replace(manifest(artifact, hits(artifact, data), data.digest), **claims)
    return write_bundle(root / name, claimed, artifact=artifact, baseline=baseline).path


def recurrent(root: Path, name: str, task: str, preprocessing: Mapping[str, object], width: int = 1) -> Path:
    """Write a bundle in ``root`` that goes from step to step; each output is its input, and the state stays.

    task, preprocessing: fields of its manifest. width: of a row, or the size of the alphabet.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    path = root / f"{name}-artifact"
    path.mkdir(parents=True)
    ends = [
        [TensorSpec(end, (1, size), "float32") for end, size in zip(pair, (width, 1), strict=True)]
        for pair in ("xh", "yg")
    ]
    values = [[helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in side] for side in ends]
    nodes = [helper.make_node("Identity", [a.name], [b.name]) for a, b in zip(*ends, strict=True)]
    graph = helper.make_graph(nodes, "step", *values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path / "model.onnx")
    files = digest_files(path, "model.onnx")
    artifact = Artifact(path, "onnxruntime", "fp32", "cpu", 1, tuple(ends[0]), tuple(ends[1]), files)
    artifact.write()
    taken = Input((1, width), "float32", "NF", dict(preprocessing))
    made = replace(manifest(artifact, 0.5, "0" * 64), task=task, labels=(), input=taken)
    return write_bundle(root / name, made, artifact=artifact, baseline=None).path
