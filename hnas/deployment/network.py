"""The static networks that a deployment tries, with the data that their artifacts are judged on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hnas.cost import Price
from hnas.cost.kernels import Kernel
from hnas.cost.roofline import predict
from hnas.data.images import Preprocessing
from hnas.export.graph.samples import Sample
from hnas.export.graph.sizes import Asked
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
        """Return split -> top-1 of the network in eager fp32."""
        return {
            split: float(np.mean(scores.argmax(1) == self.labels[split])) for split, scores in self.expected.items()
        }


@dataclass(frozen=True)
class NetworkRecord:
    """The facts about a network that stay in memory after its artifacts are built. It holds no weights and no images.

    accuracy: split -> top-1 in eager fp32; empty without labelled images.
    mixable: whether blocks may be kept in float. This needs a torch graph and real inputs.
    tested: the number of labelled images of the test split.
    """

    name: str
    key: str
    arch: Arch | None
    accuracy: Mapping[str, float]
    mixable: bool
    tested: int = 0


@dataclass(frozen=True, eq=False)
class StaticNetwork:
    """A network to build and judge: a subnet of a search, or a user's own network.

    name: the name in tables.
    key: the name of its folder of artifacts, and a part of its keys in the journal.
    module: a static module, or an open ONNX file.
    example: the inputs of one call.
    count_kernels: returns the kernels of the fused network, for the predicted latency.
    calibration: real samples for int8 ranges; None: there are no real samples, and int8 cannot be built.
    evidence: samples of the first verification of a saved file; None: random samples.
    labelled: labelled images; None: the accuracy cannot be known.
    arch: the architecture of a subnet; None for a user's own network.
    input_names: the names of the inputs; empty if they have no names.
    dynamic: the sizes of a module that stay open; None: all are fixed. An open ONNX file has its own.
    preprocessing: from pixels to the input; None: not known.
    classifier: whether the first output holds class scores, as in `hnas.export.CompileOptions`. It counts only without
        labelled images, because with these the accuracy decides.
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
    dynamic: Asked | None = None
    preprocessing: Preprocessing | None = None
    classifier: bool | None = None

    @property
    def editable(self) -> bool:
        """Return whether there is a torch graph, which accuracy recovery and blocks in float need."""
        return isinstance(self.module, nn.Module)

    @cached_property
    def kernels(self) -> list[Kernel]:
        """Return the kernels of the fused network."""
        return self.count_kernels()

    @property
    def accuracy(self) -> Mapping[str, float]:
        """Return split -> top-1 in eager fp32; empty without labelled images."""
        return {} if self.labelled is None else self.labelled.accuracy

    @property
    def record(self) -> NetworkRecord:
        """Return the record that stays in memory after the artifacts are built."""
        mixable = self.editable and self.calibration is not None
        tested = 0 if self.labelled is None else len(self.labelled.test)
        return NetworkRecord(self.name, self.key, self.arch, dict(self.accuracy), mixable, tested)

    def predict(self, device: Device, precision: str) -> Price:
        """Return the latency that the profile of ``device`` predicts, with its error band."""
        return predict(self.kernels, device, precision)
