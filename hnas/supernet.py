"""The supernet: it owns the largest weights and hands out slices of them.

An architecture is built by an ordinary constructor as an ordinary static module. Training runs that module with the
supernet's slices through ``functional_call``; extraction copies the same slices into it: one function, equal bits.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hnas.ops.conv import BatchNorm
from hnas.space import Arch, Option, Space

_COPIES = "copies"  # where the union keeps the copies of split branches

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Stats:
    """Running moments of one architecture's norms: buffer name -> tensor; never written to the supernet."""

    moments: Mapping[str, Tensor]
    images: int


@dataclass(frozen=True)
class Split:
    """A branch of the union whose weights hang on a choice elsewhere: the first of ``options`` has the original."""

    branch: str
    context: str
    options: tuple[Option, ...]


@dataclass
class _Skeleton:
    """An architecture on the meta device, where in the supernet its parameters lie, and the gates that it takes."""

    net: nn.Module
    gates: list[str] = field(default_factory=list)
    where: dict[str, tuple[nn.Parameter, Index | None]] = field(default_factory=dict)
    moments: dict[str, torch.Size] = field(default_factory=dict)


class Supernet(nn.Module):
    """Every weight of ``space`` at its largest.

    ``skeletons`` bounds how many architectures stay built (on the meta device: shapes, no weights).
    """

    def __init__(self, space: Space, seed: int = 0, skeletons: int = 512) -> None:
        super().__init__()
        self.space = space
        self.seed = seed
        self.version = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.union = space.union()
            space.initialise(self.union)
        for path, module in self.union.named_modules():
            _refuse_transient(path, module)
        self.splits: dict[str, Split] = {}
        self._skeletons: OrderedDict[Arch, _Skeleton] = OrderedDict()
        self._bound = skeletons
        self._index()

    def view(self, arch: Arch) -> dict[str, Tensor]:
        """The weights of ``arch`` as slices of the shared ones.

        Slices start at index 0 in every dimension, except that convolution kernels are cut from their centre and a
        module with ``subweight(name, full, shape)`` cuts its own. They alias the shared storage. Parameters only;
        moments of norms come from ``Study.calibrate``.
        """
        where = self._skeleton(arch).where
        return {name: full if index is None else full[index] for name, (full, index) in where.items()}

    def where(self, arch: Arch) -> dict[str, tuple[nn.Parameter, Index | None]]:
        """For each parameter of ``arch``: the shared one and the part that is used (None: all of it)."""
        return self._skeleton(arch).where

    def forward(
        self, arch: Arch, *inputs: Tensor, stats: Stats | None = None, gates: Mapping[str, Tensor] | None = None
    ) -> Any:
        """The subnet ``arch`` on ``inputs``: by batch moments (training), or by those of ``stats`` (evaluation).

        gates: slot name -> [branches] for relaxed slots; they are inputs of the view, so gradients reach them.
        """
        skeleton = self._skeleton(arch)
        if skeleton.net.training is not (stats is None):
            skeleton.net.train(stats is None)
        values = self.view(arch)
        if stats is not None:
            values.update(_moments(skeleton, stats))
        given = {f"{slot}.gates": gate for slot, gate in (gates or {}).items()}
        if sorted(given) != sorted(skeleton.gates):
            wanted, got = (", ".join(sorted(names)) or "none" for names in (skeleton.gates, given))
            raise ValueError(f"gates are passed for every relaxed slot and no other; relaxed: {wanted}; got: {got}")
        # Both names of a tied weight are in the view; torch would refuse two slices of one weight as a conflict.
        return functional_call(skeleton.net, {**values, **given}, inputs, tie_weights=False)

    def skeleton(self, arch: Arch) -> nn.Module:
        """The module of ``arch`` on the meta device: shapes only, shared by all who ask."""
        return self._skeleton(arch).net

    @torch.no_grad()
    def extract(self, arch: Arch, stats: Stats) -> nn.Module:
        """A plain module with its own copy of the weights of ``arch``, in evaluation mode; bit for bit the subnet."""
        skeleton = self._skeleton(arch)
        if skeleton.gates:
            raise ValueError(f"{skeleton.gates[0]} is a gate of a relaxed slot; choose one branch before extracting")
        state: dict[str, Tensor] = {**self.view(arch), **_moments(skeleton, stats)}
        net = self.space.build(arch)
        for name, tensor in net.state_dict().items():
            tensor.copy_(state[name])
        return net.eval()

    def split(self, branch: str, context: str, options: Sequence[Option]) -> None:
        """Give ``branch``, a module of the union, its own weights for each of ``options`` of the choice ``context``.

        Copies begin as the original, so every subnet answers as before, bit for bit; from then on they train apart.
        The first option keeps the original, as do options that are not listed, an inactive context and a relaxed one.
        Copies are ordinary parameters of the union, under ``copies``. ``hnas.training.loop.train`` begins each call
        with moments of zero, so there are none to copy.
        """
        if reason := self._unsplittable(branch, context, options):
            raise ValueError(f"{branch} cannot be split by {context}: {reason}")
        split = Split(branch, context, tuple(dict.fromkeys(options)))
        if not hasattr(self.union, _COPIES):
            self.union.add_module(_COPIES, nn.ModuleDict())
        copies = self.union.get_submodule(_COPIES)
        for k in range(1, len(split.options)):
            twin = copy.deepcopy(self._owners[branch])
            twin.zero_grad()
            copies.add_module(_twin(branch, k), twin)
        self.splits[branch] = split
        self._index()

    def origin(self, name: str) -> str:
        """The name under which a member knows the union's parameter ``name``: itself, but for a copy's."""
        if not name.startswith(f"{_COPIES}."):
            return name
        twin, _, rest = name.removeprefix(f"{_COPIES}.").partition(".")
        return f"{twin.rpartition('@')[0].replace('/', '.')}.{rest}"

    def changed(self) -> None:
        """Say that weights were written: what was computed from older ones is no longer valid."""
        self.version += 1

    def _index(self) -> None:
        """Look up what the union has; what was cut from an earlier one is forgotten."""
        self._parameters_by_name = dict(self.union.named_parameters(remove_duplicate=False))
        self._owners = dict(self.union.named_modules(remove_duplicate=False))
        self._skeletons.clear()

    def _unsplittable(self, branch: str, context: str, options: Sequence[Option]) -> str | None:
        """Why a split is refused, None where it is not."""
        known = self.space.choices[context].options if context in self.space.choices else ()
        own = {id(p) for name, p in self._parameters_by_name.items() if name.startswith(f"{branch}.")}
        tied = [n for n, p in self._parameters_by_name.items() if id(p) in own and not n.startswith(f"{branch}.")]
        if not own or branch.startswith(f"{_COPIES}."):
            return f"it is no branch with weights in the space {self.space.name!r}"
        if not known:
            return f"that is no choice of the space {self.space.name!r}"
        if unknown := [option for option in options if option not in known]:
            return f"{unknown[0]!r} is not among its options {', '.join(map(str, known))}"
        if any(f"{b}.".startswith(f"{branch}.") or f"{branch}.".startswith(f"{b}.") for b in self.splits):
            return "it is split already"
        if len(set(options)) < 2:
            return f"{len(set(options))} options give no copy; give two or more"
        return f"its weight is tied to {tied[0]}" if tied else None

    def _owner(self, name: str, arch: Arch) -> str:
        """The union's name of the parameter that ``arch`` calls ``name``: a copy's where its branch is split."""
        end = name.find(".") if self.splits else -1
        while end >= 0:
            split = self.splits.get(name[:end])
            if split is not None:
                option = arch.get(split.context)
                k = split.options.index(option) if option in split.options else 0
                return f"{_COPIES}.{_twin(split.branch, k)}{name[end:]}" if k else name
            end = name.find(".", end + 1)
        return name

    def _skeleton(self, arch: Arch) -> _Skeleton:
        if arch in self._skeletons:
            self._skeletons.move_to_end(arch)
            return self._skeletons[arch]
        with torch.device("meta"):
            skeleton = _Skeleton(self.space.build(arch))
        for path, member in skeleton.net.named_modules(remove_duplicate=False):
            _refuse_transient(path, member)
            prefix = f"{path}." if path else ""
            for leaf, buffer in member._buffers.items():
                if buffer is not None:
                    skeleton.moments[prefix + leaf] = buffer.shape
            for leaf, own in member._parameters.items():
                name = prefix + leaf
                if own is not None and leaf == "gates":
                    skeleton.gates.append(name)
                elif own is not None:
                    skeleton.where[name] = self._cut(name, self._owner(name, arch), own, member)
        self._skeletons[arch] = skeleton
        if len(self._skeletons) > self._bound:
            self._skeletons.popitem(last=False)
        return skeleton

    def _cut(self, name: str, shared: str, own: Tensor, member: nn.Module) -> tuple[nn.Parameter, Index | None]:
        """The shared parameter of ``own``, which ``member`` holds as ``name``, and the part of it that is used."""
        full = self._parameters_by_name.get(shared)
        if full is None:
            raise ValueError(f"{name} is no parameter of the supernet of {self.space.name!r}")
        owner = self._owners[shared.rpartition(".")[0]]
        if type(owner) is not type(member):
            types = type(owner).__name__, type(member).__name__
            raise ValueError(f"{name} belongs to a {types[0]} in the supernet, to a {types[1]} here")
        if own.ndim != full.ndim or any(n > m for n, m in zip(own.shape, full.shape, strict=True)):
            shapes = tuple(full.shape), tuple(own.shape)
            raise ValueError(f"{name} has shape {shapes[0]} in the supernet; {shapes[1]} does not fit in it")
        if own.shape == full.shape:
            return full, None
        subweight = getattr(member, "subweight", None)
        if subweight is not None:
            return full, subweight(name.rpartition(".")[2], tuple(full.shape), tuple(own.shape))
        centred = isinstance(member, nn.modules.conv._ConvNd)
        return full, tuple(
            slice((m - n) // 2, (m - n) // 2 + n) if centred and axis >= 2 else slice(0, n)
            for axis, (n, m) in enumerate(zip(own.shape, full.shape, strict=True))
        )


def _twin(branch: str, k: int) -> str:
    """The name of copy ``k``; a module's own name must not have dots."""
    return f"{branch.replace('.', '/')}@{k}"


def _moments(skeleton: _Skeleton, stats: Stats | None) -> Mapping[str, Tensor]:
    """``stats``, if it holds every moment of the architecture and no other."""
    moments = stats.moments if stats is not None else {}
    if {name: tensor.shape for name, tensor in moments.items()} != skeleton.moments:
        got = "none" if stats is None else "those of another one"
        raise ValueError(f"the architecture needs its own calibrated moments, got {got}; pass Study.calibrate(arch)")
    return moments


def _refuse_transient(path: str, module: nn.Module) -> None:
    """ValueError for a buffer that no state holds: a skeleton's would stay on meta."""
    for leaf in module._non_persistent_buffers_set & module._buffers.keys():
        name = f"{path}.{leaf}" if path else leaf
        raise ValueError(f"{name} is a non-persistent buffer, which would stay on meta; register it as persistent")


def norms(net: nn.Module) -> dict[str, BatchNorm]:
    """The norms of ``net`` that need running moments, by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, BatchNorm)}
