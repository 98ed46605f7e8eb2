"""The supernet: a module that owns the largest weights of a space and gives slices of them to architectures.

``Supernet(space)(space.smallest, images)`` runs one architecture.

An architecture is an ordinary static module. Training calls that module with slices of the supernet through
``functional_call``. Extraction copies the same slices into the module, so that both compute bit-equal outputs.
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

_COPIES = "copies"  # the submodule of the union that holds the copies of split branches

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Stats:
    """Batch-norm statistics of one architecture. They are never written to the supernet.

    moments: name of the buffer -> running mean or running variance.
    images: the number of images that the statistics were computed on.

    Example: ``stats = study.calibrate(arch)``
    """

    moments: Mapping[str, Tensor]
    images: int


@dataclass(frozen=True)
class Split:
    """A branch of the union with separate weights for each option of a choice elsewhere.

    branch: the path of the branch in the union.
    context: the name of the choice.
    options: the options with separate weights; the first option has the original weights.
    """

    branch: str
    context: str
    options: tuple[Option, ...]


@dataclass
class _Skeleton:
    """An architecture on the meta device.

    gates: the names of the gates of relaxed slots.
    where: name of a parameter -> (shared parameter, the part of it that is used; None: all of it).
    moments: name of a batch-norm statistic -> its shape.
    """

    net: nn.Module
    gates: list[str] = field(default_factory=list)
    where: dict[str, tuple[nn.Parameter, Index | None]] = field(default_factory=dict)
    moments: dict[str, torch.Size] = field(default_factory=dict)


class Supernet(nn.Module):
    """The weights of every architecture of ``space``, each at its largest size.

    seed: seed of the initial weights (0).
    skeletons: how many skeletons are cached (512). A skeleton is the module of an architecture on the meta device:
        shapes without weights.

    Raises:
        ValueError: the union has a non-persistent buffer.

    Example: ``net = Supernet(space).extract(arch, study.calibrate(arch))``
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
        """Return the parameters of ``arch`` by name: slices (views) of the shared parameters, not copies.

        1. A slice starts at index 0 in every dimension.
        2. A convolution kernel is cut from the centre.
        3. A module with ``subweight(name, full, shape)`` returns its own slices.

        Batch-norm statistics are not included; they come from ``Study.calibrate``.

        Raises:
            ValueError: a parameter of ``arch`` has no shared parameter of the same type that it fits in.
        """
        where = self._skeleton(arch).where
        return {name: full if index is None else full[index] for name, (full, index) in where.items()}

    def where(self, arch: Arch) -> dict[str, tuple[nn.Parameter, Index | None]]:
        """Return name -> (shared parameter, the part that is used) for each parameter of ``arch``; None: all of it."""
        return self._skeleton(arch).where

    def forward(
        self, arch: Arch, *inputs: Tensor, stats: Stats | None = None, gates: Mapping[str, Tensor] | None = None
    ) -> Any:
        """Run the subnet ``arch`` on ``inputs``.

        inputs: tensors [N, *shape], with the shapes of ``space.example(arch)``.
        stats: batch-norm statistics for evaluation; None: batch norms use the moments of the batch, for training.
        gates: slot -> tensor [branches] for each relaxed slot, which holds several types at once. Gradients reach the
            gates.

        Raises:
            ValueError: ``stats`` belong to another architecture, a gate is missing, or a gate is for another slot.
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
        # The view has both names of a tied weight; with tie_weights torch refuses two slices of one weight.
        return functional_call(skeleton.net, {**values, **given}, inputs, tie_weights=False)

    def skeleton(self, arch: Arch) -> nn.Module:
        """Return the module of ``arch`` on the meta device. It has shapes only, and all callers get the same module."""
        return self._skeleton(arch).net

    @torch.no_grad()
    def extract(self, arch: Arch, stats: Stats) -> nn.Module:
        """Return a plain module in evaluation mode with a copy of the weights.

        Its outputs are bit-equal to those of ``supernet(arch, ..., stats=stats)``.

        Raises:
            ValueError: ``arch`` has a relaxed slot, or ``stats`` belong to another architecture.
        """
        skeleton = self._skeleton(arch)
        if skeleton.gates:
            raise ValueError(f"{skeleton.gates[0]} is a gate of a relaxed slot; choose one branch before extracting")
        state: dict[str, Tensor] = {**self.view(arch), **_moments(skeleton, stats)}
        net = self.space.build(arch)
        for name, tensor in net.state_dict().items():
            tensor.copy_(state[name])
        return net.eval()

    def split(self, branch: str, context: str, options: Sequence[Option]) -> None:
        """Give a branch of the union separate weights for each option of a choice elsewhere.

        branch: the path of a module of the union.
        context: the name of the choice.
        options: two or more options of the choice. The first option keeps the original weights, and each other option
            gets a copy. The original weights are also used for options that are not listed, and where the choice is
            inactive or relaxed.

        A new copy equals the original, so the outputs of every subnet stay the same. Later training changes each copy
        separately. Copies are parameters of the union, under ``copies``. Momentum buffers are not copied,
        because ``hnas.training.loop.train`` starts each call with empty ones.

        Raises:
            ValueError: the branch or an option is unknown, split already, or tied to other weights.
        """
        if reason := self._refuse_split(branch, context, options):
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
        """Return the name that the union's parameter ``name`` has in an architecture.

        The names differ only for copies of split branches.
        """
        if not name.startswith(f"{_COPIES}."):
            return name
        twin, _, rest = name.removeprefix(f"{_COPIES}.").partition(".")
        return f"{twin.rpartition('@')[0].replace('/', '.')}.{rest}"

    def changed(self) -> None:
        """Record that weights have changed, so that cached values of older weights are not used again."""
        self.version += 1

    def _index(self) -> None:
        """Index the parameters and modules of the union, and forget all skeletons."""
        self._parameters_by_name = dict(self.union.named_parameters(remove_duplicate=False))
        self._owners = dict(self.union.named_modules(remove_duplicate=False))
        self._skeletons.clear()

    def _refuse_split(self, branch: str, context: str, options: Sequence[Option]) -> str | None:
        """Return the reason why a split is refused, or None."""
        own = [name for name in self._parameters_by_name if name.startswith(f"{branch}.")]
        if not own or branch.startswith(f"{_COPIES}."):
            return f"it is not a branch with weights in the space {self.space.name!r}"
        if reason := self._refuse_context(context, options):
            return reason
        if any(_contains(b, branch) or _contains(branch, b) for b in self.splits):
            return "it is split already"
        if len(set(options)) < 2:
            return f"{len(set(options))} options give no copy; give two or more"
        tied = self._tied_outside(own)
        return f"its weight is tied to {tied}" if tied else None

    def _refuse_context(self, context: str, options: Sequence[Option]) -> str | None:
        if context not in self.space.choices:
            return f"that is not a choice of the space {self.space.name!r}"
        known = self.space.choices[context].options
        unknown = [option for option in options if option not in known]
        return f"{unknown[0]!r} is not among its options {', '.join(map(str, known))}" if unknown else None

    def _tied_outside(self, names: Sequence[str]) -> str | None:
        """Return a name outside ``names`` of a parameter in ``names``: a tied weight. None if there is no such name."""
        own = {id(self._parameters_by_name[name]) for name in names}
        others = (n for n, p in self._parameters_by_name.items() if id(p) in own and n not in names)
        return next(others, None)

    def _owner(self, name: str, arch: Arch) -> str:
        """Return the name in the union of the parameter ``name`` of ``arch``. In a split branch it can be a copy."""
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
        """Return the shared parameter of ``own``, which ``member`` holds as ``name``, and the part that is used."""
        full = self._parameters_by_name.get(shared)
        if full is None:
            raise ValueError(f"{name} is not a parameter of the supernet of {self.space.name!r}")
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
        if subweight is not None:  # case 3
            return full, subweight(name.rpartition(".")[2], tuple(full.shape), tuple(own.shape))
        centred = isinstance(member, nn.modules.conv._ConvNd)  # case 2, else case 1
        return full, tuple(
            slice((m - n) // 2, (m - n) // 2 + n) if centred and axis >= 2 else slice(0, n)
            for axis, (n, m) in enumerate(zip(own.shape, full.shape, strict=True))
        )


def _contains(outer: str, inner: str) -> bool:
    """Return whether the module ``inner`` is ``outer`` or a part of it, by their names."""
    return f"{inner}.".startswith(f"{outer}.")


def _twin(branch: str, k: int) -> str:
    """Return the name of copy ``k``; torch allows no dots in the name of a module."""
    return f"{branch.replace('.', '/')}@{k}"


def _moments(skeleton: _Skeleton, stats: Stats | None) -> Mapping[str, Tensor]:
    """Return the moments of ``stats``. Raise ValueError unless they are exactly those of the architecture."""
    moments = stats.moments if stats is not None else {}
    if {name: tensor.shape for name, tensor in moments.items()} != skeleton.moments:
        got = "none" if stats is None else "those of another one"
        raise ValueError(f"the architecture needs its own calibrated moments, got {got}; pass Study.calibrate(arch)")
    return moments


def _refuse_transient(path: str, module: nn.Module) -> None:
    """Raise ValueError for a non-persistent buffer. In a skeleton such a buffer would stay on the meta device."""
    for leaf in module._non_persistent_buffers_set & module._buffers.keys():
        name = f"{path}.{leaf}" if path else leaf
        raise ValueError(f"{name} is a non-persistent buffer, which would stay on meta; register it as persistent")


def norms(net: nn.Module) -> dict[str, BatchNorm]:
    """Return the batch norms of ``net`` by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, BatchNorm)}
