"""Test that any arguments and results become flat tensors with dotted names, and that nothing is lost silently."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from hnas.export.device.signature import leaves
from hnas.export.graph.calls import FlatModule, flat_module
from hnas.export.graph.fusion import fuse
from hnas.export.graph.program import capture
from hnas.export.graph.samples import to_samples
from hnas.export.graph.wire import pack, unpack


class Pair(NamedTuple):
    """Two tensors."""

    first: torch.Tensor
    second: torch.Tensor


@dataclass
class Result:
    """A result as libraries of text models return it."""

    logits: torch.Tensor
    past: tuple = ()
    loss: object = None


class Text(nn.Module):
    """Takes nested arguments, a number and None, and returns a dataclass."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)  # the name of FlatModule's own child

    def forward(self, x, past=None, scale=1.0, mask=None):
        total = x if past is None else x + past[0]["key"]
        return Result(self.net(total) * scale, ({"key": total},))


def net() -> Text:
    torch.manual_seed(0)
    return Text().eval()


X, KEY = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 4)
FORMS = {
    "in order": ((X, [{"key": KEY}], 2.0, None), ("x", "past.0.key")),
    "by name": ({"x": X, "past": [{"key": KEY}], "scale": 2.0}, ("x", "past.0.key")),
    "other order": ({"scale": 2.0, "past": [{"key": KEY}], "x": X}, ("past.0.key", "x")),
    "arrays": ((X.numpy(), [{"key": KEY.numpy()}], 2.0), ("x", "past.0.key")),
    "one object twice": ((X, [{"key": X}], 2.0), ("x", "past.0.key")),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_program_computes_what_the_module_does(form):
    given, names = FORMS[form]
    program = capture(net(), given)
    assert program.input_names == names
    assert program.output_names == ("logits", "past.0.key_out")  # one name for one value
    values = {"x": torch.randn(2, 4), "past.0.key": torch.randn(2, 4)}  # others than the examples
    expected = net()(values["x"], [{"key": values["past.0.key"]}], 2.0)
    logits, key = program(*(values[name] for name in names))
    torch.testing.assert_close(logits, expected.logits)
    torch.testing.assert_close(key, expected.past[0]["key"])


def test_weights_and_modules_keep_the_names_of_the_network():
    program = capture(net(), (X,))
    assert set(program.module.state_dict()) == {"net.weight", "net.bias"}
    (linear,) = (node for node in program.module.graph.nodes if str(node.target).startswith("aten.linear"))
    assert [path for path, _ in linear.meta["nn_module_stack"].values()] == ["", "", "net"]


def test_constants_and_what_is_left_out_are_said():
    remarks = capture(net(), (X, None, 2.0)).remarks
    assert remarks == (
        "the input past is the constant None",
        "the input scale is the constant 2.0",
        "the output loss is None, no tensor: it is left out",
    )
    assert capture(nn.Linear(4, 3), X).remarks == ()


def test_a_dict_is_one_argument_where_forward_has_no_such_names():
    class Batch(nn.Module):
        def forward(self, batch):
            return batch["a"] - batch["b"]

    program = capture(Batch(), {"a": X, "b": KEY})
    assert program.input_names == ("batch.a", "batch.b")
    torch.testing.assert_close(program(X, KEY)[0], X - KEY)


def test_arguments_without_names_and_named_tuples():
    class Sums(nn.Module):
        def forward(self, *parts, pair):
            return Pair(sum(parts), pair.first * pair.second)

    flat = FlatModule(Sums(), (X, KEY), {"pair": Pair(X + 1, KEY)})
    program = capture(flat, flat.inputs)
    assert program.input_names == ("parts.0", "parts.1", "pair.first", "pair.second")
    assert program.output_names == ("first", "second")
    torch.testing.assert_close(program(*flat.inputs)[1], X + 1)


def test_repeated_and_unprintable_names_are_made_distinct():
    class Odd(nn.Module):
        def forward(self, x):
            return {"a.b": x, "a": {"b": x + 1}, "\x1b[31m": x + 2, "": x + 3}

    names = capture(Odd(), X).output_names
    assert len(set(names)) == 4
    assert all(name.isprintable() and name for name in names)


def test_flat_inputs_of_a_flat_module_replace_its_examples():
    flat = flat_module(net(), (X, [{"key": KEY}], 2.0))
    again = capture(flat, [np.zeros((2, 4), np.float32)] * 2)
    assert [float(value.sum()) for value in again.inputs] == [0.0, 0.0]
    assert float(flat.inputs[1].sum()) == 8.0


def test_the_names_go_to_other_processes():
    program = capture(net(), (X, [{"key": KEY}], 2.0))
    assert unpack(*pack(program)).signature == program.signature


def test_a_draft_is_one_in_other_processes_and_after_passes():
    """It is a field, and no pass: the passes of an artifact are those that changed its graph."""
    program = capture(net(), (X, [{"key": KEY}], 2.0))
    draft = replace(program, draft=True)
    assert not unpack(*pack(program)).draft
    assert unpack(*pack(draft)).draft
    assert fuse(draft).draft
    assert unpack(*pack(draft)).fired == program.fired


@pytest.mark.parametrize("given", [(), {}, (3, None), "text"])
def test_examples_without_a_tensor_are_one_line(given):
    with pytest.raises(ValueError, match="example inputs must be tensors, got") as caught:
        capture(net(), given)
    assert "\n" not in str(caught.value)


class Layer:
    """A layer of a cache: its tensors are attributes, and it is written in place."""

    def __init__(self, keys=None):
        self.keys, self.steps, self.used = keys, [0], False

    def update(self, keys):
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], 1)
        self.used = True
        self.steps.append(1)
        return self.keys


