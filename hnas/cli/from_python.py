"""`hnas.train`: the command ``hnas-train`` as a function. Its parameters are the flags of the command."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn


@dataclass(frozen=True)
class TrainedSupernet:
    """A supernet that was trained. `hnas.deploy(target, supernet=found.path, data=...)` searches it.

    path: the folder of the supernet.
    record: the content of supernet.json.
    """

    path: Path
    record: Mapping[str, Any]

    @property
    def accuracy(self) -> Mapping[str, float]:
        """Return top-1 on the test images of the "largest" and of the "smallest" subnet, 0 to 1."""
        return dict(self.record["accuracy"])


def train(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: str = "images",
    skip_broken: bool = False,
    epochs: float | None = None,
    minutes: float | None = None,
    pretrained: str | None = None,
    from_scratch: bool = False,
    alone: str | None = None,
    supernet: str | os.PathLike[str] | None = None,
    target: str | None = None,
    max_latency: str | None = None,
    max_weights: int | None = None,
    max_macs: int | None = None,
    max_memory: str | None = None,
    max_skips: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    resume: bool = False,
    tensorboard: bool = False,
    on_step: Callable[[int, int, float], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> TrainedSupernet:
    """Train a supernet on a folder of images, and write it to the folder ``out``. ``hnas-train`` does the same.

    Args:
        data: folder with one sub-folder of images for each class (or of IDX files), or a CSV file with path,label
        out: folder of the supernet; `hnas.deploy` takes it as ``supernet``
        recipe: the name of a shipped recipe, or the path of a .toml file
        skip_broken: leave out images that cannot be read, and count them
        epochs: total number of epochs; None: as in the recipe
        minutes: choose resolution and epochs that fit into so many minutes on this machine
        pretrained: start from the weights of this network of timm or .safetensors file
        from_scratch: start from random weights where the recipe has pretrained ones
        alone: train one subnet by itself: smallest, largest, random:SEED or derived
        supernet: with ``alone``: find the subnet in the space of this trained supernet
        target: with ``alone="derived"``: the device of ``max_latency``
        max_latency: with ``alone="derived"``: limit of the latency on the device, e.g. 5ms
        max_weights: with ``alone="derived"``: limit of the number of weights
        max_macs: with ``alone="derived"``: limit of the multiply-accumulates of an image
        max_memory: with ``alone="derived"``: limit of weights and activations in fp32, e.g. 2MB
        max_skips: with ``alone="derived"``: largest number of slots with an identity
        seed: seed of weights, batches and paths
        threads: threads of torch; None: all cores
        device: "cpu", or "cuda": one GPU for each process of torchrun
        resume: continue from the last checkpoint
        tensorboard: write event files for TensorBoard into ``out``
        on_step: called after each step with (finished steps, steps of the run, loss)
        on_message: called with one line for a person

    Example:
        found = hnas.train("photos/", "trained/")
        print(found.accuracy["largest"])

    Raises:
        ValueError: an option is not understood, with the text of the command; or ``out`` holds another run.
        FileNotFoundError, FileExistsError: ``data`` is missing, or ``out`` holds a run and ``resume`` is not set.
        Unavailable: a package is missing.
    """
    given = dict(locals())  # the parameters: no other name is local yet
    from hnas.cli.training import train_parsed
    from hnas.export.device.errors import Unavailable, needing

    parsed = _parse_call({name: value for name, value in given.items() if not name.startswith("on_")})
    with needing("search"):
        try:
            record = train_parsed(parsed, on_step=on_step, on_message=on_message)
        except RuntimeError as error:
            if getattr(error, "code", None) != _MISSING:
                raise
            raise Unavailable(str(error)) from None
    return TrainedSupernet(Path(out), record or {})


_MISSING = 3  # the code of errors that say which package or which weights are missing


def _parse_call(parameters: Mapping[str, Any]) -> Any:
    """Return the parameters of a call as parsed flags of ``hnas-train``. Raise ValueError where it refuses them."""
    from hnas.cli.training import make_train_parser

    def refuse(message: str) -> NoReturn:
        raise ValueError(message)

    parser = make_train_parser()
    parser.error = refuse  # type: ignore[method-assign]
    words = []
    for name, value in parameters.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words.append(f"{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    return parser.parse_args(words)
