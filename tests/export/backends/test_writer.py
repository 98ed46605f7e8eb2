"""Test that the TFLite emitter's models compute what the module does, in one delegate and few operators."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnas import hw_profiles
from hnas.export.backends.artifacts import make_artifact
from hnas.export.backends.tflite import convert as tflite
from hnas.export.backends.tflite import writer as emitter
from hnas.export.backends.tflite.writer.layout import Moves, Placed
from hnas.export.backends.tflite.writer.model import ALIGNMENT, Model, constant_tensor
from hnas.export.device.artifact import Artifact
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import Program, capture
from hnas.export.proof.verification import check
from hnas.spaces.hybrid_vision import hybrid_vision
from tests.conftest import need
from tests.export import nets

DEVICE = hw_profiles.load("tflite-cpu")


@pytest.fixture(autouse=True)
def runtime() -> None:
    need("tflite", tflite.missing())
    torch.set_num_threads(1)


class Of(nn.Module):
    """A function as a module, with layers that it may use."""

    def __init__(self, function: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs, **dict(self.named_children()))


def program(module: nn.Module, *shapes: tuple[int, ...], seed: int = 0) -> Program:
    """Return the fused program of a net with random weights and statistics."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator) * 0.3
            value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return fuse(capture(module.eval(), [torch.randn(shape, generator=generator) for shape in shapes]))


def compiled(source: Program, path: Path, precision: str = "fp32", samples: int = 8) -> Artifact:
    data = calls(source, samples) if precision == "int8" else None
    return make_artifact("tflite", source, path, precision=precision, device=DEVICE, calibration=data)


def calls(source: Program, count: int, seed: int = 1) -> list[tuple[np.ndarray, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(x.shape, generator=generator).numpy() for x in source.inputs) for _ in range(count)]


def sqnr_db(source: Program, artifact: Artifact) -> float:
    runner, evidence = tflite.load(artifact), calls(source, 4, seed=2)
    found = check([source.arrays(*x) for x in evidence], [runner(*x) for x in evidence], artifact.precision)
    return found.sqnr_db


def kinds(source: Program) -> list[str]:
    return [operator.kind for operator in emitter.lower(emitter.prepare(source)).operators]


