"""The supernet: it owns the largest weights and hands out slices of them.

An architecture is built by an ordinary constructor as an ordinary static module. Training runs that module with the
supernet's slices through ``functional_call``; extraction copies the same slices into it: one function, equal bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hnas.ops.conv import BatchNorm
from hnas.space import Arch, Space

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Stats:
    """Running moments of one architecture's norms: buffer name -> tensor; never written to the supernet."""

    moments: Mapping[str, Tensor]
    images: int

    def __post_init__(self) -> None:
        for tensor in self.moments.values():
            tensor.requires_grad_(False)


@dataclass
class Skeleton:
    """An architecture on the meta device, and where in the supernet each of its parameters lies."""

    net: nn.Module
    where: dict[str, tuple[nn.Parameter, Index | None]] = field(default_factory=dict)


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
        for name, buffer in self.union.named_buffers():
            if name.rsplit(".", 1)[0] and name not in self.union.state_dict():
                raise ValueError(f"{name} is a non-persistent buffer of {tuple(buffer.shape)}; it would stay on meta")
        self._parameters_by_name = dict(self.union.named_parameters(remove_duplicate=False))
        self._owners = dict(self.union.named_modules())
        self._skeletons: OrderedDict[Arch, Skeleton] = OrderedDict()
        self._bound = skeletons

    def view(self, arch: Arch) -> dict[str, Tensor]:
        """The weights of ``arch`` as slices of the shared ones.

        Slices start at index 0 in every dimension, except that convolution kernels are cut from their centre and a module
        with ``subweight(name, full, shape)`` cuts its own. They alias the shared storage. Parameters only; moments of
        norms come from ``Study.calibrate``.
        """
        return {name: full if index is None else full[index] for name, (full, index) in self._skeleton(arch).where.items()}

    def where(self, arch: Arch) -> dict[str, tuple[nn.Parameter, Index | None]]:
        """For each parameter of ``arch``: the shared one and the part that is used (None: all of it)."""
        return self._skeleton(arch).where

    def forward(
        self, arch: Arch, *inputs: Tensor, stats: Stats | None = None, gates: Mapping[str, Tensor] | None = None
    ) -> Any:
        """The subnet ``arch`` on ``inputs``: batch moments without ``stats`` (training), running ones with them.

        gates: slot name -> [branches] for relaxed slots; they are inputs of the view, so gradients reach them.
        """
        skeleton = self._skeleton(arch)
        skeleton.net.train(stats is None)
        values = self.view(arch)
        if stats is not None:
            values.update(stats.moments)
        for slot, gate in (gates or {}).items():
            values[f"{slot}.gates"] = gate
        missing = [name for name in self._gates(skeleton) if name not in values]
        if missing:
            raise ValueError(f"{missing[0].removesuffix('.gates')} is relaxed; pass gates={{'...': tensor}} for it")
        return functional_call(skeleton.net, values, inputs)

    def skeleton(self, arch: Arch) -> nn.Module:
        """The module of ``arch`` on the meta device: shapes only, shared by all who ask."""
        return self._skeleton(arch).net

    @torch.no_grad()
    def extract(self, arch: Arch, stats: Stats) -> nn.Module:
        """A plain module with its own copy of the weights of ``arch``, in evaluation mode; bit for bit the subnet."""
        net = self.space.build(arch)
        state: dict[str, Tensor] = {**self.view(arch), **stats.moments}
        own = net.state_dict()
        missing = sorted(own.keys() - state.keys())
        if missing:
            raise ValueError(f"no value for {missing[0]}; calibrate this architecture before extracting it")
        for name, tensor in own.items():
            tensor.copy_(state[name])
        return net.eval()

    def changed(self) -> None:
        """Say that weights were written: what was computed from older ones is no longer valid."""
        self.version += 1

    def _gates(self, skeleton: Skeleton) -> list[str]:
        return [name for name, _ in skeleton.net.named_parameters() if name.endswith(".gates")]

    def _skeleton(self, arch: Arch) -> Skeleton:
        if arch in self._skeletons:
            self._skeletons.move_to_end(arch)
            return self._skeletons[arch]
        with torch.device("meta"):
            skeleton = Skeleton(self.space.build(arch))
        for name, own in skeleton.net.named_parameters(remove_duplicate=False):
            if not name.endswith(".gates"):
                skeleton.where[name] = self._cut(name, own, skeleton.net)
        self._skeletons[arch] = skeleton
        if len(self._skeletons) > self._bound:
            self._skeletons.popitem(last=False)
        return skeleton

    def _cut(self, name: str, own: Tensor, net: nn.Module) -> tuple[nn.Parameter, Index | None]:
        full = self._parameters_by_name.get(name)
        path, _, leaf = name.rpartition(".")
        if full is None:
            raise ValueError(f"{name} is no parameter of the supernet of {self.space.name!r}")
        owner, member = self._owners[path], net.get_submodule(path)
        if type(owner) is not type(member):
            raise ValueError(f"{name} belongs to a {type(owner).__name__} in the supernet, to a {type(member).__name__} here")
        if own.ndim != full.ndim or any(n > m for n, m in zip(own.shape, full.shape, strict=True)):
            raise ValueError(f"{name} has shape {tuple(full.shape)} in the supernet; {tuple(own.shape)} does not fit in it")
        if own.shape == full.shape:
            return full, None
        subweight = getattr(member, "subweight", None)
        if subweight is not None:
            return full, subweight(leaf, tuple(full.shape), tuple(own.shape))
        centred = isinstance(member, nn.modules.conv._ConvNd)
        return full, tuple(
            slice((m - n) // 2, (m - n) // 2 + n) if centred and axis >= 2 else slice(0, n)
            for axis, (n, m) in enumerate(zip(own.shape, full.shape, strict=True))
        )


def norms(net: nn.Module) -> dict[str, BatchNorm]:
    """The norms of ``net`` that need running moments, by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, BatchNorm)}
