"""Make small programs of one function, and apply a pass to them under the laws of passes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hnas.export.graph.fusion import noise_tensors
from hnas.export.graph.program import capture


class Apply(nn.Module):
    """Wrap one function of the module and its inputs."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def program_of(function, *shapes, **parts):
    """Return the program of ``function(self, *inputs)`` on seeded inputs of these shapes."""
    generator = torch.Generator().manual_seed(0)
    return capture(Apply(function, **parts), tuple(torch.randn(shape, generator=generator) for shape in shapes))


def norm(features, kind=nn.BatchNorm2d):
    """Return a batch norm with random statistics and weights."""
    part = kind(features)
    part.running_mean.uniform_(-1, 1)
    part.running_var.uniform_(0.5, 2)
    part.weight.data.uniform_(0.5, 2)
    part.bias.data.uniform_(-1, 1)
    return part


def apply(function, program):
    """Return how often the pass fired and the operators after it, and check the laws of passes."""
    code, state = program.module.code, {name: value.clone() for name, value in program.module.state_dict().items()}
    result = function(program)
    assert program.module.code == code
    assert all(torch.equal(value, state[name]) for name, value in program.module.state_dict().items())
    name, count = result.fired[-1]
    assert name == function.__name__
    for inputs in (program.inputs, noise_tensors(program.inputs, seed=3)):
        for want, have in zip(program(*inputs), result(*inputs), strict=True):
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)
    assert function(result).fired[-1] == (name, 0)
    for node in result.module.graph.nodes:  # later passes rely on it
        value = node.meta.get("val")
        assert node.op != "call_function" or value is not None
    return count, {target.split(".")[1]: number for target, number in result.operators().items()}


def normal_noise(inputs: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Return seeded normal noise with the mean and spread of each input; integers stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (
            torch.randn(value.shape, generator=generator, dtype=torch.float64) * value.double().std()
            + value.double().mean()
        ).to(value.dtype)
        if value.is_floating_point()
        else value
        for value in inputs
    )