IMAGE = (1, 4, 9, 10)
SINGLE: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "conv": (lambda: nn.Conv2d(4, 8, 3, padding=1), (IMAGE,)),
    "conv_same_word": (lambda: nn.Conv2d(4, 8, 3, padding="same", dilation=2), (IMAGE,)),
    "conv_stride_even_and_odd": (lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1), (IMAGE,)),
    "conv_valid_stride": (lambda: nn.Conv2d(4, 8, (3, 2), stride=(2, 3)), (IMAGE,)),
    "conv_dilated": (lambda: nn.Conv2d(4, 8, 3, dilation=2, padding=2), (IMAGE,)),
    "conv_grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), (IMAGE,)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 5, padding=2, groups=4, stride=2), (IMAGE,)),
    "depthwise_multiplied": (lambda: nn.Conv2d(4, 12, 3, groups=4), (IMAGE,)),
    "conv1d": (lambda: nn.Conv1d(4, 8, 3, padding=1, stride=2), ((1, 4, 11),)),
    "conv_batch": (lambda: nn.Conv2d(4, 8, 3), ((3, *IMAGE[1:]),)),
    "conv_transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (IMAGE,)),
    "conv_transposed_cut": (lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), (IMAGE,)),
    "max_pool": (lambda: nn.MaxPool2d(3, 2, 1), (IMAGE,)),
    "max_pool_relu": (lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, 1)), (IMAGE,)),
    "avg_pool": (lambda: nn.AvgPool2d(3, 2), (IMAGE,)),
    "avg_pool_border": (lambda: nn.AvgPool2d(3, 1, 1), (IMAGE,)),
    "avg_pool_no_border": (lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False), (IMAGE,)),
    "adaptive": (lambda: nn.AdaptiveAvgPool2d((3, 5)), (IMAGE,)),
    "adaptive_flat": (
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        (IMAGE,),
    ),
    "flatten_map": (lambda: nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(112, 3)), (IMAGE,)),
    "nearest": (lambda: nn.Upsample(scale_factor=2), (IMAGE,)),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (IMAGE,)),
    "bilinear_corners": (lambda: nn.Upsample((15, 7), mode="bilinear", align_corners=True), (IMAGE,)),
    "pad": (lambda: Of(lambda x: F.pad(x, (1, 2, 0, 3))), (IMAGE,)),
    "pad_value": (lambda: Of(lambda x: F.pad(x, (1, 2), value=-2.0)), (IMAGE,)),
    "batch_norm": (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU()), (IMAGE,)),
    "layer_norm": (lambda: nn.LayerNorm(16), ((2, 5, 16),)),
    "layer_norm_of_two": (lambda: nn.LayerNorm((5, 16)), ((2, 5, 16),)),
    "layer_norm_linear": (lambda: nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8, bias=False)), ((2, 5, 16),)),
    "linear": (lambda: nn.Linear(16, 8), ((5, 16),)),
    "linear_4d": (lambda: Of(lambda x, f: f(x.permute(0, 2, 3, 1)), f=nn.Linear(4, 8)), (IMAGE,)),
    "linear_of_columns": (lambda: nn.Linear(10, 8, bias=False), (IMAGE,)),
    "matmul": (lambda: Of(lambda a, b: a @ b), ((2, 3, 5), (2, 5, 4))),
    "matmul_turned": (lambda: Of(lambda a, b: a.transpose(1, 2) @ b.transpose(1, 2)), ((2, 5, 3), (2, 4, 5))),
    "attention": (lambda: Of(F.scaled_dot_product_attention), ((1, 2, 5, 8), (1, 2, 6, 8), (1, 2, 6, 8))),
    "softmax": (lambda: Of(lambda x: x.softmax(1)), (IMAGE,)),
    "means": (lambda: Of(lambda x: (x.mean((2, 3)), x.mean(1, keepdim=True), x.sum(-1))), (IMAGE,)),
    "concat": (lambda: Of(lambda x: torch.cat([x, x * 2, -x, x + 1, x.exp(), x.abs()], 1)), (IMAGE,)),
    "stack": (lambda: Of(lambda x: torch.stack([x, x + 1], 1)), ((2, 3),)),
    "split": (lambda: Of(lambda x: [part * (i + 1) for i, part in enumerate(x.chunk(2, 1))]), (IMAGE,)),
    "split_uneven": (lambda: Of(lambda x: [part + 1 for part in x.split([1, 3], 1)]), (IMAGE,)),
    "slices": (lambda: Of(lambda x: x[:, 1:3, 2:] * x[:, :1, 2:]), (IMAGE,)),
    "select": (lambda: Of(lambda x: x[:, 1] + x[:, :, 3:4].mean(1)), (IMAGE,)),
    "unbind": (lambda: Of(lambda x: sum(part * (i + 1) for i, part in enumerate(x.unbind(1)))), (IMAGE,)),
    "shuffle": (lambda: Of(lambda x: x.reshape(1, 2, 2, 9, 10).transpose(1, 2).reshape(IMAGE) * 2), (IMAGE,)),
    "tokens_and_back": (lambda: Of(lambda x: x.flatten(2).transpose(1, 2).softmax(-1).mT.reshape(IMAGE)), (IMAGE,)),
    "broadcast": (lambda: Of(lambda x, y, z: (x + y) * z - 1), (IMAGE, (1, 4, 1, 1), (10,))),
    "reversed": (lambda: Of(lambda x: (2 - x, 1 / (x.abs() + 1), x / 4)), (IMAGE,)),
    "alpha": (lambda: Of(lambda x, y: torch.add(x, y, alpha=2.0)), ((3, 4), (3, 4))),
    "powers": (lambda: Of(lambda x: (x**2, x**3, x.abs().sqrt(), (x * x + 1).rsqrt())), ((3, 4),)),
    "clamps": (lambda: Of(lambda x: (x.clamp(-0.5, 0.7), F.hardtanh(x), x.clamp(min=0.2))), ((3, 4),)),
    "extremes": (lambda: Of(lambda x, y: (torch.maximum(x, y), torch.minimum(x, y))), ((3, 4), (3, 4))),
    "activations": (
        lambda: Of(lambda x: (x.relu(), F.relu6(3 * x), F.silu(x), F.gelu(x), F.gelu(x, approximate="tanh"))),
        (IMAGE,),
    ),
    "gates": (
        lambda: Of(lambda x: (x.sigmoid(), x.tanh(), F.hardswish(x), F.hardsigmoid(x), F.leaky_relu(x, 0.3))),
        (IMAGE,),
    ),
    "zeros": (lambda: Of(lambda x: x + torch.zeros_like(x)), (IMAGE,)),
    "expanded": (lambda: Of(lambda x: x * x.mean(1, keepdim=True).expand(1, 4, 9, 10)), (IMAGE,)),
}
# XNNPACK has no kernel for these; built-in kernels run them.
ALONE = {"max_pool", "pad_value"}


