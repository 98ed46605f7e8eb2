"""What a subnet costs where conversion is dear: its blocks are converted once, and subnets are joined from them.

The joined model has the operators that converting the whole subnet gives, so its latency is measured, not summed.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import fx, nn
from torch.fx.passes.split_module import split_module

from export import backends
from export.artifact import Artifact
from export.artifact import Tensor as Description
from export.flatbuffer import Part
from export.fusion import fuse
from export.program import Program, as_tuple, capture
from hnas.cost import Price
from hnas.deployment.pricing import Turns, builder, cache_file
from hnas.ops.slot import Slot
from hnas.space import Arch
from hnas.study import Study
from hw_profiles import Device

Inputs = tuple[torch.Tensor, ...]
Values = dict[str, torch.Tensor]

TOGETHER = 40  # blocks in one conversion; memory, and what a kill loses


class Joining(Protocol):
    """A backend that converts many programs at once and joins the models."""

    def toolchain(self) -> Mapping[str, str]:
        """The versions of all that makes a model what it is."""

    def versions(self) -> Mapping[str, str]:
        """The versions of all that makes a model as fast as it is."""

    def convert_many(self, programs: Sequence[Program]) -> list[bytes]:
        """A checked model for each program."""

    def assemble(
        self,
        parts: Sequence[Part],
        path: Path,
        *,
        inputs: Sequence[Description],
        outputs: Sequence[Description],
        device: Device,
        threads: int,
    ) -> Artifact:
        """The artifact of the joined parts."""


@dataclass(frozen=True)
class Section:
    """A piece of a network: a slot, or all that lies between two of them; values are known by name."""

    module: nn.Module
    examples: Inputs
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Chain:
    """A network as the keys of its sections, with the names of what each reads and writes."""

    parts: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]
    inputs: tuple[Description, ...]
    outputs: tuple[Description, ...]


class BlockTable:
    """The latency of whole fp32 subnets on this machine, each joined from blocks and run in turns with the largest one.

    A block is converted when it is first met, together with all others that ``prepare`` finds missing, and is kept on
    disk. Time depends on shapes alone, so blocks have weights of their own: no training, no calibration is needed.
    """

    def __init__(self, study: Study, device: Device, threads: int) -> None:
        backend: Any = backends.load(device.backend)
        if not hasattr(backend, "convert_many"):
            raise ValueError(f"backend {device.backend} cannot join blocks; measure whole subnets there")
        self.study, self.device, self.threads = study, device, threads
        self.backend = cast(Joining, backend)
        self.largest = study.supernet.space.largest
        self._chains: dict[Arch, Chain] = {}
        self._turns = Turns(
            study,
            device,
            threads,
            "fp32",
            versions=self.backend.versions,
            make=lambda arch, path, _: self.assemble(arch, path),
            described=lambda arch: _flow(self._chain(arch)),
        )
        self._models = Models(_folder(self._turns.folder), self.backend)

    def prepare(self, archs: Sequence[Arch]) -> None:
        """Convert, in one go, every block of ``archs`` that no earlier subnet had."""
        wanted = [arch for arch in archs if not self._turns.known(arch)]
        keys = [key for arch in wanted for key, _, _ in self._chain(arch).parts]
        self._models.complete(keys)

    def __call__(self, arch: Arch) -> Price:
        """The latency of ``arch`` in ms."""
        return self._turns.price(arch)

    def close(self) -> None:
        """End the worker and remove what was not worth keeping."""
        self._turns.close()

    def assemble(self, arch: Arch, path: Path) -> Artifact:
        """The artifact of ``arch`` in the folder ``path``, joined from blocks: for timing, as its weights are noise."""
        self._models.complete([key for key, _, _ in self._chain(arch).parts])
        chain = self._chain(arch)
        parts = [Part(self._models[key], inputs, outputs) for key, inputs, outputs in chain.parts]
        path.mkdir(exist_ok=True)
        ends = {"inputs": chain.inputs, "outputs": chain.outputs}
        return self.backend.assemble(parts, path, **ends, device=self.device, threads=self.threads)

    def _chain(self, arch: Arch) -> Chain:
        if arch not in self._chains:
            space = self.study.supernet.space
            found, *ends = sections(*stand_in(lambda: space.build(arch), [(1, *s) for s in space.example(arch)]))
            parts = tuple((self._models.key(each), each.inputs, each.outputs) for each in found)
            inputs, outputs = (tuple(_description(*item) for item in end.items()) for end in ends)
            self._chains[arch] = Chain(parts, inputs, outputs)
        return self._chains[arch]


class Models:
    """The converted blocks in a folder, by what decides them: the program's digest, the toolchain and our own code.

    A file is the sha256 of a model and the model; one that is cut or changed counts as missing.
    """

    def __init__(self, folder: Path, backend: Joining) -> None:
        self._folder, self._backend = folder, backend
        self._toolchain = json.dumps({**backend.toolchain(), **builder()}, sort_keys=True)
        self._keys: dict[str, str] = {}
        self._programs: dict[str, Program] = {}

    def __getitem__(self, key: str) -> bytes:
        content = self._file(key).read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise KeyError(key)
        return content[32:]

    def __contains__(self, key: str) -> bool:
        try:
            return bool(self[key])
        except (FileNotFoundError, KeyError):
            return False

    def key(self, section: Section) -> str:
        """The name of the section's model; equal sections are captured once."""
        described = _described(section)
        if described not in self._keys:
            program = capture(section.module, section.examples)
            key = hashlib.sha256((program.digest + self._toolchain).encode()).hexdigest()
            self._keys[described] = key
            self._programs[key] = program
        return self._keys[described]

    def complete(self, keys: Sequence[str]) -> None:
        """Convert what is missing of ``keys``."""
        missing = [key for key in dict.fromkeys(keys) if key not in self]
        for first in range(0, len(missing), TOGETHER):
            together = missing[first : first + TOGETHER]
            models = self._backend.convert_many([fuse(self._programs[key]) for key in together])
            for key, model in zip(together, models, strict=True):
                aside = self._file(key).with_suffix(".part")
                aside.write_bytes(hashlib.sha256(model).digest() + model)
                aside.replace(self._file(key))

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.block"


