"""Classification of a data set that is larger than memory: read, decoded and augmented in worker processes.

The batch of a step depends on seed and step alone: an epoch is dealt to lanes (``hnas.data.sources``), a batch takes
equally many examples from each, and processes and workers share the lanes. A run that resumes skips ahead in the
listing and decodes nothing for it.
"""

from __future__ import annotations

import io
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hnas.data.images import ImageData, Labels, Pixels, Preprocessing, opened
from hnas.data.sources import Example, Files, Shards, Source, folders, read, shards
from hnas.space import Shape
from hnas.tasks.classification import Classification

if TYPE_CHECKING:
    from PIL.Image import Image

_Listing = Callable[[Path], tuple[Files | Shards, Mapping[str, Files | Shards]]]

READERS: dict[str, _Listing] = {"folder": folders, "webdataset": shards}
_LANES = 64  # at most: a shard that each holds open, and the ways in which processes and workers may share
MEMORY = 1 << 30  # bytes of a held-out split that are kept decoded; a larger one is decoded each time
ROW = 100  # images in a row that may be unreadable where unreadable ones are skipped
# Of ImageNet by channel, as published with its networks; one grey channel has their mean.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Unavailable(RuntimeError):
    """A package that this reader needs is not installed."""

    code = 3


class ReaderLost(RuntimeError):
    """A worker process was killed, for want of memory most often."""

    code = 1


@dataclass(frozen=True)
class Unread:
    """Held-out images that are decoded when ``pixels`` is called; a slice of them decodes nothing."""

    examples: Sequence[Example]
    preprocessing: Preprocessing
    workers: int
    skip: bool

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, part: slice) -> Unread:
        return Unread(self.examples[part], self.preprocessing, self.workers, self.skip)

    def pixels(self) -> Pixels:
        """uint8 [N, H, W, C] at the preprocessing's ``base``; where unreadable images are skipped, one is black."""
        with ThreadPoolExecutor(max(1, self.workers)) as threads:  # Pillow decodes without holding the interpreter
            return np.stack(list(threads.map(self._one, self.examples)))

    def _one(self, example: Example) -> Pixels:
        try:
            return self.preprocessing.read(io.BytesIO(read(example)), example.name)
        except ValueError:
            if not self.skip:
                raise
            return np.zeros((*self.preprocessing.base, self.preprocessing.channels), np.uint8)


