"""Image classification on a data set that is larger than memory: worker processes read, decode and augment.

The batch of a step depends on seed and step alone. The order of an epoch is divided into lanes (``hnas.data.sources``);
a batch takes equally many examples from each lane, and processes and workers share the lanes. A run that resumes skips
ahead in the listing and decodes nothing for that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hnas.data.decoding import Pixels
from hnas.data.folders import Files, find_files
from hnas.data.held import Held, Unread
from hnas.data.images import ImageData, Preprocessing
from hnas.data.lanes import Lane
from hnas.data.shards import Shards, find_shards
from hnas.data.sources import Source
from hnas.ranges import Channels, Count, PositiveInt, RandAugmentPair, Share
from hnas.space import Shape
from hnas.tasks.classification import Classification, PackageMissing

if TYPE_CHECKING:
    from PIL.Image import Image

_Listing = Callable[[Path], tuple[Files | Shards, Mapping[str, Files | Shards]]]

READERS: dict[str, _Listing] = {"folder": find_files, "webdataset": find_shards}
_LANES = 64  # at most: each lane holds a shard open, and processes and workers share the lanes
# Of ImageNet by channel, as published with its networks; a grey channel takes their mean.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ReaderLost(RuntimeError):
    """A worker process was killed, most often because memory was short."""

    code = 1


class _LaneBatch(NamedTuple):
    """One worker's share of a batch: images of its lanes, in the order of the lanes.

    images: uint8 [N, H, W, C].
    labels: int64 [N].
    skipped: the number of unreadable images that were replaced.
    error: the reason why nothing could be read, or None.
    """

    lanes: tuple[int, ...]
    images: Tensor
    labels: Tensor
    skipped: int
    error: str | None


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image.

    flip: mirror half of the images.
    area: the smallest share of an image that a crop keeps.
    randaugment: number of operations and magnitude below 30 of RandAugment (arXiv 1909.13719), or None.
    """

    flip: bool = True
    area: float = 0.08
    randaugment: tuple[int, int] | None = None

    def __call__(self, image: Image, size: tuple[int, int], channels: int, key: list[int]) -> Tensor:
        """Return uint8 [H, W, C]: a random crop of ``image`` at ``size``, mirrored, RandAugment.

        ``key`` seeds the random numbers. Pillow resizes the crop with anti-aliasing.
        """
        from kornia import augmentation
        from kornia.augmentation.auto import RandAugment
        from PIL.Image import Resampling, Transpose

        height, width = size
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint32)[0]))
            crop = augmentation.RandomResizedCrop(size, scale=(self.area, 1.0))
            corners = crop.forward_parameters(torch.Size((1, channels, image.height, image.width)))["src"][0]
            (left, top), (right, bottom) = corners[0].tolist(), corners[2].tolist()  # both pixels are in the crop
            image = image.resize((width, height), Resampling.BILINEAR, (left, top, right + 1, bottom + 1))
            if self.flip and float(torch.rand(())) < 0.5:
                image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(image, np.uint8).reshape(height, width, channels))
            if self.randaugment is not None:
                planes = pixels.permute(2, 0, 1)[None].float() / 255
                planes = RandAugment(*self.randaugment)(planes)
                pixels = (planes[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
        return pixels


@dataclass(frozen=True)
class _LaneReader(IterableDataset[_LaneBatch]):
    """The shares of the lanes ``own`` in all batches from step ``first`` on; each worker takes some of these lanes.

    task: the task that the batches belong to.
    """

    task: Stream
    first: int
    own: tuple[int, ...]

    def __iter__(self) -> Iterator[_LaneBatch]:
        worker = get_worker_info()
        own = self.own if worker is None else self.own[worker.id :: worker.num_workers]
        task = self.task
        epoch, position = divmod(self.first, task.steps_per_epoch)
        try:
            while True:
                streams = task.source.lanes(task.seed, epoch, task.lanes, own, position * task.share)
                lanes = [Lane(stream, task.preprocessing.channels, task.skip) for stream in streams]
                for step in range(position, task.steps_per_epoch):
                    yield self._read(own, lanes, (epoch, step))
                epoch, position = epoch + 1, 0
        except ValueError as error:  # returned as data, because torch would print the traceback of a worker's exception
            yield _LaneBatch(own, torch.empty(0), torch.empty(0), 0, str(error))

    def _read(self, own: tuple[int, ...], lanes: list[Lane], when: tuple[int, int]) -> _LaneBatch:
        task = self.task
        base, channels = task.preprocessing.base, task.preprocessing.channels
        images, labels, skipped = [], [], 0
        for number, lane in zip(own, lanes, strict=True):
            for place in range(task.share):
                image, label, replaced = lane.take()
                images.append(task.augmentation(image, base, channels, [task.seed, 6, *when, number, place]))
                labels.append(label)
                skipped += replaced
        return _LaneBatch(own, torch.stack(images), torch.tensor(labels), skipped, None)


@dataclass(frozen=True)
class Stream(Classification):
    """Classification whose training images stream from ``source``.

    workers: processes that decode, at most one for each lane and core; 0 decodes in this process.
    augmentation: random changes of training images; ``flip`` and ``shift`` are not used.
    skip: true: replace unreadable images and count them; false: the first unreadable image is a ValueError.
    """

    source: Source = field(kw_only=True)
    workers: int = 2
    augmentation: Augmentation = Augmentation()
    skip: bool = False
    _open: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def lanes(self) -> int:
        """Return the largest number of lanes that divides the batch size and that the source can fill."""
        most = min(_LANES, self.source.units, self.batch_size)
        return next(lanes for lanes in range(most, 0, -1) if self.batch_size % lanes == 0)

    @property
    def share(self) -> int:
        """Return the number of examples of one lane in a batch."""
        return self.batch_size // self.lanes

    @property
    def skipped(self) -> int:
        """Return the number of unreadable training images that this process has replaced so far."""
        return int(self._open.get("skipped", 0))

    def batch(self, step: int) -> tuple[Pixels, Tensor]:
        """Return augmented uint8 [B, H, W, C] and labels [B]; they depend on seed and step alone."""
        return self.part(step, 0, 1)

    def part(self, step: int, rank: int, world: int) -> tuple[Pixels, Tensor]:
        """Return the equal part of a batch that belongs to one of ``world`` processes. No other image is read.

        Workers read ahead for consecutive steps. Any other step starts the workers again.

        Raises:
            ValueError: the lanes do not divide among the processes, or an image is unreadable.
            ReaderLost: a worker was killed.
        """
        if self.lanes % world:
            raise ValueError(
                f"a batch of {self.batch_size} from {self.source.units} files or shards is {self.lanes} streams, "
                f"which do not divide among {world} processes; change the batch or the number of shards"
            )
        own = tuple(range(rank, self.lanes, world))
        workers = min(self.workers, len(own), len(os.sched_getaffinity(0)))
        if self._open.get("next") != (step, rank, world):
            self._open["parts"] = self._loader(step, own, workers)
        self._open["next"] = None
        try:
            parts = [next(self._open["parts"]) for _ in range(max(1, workers))]
        except (RuntimeError, ConnectionError, EOFError) as error:  # torch, or the pipe, reports a killed worker
            reason = next(iter(str(error).splitlines()), "no reason given")
            self._close()
            raise ReaderLost(f"a process that reads images has ended: {reason}; use fewer workers") from None
        for part in parts:
            if part.error is not None:
                raise ValueError(part.error)
        self._open["next"] = (step + 1, rank, world)
        self._open["skipped"] = self.skipped + sum(part.skipped for part in parts)
        return _joined(parts)

    def inputs(self, raw: Any, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
        """Return uint8 or undecoded images as the one float input [N, C, h, w] of an architecture."""
        return super().inputs(raw.pixels() if isinstance(raw, Unread) else raw, shapes)

    def _close(self) -> None:
        """End the workers.

        Otherwise the signal of the killed worker makes torch raise a second error, at any line of this process.
        """
        parts = self._open.pop("parts", None)
        if hasattr(parts, "_shutdown_workers"):  # an iterator without workers has no such method
            with suppress(RuntimeError):  # the signal
                parts._shutdown_workers()

    def _loader(self, step: int, own: tuple[int, ...], workers: int) -> Iterator[_LaneBatch]:
        # A worker gets neither the open loader nor the decoded images of held-out splits.
        train = cast("dict[str, ImageData]", {"train": self.source})
        reader = _LaneReader(replace(self, splits=train, _open={}), step, own)
        # spawn: a fork of a process with threads can crash.
        # A separate generator: without it, the loader would draw from torch's global generator.
        start = "spawn" if workers else None
        loader = DataLoader(
            reader, batch_size=None, num_workers=workers, multiprocessing_context=start, generator=torch.Generator()
        )
        return iter(loader)


def open_task(
    folder: Path | None,
    *,
    reader: str = "folder",
    size: PositiveInt = 224,
    channels: Channels = 3,
    flip: bool = True,
    workers: Count = 2,
    area: Share = 0.08,
    randaugment: RandAugmentPair | None = None,
    skip: bool = False,
    **options: Any,
) -> Stream:
    """Return the task of a data set on disk, normalised by the published moments of ImageNet.

    reader: "folder" (image files) or "webdataset" (tar shards).
    size: height and width of an image after cropping, in pixels.
    channels: 1 (grey) or 3 (RGB).
    flip, area, randaugment: see ``Augmentation``.
    workers, skip: see ``Stream``.
    options: other fields of ``Classification``.

    Raises:
        FileNotFoundError: ``folder`` is missing.
        PackageMissing: kornia is not installed.
        ValueError: the reader is unknown, or the folder contains no such data set.
    """
    if reader not in READERS:
        raise ValueError(f"no reader {reader!r}; known: {', '.join(READERS)}")
    if find_spec("kornia") is None:
        raise PackageMissing("kornia is not installed; pip install 'hnas[imagenet]'")
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; --data takes a folder of images or of tar shards here")
    mean, std = (_MEAN, _STD) if channels == 3 else ((round(sum(_MEAN) / 3, 4),), (round(sum(_STD) / 3, 4),))
    preprocessing = Preprocessing((size, size), (size, size), mean, std)
    source, held = READERS[reader](folder)
    splits = {"train": source, **{split: Held(part, preprocessing, workers, skip) for split, part in held.items()}}
    drawn = None if randaugment is None else (int(randaugment[0]), int(randaugment[1]))
    return Stream(
        cast("dict[str, ImageData]", splits),
        preprocessing,
        name=folder.resolve().name,
        source=source,
        workers=workers,
        augmentation=Augmentation(flip, area, drawn),
        skip=skip,
        **options,
    )


def _joined(parts: Sequence[_LaneBatch]) -> tuple[Pixels, Tensor]:
    """Join the shares of all workers in the order of the lanes, which does not depend on the number of workers."""
    lanes = [lane for part in parts for lane in part.lanes]
    images, labels = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    share = len(labels) // len(lanes)
    order = torch.arange(len(labels)).view(len(lanes), share)[np.argsort(lanes)].flatten()
    return images[order].numpy(), labels[order]