def stand_in(build: Callable[[], nn.Module], shapes: Sequence[Sequence[int]]) -> tuple[nn.Module, Inputs]:
    """What ``build`` makes, in evaluation mode with weights that no converter can fold away, and inputs for it."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = build().eval()
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        return net, tuple(torch.randn(*shape) for shape in shapes)


@torch.no_grad()
def sections(net: nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[list[Section], Values, Values]:
    """``net`` cut before and after every slot: its sections in order, and its inputs and outputs by name.

    Slots are found by type; those without a branch are the identity and vanish.
    """
    whole = _cut(net)
    names: dict[fx.Node, str] = {}
    values: Values = {}
    reads: Values = {}
    found, given = [], iter(inputs)
    for node in whole.graph.nodes:
        if node.op == "placeholder":
            names[node] = node.name
            values[node.name] = reads[node.name] = next(given)
        elif node.op == "call_module":
            taken = tuple(names[argument] for argument in node.args)
            module, examples = whole.get_submodule(node.target), tuple(values[name] for name in taken)
            made = {f"{node.name}.{index}": value for index, value in enumerate(as_tuple(module(*examples)))}
            names[node] = next(iter(made))
            values |= made
            found.append(Section(module, examples, taken, tuple(made)))
        elif node.target is operator.getitem:
            names[node] = f"{node.args[0].name}.{node.args[1]}"
    results = [names[node] for node in whole.graph.output_node().all_input_nodes]
    return found, reads, {name: values[name] for name in results}


class _Tracer(fx.Tracer):
    """Looks into what contains slots, and no further."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002  # torch's signature
        return isinstance(m, Slot) or not any(isinstance(part, Slot) for part in m.modules())


def _cut(net: nn.Module) -> fx.GraphModule:
    """``net`` as a graph whose modules are its sections."""
    module = fx.GraphModule(net, _Tracer().trace(net))
    section: dict[fx.Node, int] = {}
    number = 0
    for node in list(module.graph.nodes):
        slot = node.op == "call_module" and net.get_submodule(node.target)
        if isinstance(slot, Slot) and not slot.branches:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif isinstance(slot, Slot):
            section[node] = number + 1
            number += 2
        else:
            section[node] = number
    module.recompile()
    return split_module(module, net, section.__getitem__)


def _flow(chain: Chain) -> list[Any]:
    """What decides the time of a chain: its blocks and who feeds whom, whatever the values are called."""
    numbers: dict[str, int] = {}

    def numbered(names: Sequence[str]) -> list[int]:
        return [numbers.setdefault(name, len(numbers)) for name in names]

    ends = [numbered([tensor.name for tensor in chain.inputs])]
    return [*ends, *([key, numbered(inputs), numbered(outputs)] for key, inputs, outputs in chain.parts)]


def _described(section: Section) -> str:
    """Types, plain attributes and shapes of a section: equal texts are equal programs, without capturing them."""
    parts = [(name, type(part).__qualname__, _plain(part)) for name, part in section.module.named_modules()]
    state = [(name, tuple(value.shape)) for name, value in section.module.state_dict().items()]
    return repr((getattr(section.module, "code", ""), parts, state, [tuple(x.shape) for x in section.examples]))


def _plain(module: nn.Module) -> list[tuple[str, object]]:
    return [(k, v) for k, v in sorted(vars(module).items()) if isinstance(v, bool | int | float | str | tuple)]


def _description(name: str, value: torch.Tensor) -> Description:
    return Description(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))


def _folder(otherwise: Path) -> Path:
    """Where blocks live between runs: next to the latencies; ``otherwise`` where nothing can be written there."""
    folder = cache_file().parent / "blocks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
    except OSError:
        return otherwise
    return folder