@pytest.mark.parametrize("name", SINGLE)
def test_an_operator_computes_what_the_module_does_in_one_piece(name: str, tmp_path: Path) -> None:
    create, shapes = SINGLE[name]
    source = program(create(), *shapes)
    artifact = compiled(source, tmp_path)
    assert "lacks" not in artifact.notes
    assert sqnr_db(source, artifact) >= 90
    if name not in ALONE:
        assert (artifact.notes["delegates"], artifact.notes["undelegated"]) == (1, 0)


def test_token_ids_are_read_by_an_embedding(tmp_path: Path) -> None:
    table = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
    source = fuse(capture(table.eval(), [torch.tensor([[1, 6, 0]])]))
    (got,) = tflite.load(compiled(source, tmp_path))(np.array([[2, 5, 5]]))
    assert np.allclose(got, table(torch.tensor([[2, 5, 5]])).detach().numpy(), atol=1e-6)


def test_moves_keep_the_elements_where_the_graph_has_them() -> None:
    """Constants are moved at once, so they show every rule of the layout."""
    rng = Random(0)
    for _ in range(300):
        shape = tuple(rng.choice([1, 1, 2, 3, 4, 6]) for _ in range(rng.randint(1, 5)))
        order = tuple(rng.sample(range(len(shape)), len(shape)))
        wanted = list(shape) if rng.random() < 0.3 else _factors(prod(shape), rng)
        data = np.arange(prod(shape)).reshape(shape)
        placed = Placed(constant_tensor(np.ascontiguousarray(data.transpose(order))), order)
        asked = tuple(rng.sample(range(len(wanted)), len(wanted)))
        found = Moves(Model()).reshaped(placed, wanted, asked)
        assert found.shape == tuple(wanted)
        assert np.array_equal(found.value.data, data.reshape(wanted).transpose(found.order))


def _factors(count: int, rng: Random) -> list[int]:
    found = []
    while count > 1:
        size = rng.choice([d for d in range(2, count + 1) if count % d == 0])
        found.append(size)
        count //= size
    for _ in range(rng.randint(0, 2)):
        found.insert(rng.randint(0, len(found)), 1)
    return found or [1]


def test_activations_scales_and_offsets_are_in_the_weights_before_or_behind_them() -> None:
    conv = nn.Conv2d(4, 8, 1)
    assert kinds(program(Of(lambda x, f: f(x).relu(), f=conv), IMAGE)) == ["CONV_2D", "TRANSPOSE"]
    assert kinds(program(Of(lambda x, f: (f(x) * 0.5 + 1).mean((2, 3)), f=conv), IMAGE)) == ["CONV_2D", "MEAN"]
    squeeze = program(Of(lambda x, f: F.hardsigmoid(f(x)).mean((2, 3)), f=conv), IMAGE)
    assert kinds(squeeze) == ["CONV_2D", "MUL", "MEAN"]  # the 3 is in the bias, the 6 in the activation
    normed = kinds(program(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8)), (2, 5, 16)))
    assert normed == ["MEAN", "SUB", "SQUARE", "MEAN", "ADD", "RSQRT", "MUL", "FULLY_CONNECTED"]


def test_what_others_read_is_not_folded_away(tmp_path: Path) -> None:
    twice = Of(lambda x, f: ((y := f(x)).relu(), y * 2), f=nn.Conv2d(4, 8, 1))
    source = program(twice, IMAGE)
    assert sqnr_db(source, compiled(source, tmp_path)) >= 90
    assert Counter(kinds(source))["RELU"] == 1


def test_channels_last_throughout() -> None:
    """A convolutional net has one transpose only: to an output in the module's layout."""
    assert "TRANSPOSE" not in kinds(fuse(capture(*nets.build("resnet"))))
    assert kinds(fuse(capture(*nets.build("two_by_two")))).count("TRANSPOSE") == 1
    assert "TRANSPOSE" not in kinds(fuse(capture(*nets.build("convnext"))))


