"""Measure the networks of a small space in several rounds: ``latency_rounds(images, seed, RoundsSetting(...))``.

A study prices networks by the first round, and judges what it delivers by the others.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hnas import export
from hnas.benchmarks.papers.data import StudyData
from hnas.benchmarks.papers.lone_table import arch_of
from hnas.benchmarks.papers.parts import Result
from hnas.benchmarks.papers.supernets import space_of
from hnas.export.device.machine import Machine
from hnas.study import Study
from hnas.supernet import Supernet

_CALLS = 10  # of a network in each half of a block: few, so that the speed of the machine changes between blocks only


@dataclass(frozen=True, kw_only=True)
class RoundsSetting:
    """The setting of a part that measures networks.

    space, arguments: name and arguments of the space.
    networks: the types of each network, one for each slot.
    device: a device of this machine.
    rounds: rounds, each with new processes and a random order of its own.
    blocks: interleaved blocks of a round.
    """

    data: StudyData
    space: str
    arguments: Mapping[str, Any]
    networks: Sequence[Sequence[str]]
    device: str
    rounds: int
    blocks: int


def latency_rounds(images: Path | None, seed: int, setting: RoundsSetting) -> Result:
    """Build each network and the largest one once; return their latencies in every round, ``shares`` [round][network].

    One thread, one image, fp32. A round opens every file in a new process, because a file that is opened again in
    another process may be 7 to 15 % faster or slower. A latency is a share of the latency of the largest network, with
    which it is interleaved. ``largest_ms`` is the median of the largest network, for each round.
    """
    space = space_of(setting.space, setting.arguments)
    study = Study(Supernet(space, seed), setting.data.task(images, seed), seed=seed)
    archs = [space.largest, *(arch_of(space, types) for types in setting.networks)]
    raw, _ = study.task.held("search")
    inputs = [x.numpy() for x in study.task.inputs(raw[:1], space.example(space.largest))]
    shares, largest = [], []
    with tempfile.TemporaryDirectory(prefix="hnas-") as folder:
        files = [Path(folder, str(index)) for index in range(len(archs))]
        for arch, file in zip(archs, files, strict=True):
            net = study.supernet.extract(arch, study.calibrate(arch))
            export.compile(net, inputs, device=setting.device, path=file, threads=1)
        for turn in range(setting.rounds):
            found = export.compare_many(files[0], files[1:], inputs, blocks=setting.blocks, runs=_CALLS, seed=turn)
            shares.append([round(1 / each.ratio, 5) for each in found])
            largest.append(round(found[0].a.median_ms, 6))
        versions = dict(export.Artifact.read(files[0]).versions)
    machine = json.loads(json.dumps(asdict(Machine.here())))
    return {"shares": shares, "largest_ms": largest, "machine": machine, "versions": versions}
