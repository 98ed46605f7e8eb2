"""Test each case of ``capture``: accepted and refused modules, and that the module keeps its state."""

import copy

import pytest
import torch
from torch import Tensor, nn

from hnas.export.device.errors import ExportError
from hnas.export.graph.program import capture, module_of
from tests.export import nets

torch.set_num_threads(1)


class Apply(nn.Module):
    """A module of one function and a batch norm, whose state capture could change."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("count", torch.zeros(1))

    def forward(self, *inputs):
        return self.function(self, *inputs)


def program_of(function, *shapes):
    return capture(Apply(function), tuple(torch.randn(shape) for shape in shapes))


@pytest.mark.parametrize("name", nets.SHAPES)
def test_program_computes_what_the_module_does(name):
    net, inputs = nets.build(name)
    expected = net(*inputs)
    got = capture(net, inputs)(*inputs)
    for want, have in zip(expected if isinstance(expected, tuple) else (expected,), got, strict=True):
        torch.testing.assert_close(have, want)


def test_a_copy_is_independent_and_equal():
    net, inputs = nets.build("resnet")
    program = capture(net, inputs)
    twin = copy.deepcopy(program.module)
    before = program(*inputs)[0]
    with torch.no_grad():
        for value in twin.parameters():
            value.zero_()
    assert torch.equal(program(*inputs)[0], before)
    assert torch.equal(copy.deepcopy(program.module)(*inputs), before)


def test_the_module_is_left_as_it_was():
    net, inputs = nets.build("resnet")
    net.train()
    net.blocks.eval()
    modes = [part.training for part in net.modules()]
    state = copy.deepcopy(net.state_dict())
    program = capture(net, inputs)
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    expected = program(*inputs)[0]
    with torch.no_grad():
        net.head[-1].weight.zero_()  # training goes on
    assert torch.equal(program(*inputs)[0], expected)


def test_tied_weights_stay_tied():
    layer = nn.Linear(4, 4, bias=False)
    program = capture(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(1, 4))
    assert len({id(value) for value in program.module.parameters()}) == 1


def test_digest_is_of_the_structure():
    net, inputs = nets.build("resnet")
    other, _ = nets.build("resnet", seed=1)
    assert capture(net, inputs).digest == capture(other, inputs).digest
    assert capture(net, inputs).digest != capture(net, (torch.randn(2, 3, 16, 16),)).digest


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (lambda self, x: {"y": x * 2}, ("y",)),
        (lambda self, x: (x * 2, [x]), ("output_0", "output_1.0")),
        (lambda self, x: (x, 3, x + 1), ("output_0", "output_2")),
    ],
)
def test_case_1_nested_outputs_have_dotted_names(output, names):
    program = program_of(output, (2,))
    assert program.output_names == names == tuple(tensor.name for tensor in program.signature[1])


@pytest.mark.parametrize("output", [lambda self, x: (), lambda self, x: None, lambda self, x: {"n": 3}])
def test_case_1_no_tensor_is_refused(output):
    with pytest.raises(ExportError, match="must return at least one tensor, got"):
        program_of(output, (2,))


def test_case_2_nan_weights_are_refused():
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(ExportError, match="parameter weight holds NaN or infinity"):
        capture(layer, torch.randn(1, 2))


def test_case_2_nan_statistics_are_refused_but_a_mask_may_be_infinite():
    norm = nn.BatchNorm1d(2)
    norm.running_var[0] = float("nan")
    with pytest.raises(ExportError, match="buffer running_var holds NaN"):
        capture(norm, torch.randn(2, 2))
    masked = Apply(lambda self, x: torch.softmax(x + self.mask, -1))
    masked.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    assert capture(masked, torch.randn(1, 2))(torch.zeros(1, 2))[0].tolist() == [[1.0, 0.0]]


def test_case_2_nan_outputs_are_refused():
    with pytest.raises(ExportError, match="output 0 of Apply holds NaN"):
        program_of(lambda self, x: (x - x) / (x - x), (2,))


def write_through_views(self, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0].add_(1)
    y[:, 1:] *= 2
    return torch.relu_(y + 1)


@pytest.mark.parametrize("function", [lambda self, x: torch.relu_(x * 2), write_through_views])
def test_case_3_writing_in_place_becomes_functional(function):
    program = program_of(function, (2, 3))
    assert not any(str(target).split(".")[1].endswith("_") for target in program.operators())
    value = torch.randn(2, 3)
    torch.testing.assert_close(program(value)[0], function(None, value.clone()))


def test_case_3_batch_norm_survives_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.norm(x)
            y[:, 0] += 1
            return y

    program = capture(Net(), torch.randn(1, 3, 4, 4))
    assert program.operators()["aten.batch_norm.default"] == 1


def test_case_5_memory_is_refused():
    with pytest.raises(ExportError, match="writes into count in eval mode"):
        program_of(lambda self, x: x + self.count.add_(1), (2,))
    with pytest.raises(ExportError, match="writes into"):
        program_of(lambda self, x: x.mul_(2) + 1, (2,))


def test_inputs_that_do_not_fit_are_one_line():
    net, _ = nets.build("resnet")
    with pytest.raises(ValueError, match=r"ResNet does not take the example inputs \(\[1, 5, 16, 16\]") as caught:
        capture(net, torch.randn(1, 5, 16, 16))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="example inputs must be tensors, got nothing"):
        capture(net, ())


def test_control_flow_on_values_is_one_line():
    with pytest.raises(ExportError, match=r"torch\.export cannot capture Apply") as caught:
        program_of(lambda self, x: x if x.sum() > 0 else -x, (2,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", nets.SHAPES)
def test_an_exported_program_goes_the_way_of_its_module(name):
    net, inputs = nets.build(name)
    exported = torch.export.export(net.eval(), inputs)
    expected = capture(net, inputs)
    found = capture(module_of(exported), inputs)
    assert found.operators() == expected.operators()
    for want, have in zip(expected(*inputs), found(*inputs), strict=True):
        torch.testing.assert_close(have, want)


def test_dynamic_shapes_and_other_things_are_one_line():
    batch = ({0: torch.export.Dim("batch", min=2, max=8)},)
    dynamic = torch.export.export(nn.Linear(3, 2), (torch.randn(2, 3),), dynamic_shapes=batch)
    with pytest.raises(ExportError, match=r"dynamic shapes .* export it with static ones"):
        module_of(dynamic)
    with pytest.raises(ValueError, match=r"torch\.nn\.Module or an ExportedProgram, got str"):
        module_of("net.pt2")