def test_attention_moves_each_of_its_four_values_once() -> None:
    assert kinds(fuse(capture(*nets.build("hybrid")))).count("TRANSPOSE") == 4


def test_constants_lie_where_the_schema_says() -> None:
    from ai_edge_litert.schema_py_generated import Model as Schema

    content = emitter.emit(emitter.prepare(fuse(capture(*nets.build("hybrid")))))
    model = Schema.GetRootAs(content, 0)
    for index in range(1, model.BuffersLength()):
        start = model.Buffers(index)._tab.Vector(model.Buffers(index)._tab.Offset(4))
        assert start % ALIGNMENT == 0


def test_inputs_that_are_outputs_and_outputs_that_are_equal(tmp_path: Path) -> None:
    source = program(Of(lambda x, y: (x, y + 1, x, x)), (2, 3), (2, 3))
    inputs = [x.numpy() for x in source.inputs]
    got = tflite.load(compiled(source, tmp_path))(*inputs)
    assert all(np.array_equal(a, b) for a, b in zip(got, source.arrays(*inputs), strict=True))


class Cell(nn.Module):
    """A gated cell like an LSTM's, unrolled over its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.state = nn.Linear(6, 32), nn.Linear(8, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], 8)
        for step in x.unbind(1):
            i, f, g, o = (self.inputs(step) + self.state(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_recurrent_cell_unrolled(precision: str, tmp_path: Path) -> None:
    source = program(Cell(), (1, 5, 6))
    artifact = compiled(source, tmp_path, precision, samples=32)
    assert sqnr_db(source, artifact) >= (90 if precision == "fp32" else 28)
    assert (artifact.notes["delegates"], artifact.notes["undelegated"]) == (1, 0)


SPACES = {
    "default": {},
    "norms and gates": {"activations": ("relu6", "hardswish", "gelu", "silu"), "norm": "layer", "squeeze": True},
    "divided": {"divisions": ("convnext+mbconv", "attention+mbconv", "mbconv+fusedconv")},
    "colour, odd sizes": {"channels": 3, "resolutions": (33, 48), "stem_stride": 2},
}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
@pytest.mark.parametrize("name", SPACES)
def test_any_subnet_is_one_piece_that_computes_what_the_module_does(name: str, seed: int, tmp_path: Path) -> None:
    space = hybrid_vision(**SPACES[name])
    arch = space.sample(Random(seed))
    source = program(space.build(arch), (1, *space.example(arch)[0]), seed=seed)
    for precision, floor in (("fp32", 90), ("int8", 5)):  # low for random weights: only a wrong result is below
        path = tmp_path / precision
        path.mkdir()
        artifact = compiled(source, path, precision)
        assert "lacks" not in artifact.notes
        assert sqnr_db(source, artifact) >= floor
        assert (artifact.notes["delegates"], artifact.notes["undelegated"]) == (1, 0)


def test_uses_that_it_lacks_are_named() -> None:
    for function, name in (
        (lambda x: F.conv2d(x, x[:, :, :3, :3]), "convolution with a weight that is computed in the graph"),
        (lambda x: x.cummax(1)[1], "cummax"),
        (
            lambda x: torch.stft(x.flatten(), 16, window=torch.ones(16), return_complex=True).abs(),
            r"stft \(by _fft_r2c\)",
        ),
    ):
        with pytest.raises(emitter.Unsupported, match=name):
            emitter.lower(emitter.prepare(program(Of(function), IMAGE)))


@pytest.mark.slow
def test_the_runtime_alone_compiles_both_precisions(tmp_path: Path) -> None:
    script = (
        "import sys, torch\n"
        "for name in ('litert_torch', 'litert_converter', 'ai_edge_quantizer', 'jax', 'torchao'):\n"
        "    sys.modules[name] = None\n"
        "from hnas import export\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()\n"
        "x = torch.randn(1, 3, 8, 8)\n"
        "for precision in ('fp32', 'int8'):\n"
        "    made = export.compile(net, (x,), device='tflite-cpu', precision=precision, calibration=[(x,)],\n"
        "                          path=sys.argv[1] + '/' + precision)\n"
        "    print(made.notes['verification']['passed'], sorted(made.versions))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    remark = "graded on the calibration samples, to which int8 was fitted; other samples may fare worse\n"
    assert (done.stdout.splitlines(), done.stderr) == (["True ['ai-edge-litert', 'torch']"] * 2, remark)
