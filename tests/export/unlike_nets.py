"""Build small networks whose values have parts of unlike ranges: kinds of detectors, rows of layers, concatenations."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Detector(nn.Module):
    """Return boxes in pixels beside scores: [n, 9, positions].

    arrange: changes the joined value.
    shrink: divides the scores.
    """

    def __init__(self, arrange: Callable[[Tensor], Tensor] = lambda x: x, axis: int = 1, shrink: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.box, self.score = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 5 if axis == 1 else 4, 1)
        self.arrange, self.axis, self.shrink = arrange, axis, shrink

    def forward(self, x: Tensor) -> Tensor:
        f = self.body(x)
        parts = (self.box(f).sigmoid() * 640).flatten(2), (self.score(f).sigmoid() / self.shrink).flatten(2)
        return self.arrange(torch.cat(parts, self.axis))


class Heads(nn.Module):
    """Return a regression in hundreds beside class scores, [n, 7], joined or stacked."""

    def __init__(self, stacked: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 96), nn.ReLU())
        self.large, self.small = nn.Linear(96, 4), nn.Linear(96, 4 if stacked else 3)
        self.stacked = stacked

    def forward(self, x: Tensor) -> Tensor:
        f = self.body(x)
        parts = [self.large(f) * 500, self.small(f).tanh()]
        return torch.stack(parts, 1) if self.stacked else torch.cat(parts, -1)


class Rows(nn.Module):
    """End with one layer that has large and small rows.

    order: indices of the large rows.
    """

    def __init__(
        self, kind: str = "linear", large: slice = slice(0, 4), after: Callable[[Tensor], Tensor] | None = None
    ):
        super().__init__()
        self.kind, self.after = kind, after
        width, outputs = (512, 160) if kind == "linear" else (16, 12)
        first = nn.Linear(16, width) if kind == "linear" else nn.Conv2d(3, width, 3)
        self.body = nn.Sequential(first, nn.ReLU())
        self.last = nn.Linear(width, outputs) if kind == "linear" else nn.Conv2d(width, outputs, 1)
        self.last.weight.data[large] *= 600
        self.last.bias.data[large] *= 600

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.body(x))
        return x if self.after is None else self.after(x)


class Inside(nn.Module):
    """Join unlike parts inside the network; a layer weighs them alike."""

    def __init__(self, after: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.mix, self.after = nn.Conv2d(16, 16, 3, padding=1), after
        self.mix.weight.data[:, :8] /= 500
        self.last = nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.a(x).relu() * 500, self.b(x).sigmoid()], 1)
        return self.last(self.mix(self.after(joined)).relu())


class Inputs(nn.Module):
    """Read pixels beside probabilities in one input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 16, 3), nn.Conv2d(16, 4, 1)
        self.first.weight.data[:, :3] /= 255

    def forward(self, x: Tensor) -> Tensor:
        scale = x.new_tensor([255.0, 255.0, 255.0, 1.0]).reshape(1, 4, 1, 1)
        return self.last(self.first(x * scale).relu())


class Residual(nn.Module):
    """Add parts of unlike ranges, and return the sum and the small part."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 8, 3) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        small = self.b(x).tanh()
        return self.a(x) * 600 + small, small + self.c(x)


class Projection(nn.Module):
    """Split one linear layer into queries, keys and values of unlike ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.joint, self.last = nn.Linear(12, 16), nn.Linear(16, 48), nn.Linear(16, 8)
        self.joint.weight.data[:16] *= 300
        self.joint.bias.data[:16] *= 300
        self.joint.weight.data[16:32] /= 300
        self.joint.bias.data[16:32] /= 300

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.joint(self.first(x).relu()).split(16, -1)
        return self.last(torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v)


IMAGE, VECTOR, TOKENS = (1, 3, 24, 24), (1, 16), (1, 9, 12)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "detector": (Detector, IMAGE),
    "hundredths": (lambda: Detector(shrink=100.0), IMAGE),
    "permuted": (lambda: Detector(lambda x: x.transpose(1, 2).contiguous()), IMAGE),
    "flattened": (lambda: Detector(lambda x: x.flatten(1)), IMAGE),
    "sliced": (lambda: Detector(lambda x: x[:, 2:7]), IMAGE),
    "another_axis": (lambda: Detector(axis=2), IMAGE),
    "heads": (Heads, VECTOR),
    "stacked": (lambda: Heads(stacked=True), VECTOR),
    "rows": (Rows, VECTOR),
    "middle_rows": (lambda: Rows(large=slice(40, 90)), VECTOR),
    "every_other_row": (lambda: Rows(large=slice(0, 160, 2)), VECTOR),
    "rows_of_conv": (lambda: Rows("conv"), IMAGE),
    "rows_then_sigmoid": (lambda: Rows("conv", after=lambda x: torch.cat([x[:, :4], x[:, 4:].sigmoid()], 1)), IMAGE),
    "inside": (Inside, IMAGE),
    "inside_pooled": (lambda: Inside(lambda x: torch.nn.functional.max_pool2d(x, 2)), IMAGE),
    "inputs": (Inputs, (1, 4, 24, 24)),
    "residual": (Residual, IMAGE),
    "projection": (Projection, TOKENS),
}


def build(name: str) -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
    """Return the named network in eval mode, seeded, and 24 samples."""
    create, shape = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = create().eval()
    generator = torch.Generator().manual_seed(1)
    return net, [(2 * torch.randn(shape, generator=generator),) for _ in range(24)]
