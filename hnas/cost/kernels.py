"""Kinds of kernels, and which operations of a network make one.

`hnas.cost.roofline.trace` counts kernels of a torch module, `hnas.cost.onnx_graph.kernels` of an ONNX file.
"""

from __future__ import annotations

from dataclasses import dataclass

# Operations that read and write memory and whose arithmetic is not counted. A name of torch contains one of these.
REDUCTIONS = ("softmax", "mean", "_adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "native_layer_norm", "group_norm")
REFORMATS = ("clone", "cat", "constant_pad_nd", "upsample")
# Activations and products that a runtime fuses only in part. ReLU, its clipped forms and additions are always fused.
ELEMENTWISE = (
    *("silu", "hardswish", "hardsigmoid", "gelu", "sigmoid", "mish", "tanh", "softplus", "elu", "mul", "div"),
    *("sub", "pow", "exp", "rsqrt", "erf"),
)
FUSED = ("add", "relu", "hardtanh", "clamp", "leaky_relu")
TENSOR = ("dense", "pointwise", "attention")  # kinds that tensor cores compute
FLOATING = ("attention", "reduction", "elementwise")  # kinds that stay in fp16 in an int8 network on a GPU


@dataclass(frozen=True)
class Kernel:
    """One kernel launch.

    flops: floating point operations; a multiply-accumulate is two.
    elements: values that are read from and written to memory.
    kind: dense or pointwise (convolutions; a linear layer is pointwise), depthwise, attention (products of two
        activations), reduction (softmax, norms, pooling), elementwise, reformat, or recurrent.
    weights: how many of the elements are weights of the network (0 where nobody counts them).
    side: height of the filter of a convolution; 1 for other kernels.
    """

    name: str
    flops: int
    elements: int
    kind: str = "dense"
    weights: int = 0
    side: int = 1


def kind_of_convolution(weight: tuple[int, ...], groups: int) -> str:
    """Return the kind of a convolution with a weight of shape ``weight``, output channels first."""
    if groups > 1 and weight[1] == 1:
        return "depthwise"
    return "pointwise" if all(size == 1 for size in weight[2:]) else "dense"
