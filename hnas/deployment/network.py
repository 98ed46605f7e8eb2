"""The static networks that a deployment tries, with the data that their artifacts are judged on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hnas.cost import Price
from hnas.cost.roofline import Kernel, latency_ms
from hnas.export.graph.samples import Sample
from hnas.export.onnx.source import Original
from hnas.hw_profiles import Device
from hnas.space import Arch

SPLITS = ("search", "test")


@dataclass(frozen=True, eq=False)
class HeldOutSamples:
    """Labelled images as samples of one network. The search split decides; the test split only reports.

    labels: the class of each image, by split.
    expected: the outputs of the network in eager fp32, [N, classes], by split.
    """

    search: Sequence[Sample]
    test: Sequence[Sample]
    labels: Mapping[str, NDArray[np.int64]]
    expected: Mapping[str, NDArray[np.float32]]

    @cached_property
    def accuracy(self) -> dict[str, float]:
        """Top-1 of the network in eager fp32, by split."""
        return {
            split: float(np.mean(scores.argmax(1) == self.labels[split])) for split, scores in self.expected.items()
        }


@dataclass(frozen=True)
class NetworkRecord:
    """What is kept of a network once its artifacts are built. The network itself holds weights and images.

    accuracy: top-1 in eager fp32 by split; empty without labelled images.
    mixable: whether blocks may be kept in float, which takes a torch graph and real inputs.
    """

    name: str
    key: str
    arch: Arch | None
    accuracy: Mapping[str, float]
    mixable: bool


@dataclass(frozen=True, eq=False)
class StaticNetwork:
    """A network to try. A search supplies some of its subnets, a user supplies one.

    name: for tables.
    key: of its artifacts' folder and of its entries in the journal.
    module: a static module, or an open ONNX file.
    example: the inputs of one call.
    count_kernels: counts the kernels of the fused network, for the predicted latency.
    calibration: real samples for int8 ranges; None where the user gave none, and int8 is left out.
    evidence: samples that a saved file is first verified on; None takes random ones.
    labelled: labelled images; None where no accuracy can be known.
    arch: the architecture of a subnet.
    input_names: the names of the inputs, where they have names.
    """

    name: str
    key: str
    module: nn.Module | Original
    example: Sample
    count_kernels: Callable[[], list[Kernel]]
    calibration: Sequence[Sample] | None = None
    evidence: Sequence[Sample] | None = None
    labelled: HeldOutSamples | None = None
    arch: Arch | None = None
    input_names: tuple[str, ...] = ()

    @property
    def editable(self) -> bool:
        """Whether there is a torch graph. Accuracy recovery and blocks in float edit it."""
        return isinstance(self.module, nn.Module)

    @cached_property
    def kernels(self) -> list[Kernel]:
        """The kernels of the fused network."""
        return self.count_kernels()

    @property
    def accuracy(self) -> Mapping[str, float]:
        """Top-1 in eager fp32 by split. Empty without labelled images."""
        return {} if self.labelled is None else self.labelled.accuracy

    @property
    def record(self) -> NetworkRecord:
        """What is kept of the network once its artifacts are built."""
        mixable = self.editable and self.calibration is not None
        return NetworkRecord(self.name, self.key, self.arch, dict(self.accuracy), mixable)

    def predict(self, device: Device, precision: str) -> Price:
        """Return the latency that the profile of ``device`` predicts, within the error band of the profile."""
        value = latency_ms(self.kernels, device, precision)
        low, high = device.band
        return Price(value, "ms", value * low, value * high, "predicted")