@dataclass(frozen=True)
class Held:
    """A held-out split; it answers what ``ImageData`` answers."""

    source: Files | Shards
    preprocessing: Preprocessing
    workers: int
    skip: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in label order."""
        return self.source.classes

    @property
    def digest(self) -> str:
        """sha256 of the listing, not of pixels."""
        return self.source.digest

    @cached_property
    def labels(self) -> Labels:
        """int64 [N]."""
        return np.array([example.label for example in self._examples], np.int64)

    @cached_property
    def images(self) -> Pixels | Unread:
        """uint8 [N, H, W, C] where that fits into ``MEMORY``, else the images unread."""
        unread = Unread(self._examples, self.preprocessing, self.workers, self.skip)
        size = len(self) * math.prod(self.preprocessing.base) * self.preprocessing.channels
        return unread.pixels() if size <= MEMORY else unread

    @cached_property
    def _examples(self) -> list[Example]:
        return self.source.examples()

    def __len__(self) -> int:
        return len(self.source)


class Part(NamedTuple):
    """What one worker makes of one step: images of its lanes in order, and what it could not read."""

    lanes: tuple[int, ...]
    images: Tensor
    labels: Tensor
    skipped: int
    error: str | None


@dataclass(frozen=True)
class Reader(IterableDataset[Part]):
    """The parts of all steps from ``first`` on, for the lanes ``own``; each worker takes its share of these.

    share: examples of a lane in a batch; area: the least share of an image that a crop keeps; randaugment: how many
    operations of RandAugment (arXiv 1909.13719) at what magnitude, below 30.
    """

    source: Source
    preprocessing: Preprocessing
    seed: int
    first: int
    steps_per_epoch: int
    of: int
    own: tuple[int, ...]
    share: int
    flip: bool
    area: float
    randaugment: tuple[int, int] | None
    skip: bool

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        own = self.own if worker is None else self.own[worker.id :: worker.num_workers]
        epoch, position = divmod(self.first, self.steps_per_epoch)
        try:
            while True:
                streams = self.source.lanes(self.seed, epoch, self.of, own, position * self.share)
                ahead: list[deque[Example]] = [deque() for _ in own]
                for step in range(position, self.steps_per_epoch):
                    yield self._part(own, streams, ahead, (epoch, step))
                epoch, position = epoch + 1, 0
        except ValueError as error:  # as data: an exception would come out of a worker with its whole traceback
            yield Part(own, torch.empty(0), torch.empty(0), 0, str(error))

    def _part(
        self,
        own: tuple[int, ...],
        streams: list[Iterator[Example]],
        ahead: list[deque[Example]],
        when: tuple[int, int],
    ) -> Part:
        images, labels, skipped = [], [], 0
        for lane, stream, waiting in zip(own, streams, ahead, strict=True):
            for place in range(self.share):
                example = waiting.popleft() if waiting else next(stream)
                image, label, failed = self._readable(example, stream, waiting)
                images.append(self._augmented(image, [self.seed, 6, *when, lane, place]))
                labels.append(label)
                skipped += failed
        return Part(own, torch.stack(images), torch.tensor(labels), skipped, None)

    def _readable(self, example: Example, stream: Iterator[Example], waiting: deque[Example]) -> tuple[Image, int, int]:
        """The image, its label, and whether it stands in for ``example``, which cannot be read.

        The next readable image of the lane stands in and keeps its own place too, so that a resumed run, which skips
        places without reading, sees the same.
        """
        tried = 0
        while True:
            try:
                return (
                    opened(io.BytesIO(read(example)), self.preprocessing.channels, example.name),
                    example.label,
                    tried > 0,
                )
            except ValueError as error:
                if not self.skip:
                    raise
                if tried == ROW:
                    raise ValueError(f"{ROW + 1} images in a row cannot be read; the last: {error}") from None
            while len(waiting) <= tried:
                waiting.append(next(stream))
            example = waiting[tried]
            tried += 1

    def _augmented(self, image: Image, key: list[int]) -> Tensor:
        """uint8 [H, W, C]: a random crop resized to ``base`` (anti-aliased, by Pillow), mirrored, RandAugment."""
        from kornia import augmentation
        from kornia.augmentation.auto import RandAugment
        from PIL.Image import Resampling, Transpose

        (height, width), channels = self.preprocessing.base, self.preprocessing.channels
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint32)[0]))
            crop = augmentation.RandomResizedCrop((height, width), scale=(self.area, 1.0))
            corners = crop.forward_parameters(torch.Size((1, channels, image.height, image.width)))["src"][0]
            (left, top), (right, bottom) = corners[0].tolist(), corners[2].tolist()  # both are pixels of the crop
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
class Stream(Classification):
    """Classification whose training images stream from ``source``; the held-out splits are ``Held``.

    workers: processes that decode, at most one a lane and one a core; 0 decodes in this one. skip: leave unreadable
    images out and count them, where otherwise the first one is an error. The other arguments are those of ``Reader``.
    """

    source: Source = field(kw_only=True)
    workers: int = 2
    area: float = 0.08
    randaugment: tuple[int, int] | None = None
    skip: bool = False
    _open: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def lanes(self) -> int:
        """The most lanes, up to ``_LANES``, that the batch divides into and the source can fill."""
        most = min(_LANES, self.source.units, self.batch_size)
        return next(lanes for lanes in range(most, 0, -1) if self.batch_size % lanes == 0)

    @property
    def skipped(self) -> int:
        """How many unreadable training images this process has left out so far."""
        return int(self._open.get("skipped", 0))

    def batch(self, step: int) -> tuple[Pixels, Tensor]:
        """Augmented uint8 [B, H, W, C] and labels [B]; the same for the same step and seed."""
        return self.part(step, 0, 1)

    def part(self, step: int, rank: int, world: int) -> tuple[Pixels, Tensor]:
        """The images and labels that are one of ``world`` processes' equal part of a batch; only those are read.

        Consecutive steps come from workers that read ahead; any other step starts them anew.
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
        except (RuntimeError, ConnectionError, EOFError) as error:  # how torch, or the pipe, tells that one was killed
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
        """uint8 or unread images as the one float input [N, C, h, w] of an architecture."""
        return super().inputs(raw.pixels() if isinstance(raw, Unread) else raw, shapes)

    def _close(self) -> None:
        """End the workers. After the pipe of a killed one torch would raise at the signal too.

        That is wherever this process is just then, in the midst of telling what happened.
        """
        parts = self._open.pop("parts", None)
        if hasattr(parts, "_shutdown_workers"):  # an iterator with no worker has none
            with suppress(RuntimeError):  # the signal
                parts._shutdown_workers()

    def _loader(self, step: int, own: tuple[int, ...], workers: int) -> Iterator[Part]:
        reader = Reader(
            self.source,
            self.preprocessing,
            self.seed,
            step,
            self.steps_per_epoch,
            self.lanes,
            own,
            self.batch_size // self.lanes,
            self.flip,
            self.area,
            self.randaugment,
            self.skip,
        )
        # Fresh processes: forking one whose runtimes have threads of their own can crash it.
        # A generator of its own: the loader would take a number from the global one.
        start = "spawn" if workers else None
        loader = DataLoader(
            reader, batch_size=None, num_workers=workers, multiprocessing_context=start, generator=torch.Generator()
        )
        return iter(loader)


def stream(
    folder: Path | None,
    reader: str,
    *,
    size: int = 224,
    channels: int = 3,
    workers: int = 2,
    skip: bool = False,
    randaugment: Sequence[int] | None = None,
    **options: Any,
) -> Stream:
    """The task of a data set on disk: reader "folder" or "webdataset". Normalised by ImageNet's published moments."""
    if reader not in READERS:
        raise ValueError(f"no reader {reader!r}; known: {', '.join(READERS)}")
    if find_spec("kornia") is None:
        raise Unavailable("kornia is not installed; pip install 'hnas[imagenet]'")
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; --data takes a folder of images or of tar shards here")
    mean, std = (MEAN, STD) if channels == 3 else ((round(sum(MEAN) / 3, 4),), (round(sum(STD) / 3, 4),))
    preprocessing = Preprocessing((size, size), (size, size), mean, std)
    source, held = READERS[reader](folder)
    splits: dict[str, Any] = {"train": source}
    splits |= {split: Held(part, preprocessing, workers, skip) for split, part in held.items()}
    drawn = None if randaugment is None else (int(randaugment[0]), int(randaugment[1]))
    return Stream(
        cast("dict[str, ImageData]", splits),
        preprocessing,
        name=folder.resolve().name,
        source=source,
        workers=workers,
        skip=skip,
        randaugment=drawn,
        **options,
    )


def _joined(parts: Sequence[Part]) -> tuple[Pixels, Tensor]:
    """The parts of a step's workers in the order of the lanes, however many workers there are."""
    lanes = [lane for part in parts for lane in part.lanes]
    images, labels = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    share = len(labels) // len(lanes)
    order = torch.arange(len(labels)).view(len(lanes), share)[np.argsort(lanes)].flatten()
    return images[order].numpy(), labels[order]