class Cache:
    """A cache as libraries of text models have it: neither a container nor known to torch's pytree."""

    def __init__(self, *keys):
        self.layers, self.name = [Layer(key) for key in keys], "cache"

    def __len__(self):  # of an object that is falsy where it is empty
        return 0


class Decoder(nn.Module):
    """Writes into the cache that it takes, and returns it in a dataclass."""

    def forward(self, x, cache=None):
        cache = Cache(None) if cache is None else cache
        assert len(cache.layers[0].steps) == 1, "the cache of another call"
        return Result(cache.layers[0].update(x).sum(1), cache)


def test_a_cache_is_taken_apart_and_never_shared_between_calls():
    def cache():
        return Cache(torch.ones(1, 2, 4))

    x = torch.arange(4.0).reshape(1, 1, 4)
    flat = flat_module(Decoder(), {"x": x, "cache": cache()})
    assert flat.input_names == ("x", "cache.layers.0.keys")
    program = capture(Decoder(), {"x": x, "cache": cache()})
    assert program.output_names == ("logits", "past.layers.0.keys")
    assert program.remarks == ("the output loss is None, no tensor: it is left out",)
    expected = Decoder()(x, cache())
    for _ in range(2):  # a second call starts from the same cache
        torch.testing.assert_close(program(x, cache().layers[0].keys)[0], expected.logits)
        torch.testing.assert_close(flat(x, torch.ones(1, 2, 4))[1], expected.past.layers[0].keys)


def test_torch_too_knows_the_parts_of_a_cache_by_name():
    cache = Cache(torch.ones(1, 2, 4))
    flat = flat_module(Decoder(), {"x": torch.ones(1, 1, 4), "cache": cache})
    known = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(cache)[0]]
    assert known == [".layers[0].keys"]
    assert flat.input_names == ("x", "cache.layers.0.keys")


def test_an_empty_cache_is_a_constant_that_no_call_changes():
    x = torch.ones(1, 1, 4)
    program = capture(Decoder(), {"x": x, "cache": Cache(None)})
    assert program.input_names == ("x",)
    assert program.output_names == ("logits", "past.layers.0.keys")
    torch.testing.assert_close(program(x)[1], x)


def test_samples_and_calls_may_hold_a_cache():
    keys = np.ones((1, 2, 4), np.float32)
    sample = {"x": np.zeros((1, 1, 4), np.float32), "cache": Cache(keys)}
    names, examples = ("x", "cache.layers.0.keys"), (sample["x"], keys)
    ((x, found),) = to_samples([sample], examples, "calibration", names)
    assert found is keys or np.array_equal(found, keys)
    assert x.shape == (1, 1, 4)
    ring = Cache(keys)
    ring.parent = ring  # an object that holds itself
    assert [name for name, _ in leaves(ring)] == ["layers.0.keys"]
    plain = Cache()
    assert [value for _, value in leaves(plain)] == [plain]


def test_a_type_that_torch_knows_keeps_its_names():
    class Known:
        def __init__(self, a, b):
            self.a, self.b = a, b

    keys = [pytree.GetAttrKey("a"), pytree.GetAttrKey("b")]
    pytree.register_pytree_node(
        Known,
        lambda value: ([value.a, value.b], None),
        lambda parts, _: Known(*parts),
        flatten_with_keys_fn=lambda value: (list(zip(keys, [value.a, value.b], strict=True)), None),
    )

    class Net(nn.Module):
        def forward(self, known):
            return {"sum": known.a + known.b}

    program = capture(Net(), {"known": Known(X, X)})
    assert (program.input_names, program.output_names) == (("known.a", "known.b"), ("sum",))
