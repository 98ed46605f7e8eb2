"""Load subnets of the shipped supernet, spread over its space: ``load_subnet(name, samples)``."""

from __future__ import annotations

from random import Random

import numpy as np

from hnas.benchmarks.peers.nets.parts import PeerNet
from hnas.data import images as pictures
from hnas.deployment.source import open_source
from hnas.space import Arch, Space
from hnas.study import Study

_SEEDS = {"subnet_a": 1, "subnet_b": 2, "subnet_c": 3}
NAMES = ("subnet_smallest", *_SEEDS, "subnet_largest")


def load_subnet(name: str, samples: int) -> PeerNet:
    """Return a subnet with its own weights and moments, on images that it was never trained on."""
    source = open_source(None, None)
    space = source.supernet.space
    arch = _arch(space, name)
    module = source.supernet.extract(arch, Study(source.supernet, source.task).calibrate(arch)).eval()
    ((_, height, width),) = space.example(arch)
    prepare = source.task.preprocessing.at((height, width))
    known, other = (
        tuple(
            (np.ascontiguousarray(prepare(image[None])),) for image in pictures.load_split(None, split).images[:samples]
        )
        for split in ("calibration", "search")
    )
    return PeerNet(module, known, other)


def _arch(space: Space, name: str) -> Arch:
    if name in _SEEDS:
        return space.sample(Random(_SEEDS[name]))
    return space.smallest if name == "subnet_smallest" else space.largest
