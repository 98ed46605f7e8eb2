"""Every edit keeps the function of a network, and an edit that does not is undone."""

from __future__ import annotations

import pytest
import torch

from hnas import spaces
from hnas.growth.edits import FunctionChanged, Opening, TypeOpening, apply, must_be_equal
from hnas.growth.network import GrowingNetwork
from hnas.growth.nodes import NodeCopy, NodeInsertion
from hnas.sampling.draws import relax
from hnas.space import Arch
from hnas.supernet import Supernet
from tests.hnas import tiny


def cell(nodes=(1, 2, 3, 4)) -> GrowingNetwork:
    space = spaces.load("recurrent_cell")(features=2, outputs=2, window=7, widths=[8, 12], nodes=list(nodes))
    return shaken(GrowingNetwork.begin(Supernet(space)))


def vision(**changes) -> GrowingNetwork:
    space = tiny.space(**changes)
    return shaken(GrowingNetwork.begin(Supernet(space), space.smallest))


def shaken(net: GrowingNetwork) -> GrowingNetwork:
    """Return the network with weights that a training could have left: no zeros hide an edit's mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.supernet.union.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((0.3 if parameter.ndim < 2 else 0.1) * noise)
        for slot, mixing in net.mixing.items():
            if len(net.open_types(slot)) > 1:
                mixing.mul_(0.5 + torch.rand(mixing.shape, generator=generator))
    return net


def probe(net: GrowingNetwork) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(6, *shape, generator=generator) for shape in net.space.example(net.space.largest))


def test_a_cell_grows_by_every_edit_without_a_change_of_its_function():
    net = cell()
    x = probe(net)
    first = net(*x)
    proofs = [
        apply(net, edit, x) for edit in (Opening("nodes", 2), NodeCopy(0), NodeInsertion(0), Opening("width", 12))
    ]
    assert proofs[0].exact
    assert all(max(proof.train, proof.evaluation) <= 1e-5 for proof in proofs)
    assert net.arch["nodes"] == 4
    assert net.arch["width"] == 12
    assert net.weights == proofs[-1].after > proofs[-1].before > proofs[0].before
    torch.testing.assert_close(net(*x), first, rtol=1e-5, atol=1e-5)
    assert "bit-equal" in proofs[0].line()


@pytest.mark.parametrize("edit", [Opening("nodes", 2), NodeCopy(0), NodeInsertion(0), Opening("width", 12)])
def test_what_an_edit_opens_has_a_gradient(edit):
    net = cell()
    x = probe(net)
    before = {name: p.detach().clone() for name, p in net.supernet.union.named_parameters()}
    old = net.supernet.where(net.arch)
    apply(net, edit, x)
    net(*x).square().sum().backward()
    fresh = set()
    for name, (parameter, index) in net.supernet.where(net.arch).items():
        own = torch.zeros_like(parameter, dtype=torch.bool)
        own[... if index is None else index] = True
        if name in old:
            own[... if old[name][1] is None else old[name][1]] = False
        if bool((parameter.grad[own] != 0).any()):
            fresh.add(name)
    assert fresh
    assert before.keys() >= fresh


@pytest.mark.parametrize("node", [0, 1, 2])
def test_a_node_is_inserted_between_others_and_read_by_them(node):
    net = cell()
    x = probe(net)
    for count in (2, 3):
        apply(net, Opening("nodes", count), x)
    with torch.no_grad():
        net.supernet.union.weights.copy_(torch.tensor([0.3, -0.7, 0.5, 9.0]))
    net.supernet.changed()
    apply(net, NodeInsertion(node), x)
    kept = [w for k, w in enumerate(net.supernet.union.weights.tolist()) if k != node + 1]
    assert kept == pytest.approx([0.3, -0.7, 0.5])
    if node < 2:
        shares = net.mixing[f"nodes.{node + 2}.a"].detach()
        assert float(shares[node + 1]) == float(shares[node + 2]) != 0


EDITS = [
    Opening("stages.0.depth", 2),
    Opening("stages.0.width", 16),
    TypeOpening("stages.0.blocks.0", "fusedconv"),
    TypeOpening("stages.1.blocks.1", "mbconv"),
]


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_a_vision_network_grows_without_a_change_of_its_function(edit):
    net = vision()
    x = probe(net)
    proof = apply(net, edit, x)
    assert proof.exact or not edit.exact
    assert proof.after > proof.before


def test_several_edits_of_a_vision_network_follow_each_other():
    net = vision()
    x, done = probe(net), []
    first = net(*x)
    for name, choice in net.space.choices.items():
        if not name.endswith((".op", "resolution", "activation")) and len(choice.options) > 1:
            edit = Opening(name, choice.options[-1])
            if edit.possible(net):
                done.append(apply(net, edit, x))
    assert len(done) >= 4
    torch.testing.assert_close(net(*x), first, rtol=1e-4, atol=1e-4)


def test_an_edit_that_changes_the_function_is_undone():
    class Wrong(Opening):
        def edit(self, net):
            super().edit(net)
            with torch.no_grad():
                net.supernet.union.weights[-1] = 0.01  # planted: the new node is read at once

    net = cell()
    x, arch = probe(net), net.arch
    weights = {name: p.detach().clone() for name, p in net.supernet.union.named_parameters()}
    with torch.no_grad():
        before = net(*x)
    with pytest.raises(FunctionChanged, match="changed an output by"):
        apply(net, Wrong("nodes", 4), x)
    assert net.arch == arch
    assert all(torch.equal(p, weights[name]) for name, p in net.supernet.union.named_parameters())
    assert torch.equal(net(*x), before)


def broken(edit, harm):
    """Return an edit that does harm to the weights after it: ``harm(net, weights before)``."""

    class Broken(type(edit)):
        def edit(self, net):
            before = {name: p.detach().clone() for name, p in net.supernet.union.named_parameters()}
            super().edit(net)
            with torch.no_grad():
                harm(net, before)

    return Broken(**vars(edit))


def unclosed(net, before):
    """The new part is not closed."""
    for name, parameter in net.supernet.union.named_parameters():
        parameter.copy_(before[name])


def mixed(slot, option, weight=0.01):
    """An option has a mixing weight that it must not have."""
    return lambda net, _: net.mixing[slot][net.space.choices[f"{slot}.op"].options.index(option)].fill_(weight)


def scaled(name, factor=1.01):
    """A weight is not what the edit made it."""
    return lambda net, _: net.supernet.union.get_parameter(name).mul_(factor)


@pytest.mark.parametrize(
    ("make", "edit", "harm"),
    [
        (cell, Opening("nodes", 2), unclosed),  # G1
        (cell, NodeInsertion(0), scaled("nodes.1.left.weight")),  # G2
        (cell, NodeInsertion(0), mixed("nodes.1.f", "tanh")),
        (cell, NodeInsertion(0), mixed("nodes.2.a", "s1", 1.0)),
        (cell, NodeCopy(0), scaled("weights")),  # G3
        (cell, NodeCopy(0), mixed("nodes.2.g", "relu", 1.0)),
        (cell, Opening("width", 12), unclosed),  # G4
        (vision, Opening("stages.0.width", 16), unclosed),
        (vision, Opening("stages.1.blocks.0.convnext.kernel", 5), unclosed),
        (vision, Opening("stages.1.blocks.0.convnext.expansion", 2), unclosed),
        (vision, Opening("stages.1.depth", 3), unclosed),  # G5
        (vision, TypeOpening("stages.0.blocks.0", "fusedconv"), mixed("stages.0.blocks.0", "fusedconv")),
        (vision, TypeOpening("stages.1.blocks.1", "mbconv"), mixed("stages.1.blocks.1", "mbconv")),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),  # no address, which differs between processes
)
def test_the_proof_of_every_edit_can_fail(make, edit, harm):
    net = make()
    x = probe(net)
    if isinstance(edit, NodeInsertion | NodeCopy):  # a later node reads the node, and is read
        apply(net, Opening("nodes", 2), x)
        with torch.no_grad():
            net.supernet.union.weights[:2] = 0.5
        net.supernet.changed()
    with pytest.raises(FunctionChanged, match="changed an output by"):
        apply(net, broken(edit, harm), x)
    assert apply(net, edit, x) is not None  # undone: the edit itself has a proof


def chaotic() -> GrowingNetwork:
    """Return a cell of two nodes that makes a rounding as large as its outputs within a window."""
    space = spaces.load("recurrent_cell")(features=2, outputs=2, window=60, widths=[8, 12], nodes=[2, 3, 4])
    net = shaken(GrowingNetwork.begin(Supernet(space)))
    with torch.no_grad():
        for name, parameter in net.supernet.union.named_parameters():
            parameter.mul_(2.5 if parameter.ndim == 2 and "readout" not in name else 1.0)
    return net


def test_a_chaotic_network_grows_and_its_proof_can_fail_all_the_same():
    net = chaotic()
    x = probe(net)
    with pytest.raises(FunctionChanged, match="changed an output by"):
        apply(net, broken(NodeCopy(0), scaled("weights", 1.0001)), x)
    proof = apply(net, NodeCopy(0), x)
    assert proof.chaotic
    assert max(proof.train, proof.evaluation) > 1e-3
    assert "as far as a rounding of the inputs moves them" in proof.line()
    assert net.arch["nodes"] == 3, "the edit was made"


@pytest.mark.parametrize(("slot", "kind"), [("stages.0.blocks.0", "fusedconv"), ("stages.1.blocks.1", "mbconv")])
def test_a_type_that_is_opened_has_a_gradient(slot, kind):
    net = vision()
    x = probe(net)
    apply(net, TypeOpening(slot, kind), x)
    net(*x).square().sum().backward()
    index = net.space.choices[f"{slot}.op"].options.index(kind)
    assert float(net.mixing[slot].grad[index]) != 0


@pytest.mark.parametrize(
    "edit", [Opening("nodes", 1), Opening("rooms", 2), NodeCopy(3), NodeInsertion(-1), TypeOpening("nodes.0.f", "tanh")]
)
def test_an_edit_that_is_not_possible_is_one_line(edit):
    net = cell()
    with pytest.raises(ValueError, match="cannot be edited so") as caught:
        apply(net, edit, probe(net))
    assert "\n" not in str(caught.value)


def test_a_width_that_a_layer_norm_reads_stays():
    net = vision(**tiny.OPTIONS)
    inner, outer = (Opening(f"stages.{s}.width", net.space.choices[f"stages.{s}.width"].options[1]) for s in (0, 1))
    assert not inner.possible(net)  # read by the layer norm of the next block
    assert apply(net, outer, probe(net)) is not None
    assert inner.possible(vision())
    opening = TypeOpening("stages.0.blocks.0", "mbconv")
    assert not must_be_equal(net, opening)  # maps in another memory order are rounded differently
    assert must_be_equal(vision(), opening)


def test_a_start_is_a_member():
    net = cell()
    with pytest.raises(ValueError, match="no option"):
        GrowingNetwork.begin(net.supernet, Arch({"width": 8}))


@pytest.mark.parametrize("edit", [NodeInsertion(0), NodeInsertion(1), NodeCopy(0), NodeCopy(1)], ids=str)
@pytest.mark.parametrize("kind", ["tanh", "sigmoid"])
def test_a_member_and_a_cell_with_closed_options_grow_without_a_change_of_their_function(edit, kind):
    """The open options of a node move with it; a closed option stays closed, whatever its mixing weight was."""
    space = cell().space
    member = space.arch({name: choice.options[0] for name, choice in space.choices.items()} | {"nodes": 3})
    member = space.arch({**member, "nodes.1.f.op": kind, "nodes.2.a.op": "s2", "nodes.2.g.op": kind})
    net = shaken(GrowingNetwork.begin(Supernet(space), member))
    assert apply(net, edit, probe(net)) is not None

    net = cell()
    for count in (2, 3):
        apply(net, Opening("nodes", count), probe(net))
    soft = {s: net.open_types(s) for s in space.slots if f"{s}.op" in net.arch}
    soft |= {f"nodes.{k}.{part}": (kind,) for k in range(3) for part in ("f", "g")} | {"nodes.2.b": ("s1",)}
    net.arch = relax(space, net.arch, soft, single=True)
    with torch.no_grad():
        net.supernet.union.weights.fill_(0.3)
    net.supernet.changed()
    assert apply(net, edit, probe(net)) is not None
    assert net.open_types("nodes.0.f") == (kind,)
