"""Give a network real inputs, and norms with the moments of these inputs: ``images(make, size, samples)``."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hnas.data import images as pictures
from hnas.export.graph.samples import Samples

_SEED = 0
_OFFSET, _SMALL = 0.7, 0.3  # mean offset of batch norms, factor of a residual branch


@dataclass(frozen=True, eq=False)
class PeerNet:
    """A module in eval mode, inputs for int8 calibration, and other inputs to judge int8; each a call of batch 1."""

    module: nn.Module
    calibration: Samples
    evidence: Samples

    @property
    def examples(self) -> tuple[Tensor, ...]:
        """Return the inputs of one call."""
        return tuple(torch.from_numpy(array) for array in self.evidence[0])


def images(make: Callable[[], nn.Module], size: int, samples: int) -> PeerNet:
    """Return a network on tinted garments [1, 3, size, size]; its norms are recalibrated on the calibration images."""
    known, other = (garments(split, size, samples) for split in ("calibration", "search"))
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        module = make()
        _spread_norms(module)
    recalibrate_norms(module, torch.from_numpy(np.concatenate(known)))
    return PeerNet(module.eval(), tuple((each,) for each in known), tuple((each,) for each in other))


def bytes_of_text(make: Callable[[], nn.Module], length: int, samples: int) -> PeerNet:
    """Return a network on bytes [1, length], from the text of a module of the standard library."""
    text = np.frombuffer(inspect.getsource(argparse).encode(), np.uint8).astype(
        np.int32
    )  # LiteRT turns 64 bits into 32
    pieces = text[: len(text) // length * length].reshape(-1, 1, length)
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        module = make()
    calls = [(np.ascontiguousarray(piece),) for piece in pieces[: 2 * samples]]
    return PeerNet(module.eval(), tuple(calls[::2]), tuple(calls[1::2]))


def garments(split: str, size: int, count: int) -> list[NDArray[np.float32]]:
    """Return shipped images, enlarged, tinted and normalised by the calibration images: [1, 3, size, size] each."""
    raw = {name: _tinted(name, size, count) for name in {split, "calibration"}}
    mean, spread = raw["calibration"].mean(), raw["calibration"].std()
    return [np.ascontiguousarray((image - mean)[None] / spread, np.float32) for image in raw[split]]


def _tinted(split: str, size: int, count: int) -> NDArray[np.float64]:
    """Return tinted images of 0 to 1: [count, 3, size, size]."""
    grey = pictures.load_split(None, split).images[:count, ..., 0].astype(np.float32) / 255
    wide = pictures.triangle_filter(grey.shape[1], size)
    tints = np.random.default_rng(_SEED).uniform(0.3, 1.0, (count, 3, 1, 1)).astype(np.float32)
    found: NDArray[np.float64] = (wide @ grey @ wide.T)[:, None] * tints
    return found


def _spread_norms(module: nn.Module) -> None:
    """Set random factors and offsets of norms, so that a net with random weights does not amplify errors.

    With offsets around 0 and unscaled residual branches, an input with a signal-to-noise ratio of 46 dB leaves the 15
    blocks of MobileNetV3 with 9 dB.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm) and part.weight is not None:
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, _OFFSET if isinstance(part, nn.BatchNorm2d) else 0.0, 0.2)
    for part in module.modules():
        if getattr(part, "residual", False):
            *_, last = (norm for norm in part.modules() if isinstance(norm, nn.BatchNorm2d))
            last.weight.data *= _SMALL


@torch.no_grad()
def recalibrate_norms(module: nn.Module, batch: Tensor) -> None:
    """Set the moments of every batch norm to those of ``batch``."""
    module.eval()
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    if norms:
        module(batch)
    module.eval()
