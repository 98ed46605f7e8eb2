"""Build ONNX files operator by operator, also such as torch's exporter never writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FLOAT = 1  # onnx.TensorProto.FLOAT; onnx itself is imported where it is used


def weight(name: str, *shape: int, fill: float | None = None) -> Any:
    """Return a seeded constant, with ``fill`` as its first value if given."""
    import onnx

    values = np.random.default_rng(len(name)).normal(0, 0.3, size=shape).astype(np.float32)
    if fill is not None:
        values.reshape(-1)[0] = fill
    return onnx.numpy_helper.from_array(values, name)


def model(
    nodes: list[Any],
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    weights: Sequence[Any] = (),
    *,
    opset: int = 17,
    ir: int = 8,
    domains: tuple[str, ...] = (),
    dtype: int = FLOAT,
) -> Any:
    """Return a model of one graph. Inputs and outputs map names to shapes; a string leaves a size open."""
    from onnx import helper

    def values(named: dict[str, Any]) -> list[Any]:
        return [helper.make_tensor_value_info(name, dtype, shape) for name, shape in named.items()]

    graph = helper.make_graph(nodes, "graph", values(inputs), values(outputs), weights)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir, producer_name="by hand")


def chain(*operators: Any, sizes: tuple[Any, ...] = (1, 3), **more: Any) -> Any:
    """Return a chain of operators from x to y. Each is a name, or a name and more inputs."""
    from onnx import helper

    names = ["x", *(f"v{index}" for index in range(1, len(operators))), "y"]
    parts = [(each,) if isinstance(each, str) else each for each in operators]
    nodes = [helper.make_node(op, [names[i], *rest], [names[i + 1]]) for i, (op, *rest) in enumerate(parts)]
    return model(nodes, {"x": [*sizes]}, {"y": [*sizes]}, **more)


def convolution(batch: int | str = 1, *, fill: float | None = None, extra: str = "", **more: Any) -> Any:
    """Return convolution, ReLU, pooling and classifier on [batch, 3, 8, 8], and perhaps the operator ``extra``."""
    from onnx import helper

    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "matrix", "offset"], ["s" if extra else "y"]),
    ]
    if extra:
        domain, _, name = extra.rpartition(":")
        nodes.append(helper.make_node(name, ["s"], ["y"], domain=domain))
    weights = [weight("kernel", 8, 3, 3, 3, fill=fill), weight("bias", 8), weight("matrix", 8, 4), weight("offset", 4)]
    return model(nodes, {"x": [batch, 3, 8, 8]}, {"y": [batch, 4]}, weights, **more)


def save(made: Any, path: Path, data: str | None = None) -> Path:
    """Save the model to ``path``, its weights to the file ``data`` beside it if given. Return ``path``."""
    import onnx

    if data is None:
        onnx.save(made, path)
    else:
        onnx.save(made, path, save_as_external_data=True, location=data, size_threshold=0)
    return path


def images(count: int = 16, *shape: int) -> list[tuple[np.ndarray[Any, Any], ...]]:
    """Return seeded samples of batch 1."""
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(1, *(shape or (3, 8, 8)))).astype(np.float32),) for _ in range(count)]
