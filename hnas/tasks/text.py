"""Language modelling of characters: ``open_task(Path("book.txt"), window=64)``.

A network reads one-hot characters [N, window, alphabet] and returns the scores of the next character at every row.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hnas.data.text import NGram, Tokens, alphabet_of, encode, read_text
from hnas.data.windows import WORST, Rows, WindowedTask, Windows
from hnas.distillation import distil
from hnas.ranges import Count, PositiveInt, Share
from hnas.space import Shape
from hnas.units import Score


@dataclass(frozen=True)
class Text(WindowedTask):
    """The characters of a text, in order.

    tokens: int64 [characters], positions in the alphabet.
    alphabet: the characters of the whole text, sorted.
    windows: which characters train and which judge.
    smoothing: of the labels (0).
    distil: the weight of the divergence from a teacher in the loss; the cross-entropy has the rest.
    divergence: "kl" or "alpha" (``hnas.distillation``).
    """

    tokens: Tokens
    alphabet: str
    windows: Windows
    batch_size: int = 32
    seed: int = 0
    smoothing: float = 0.0
    distil: float = 0.5
    divergence: str = "kl"
    name: str = "text"

    @property
    def score(self) -> Score:
        """Return that the metric is the negative number of bits per character."""
        return Score("bits per character", False, ".3f")

    @property
    def space_arguments(self) -> Mapping[str, int]:
        """Return the size of the alphabet, twice, and the characters of a window."""
        return {"features": len(self.alphabet), "outputs": len(self.alphabet), "window": self.windows.window}

    def inputs(self, raw: Any, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
        """Return windows as one-hot rows [N, window, alphabet]."""
        del shapes
        return (F.one_hot(torch.from_numpy(raw), len(self.alphabet)).float(),)

    def loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        """Return the cross-entropy after the burn-in, mixed with the divergence from a teacher if there is one."""
        scores, aims = self._judged(outputs, labels)
        taught = None if teacher is None else teacher[:, self.windows.burn :].flatten(0, 1)
        return distil(scores, aims, taught, share=self.distil, smoothing=self.smoothing, divergence=self.divergence)

    def metric(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the negative bits per character after the burn-in."""
        scores, aims = self._judged(outputs, labels)
        bits = float(F.cross_entropy(scores.double(), aims)) / math.log(2)
        return -bits if bits < -WORST else WORST

    def baselines(self, split: str) -> dict[str, float]:
        """Return the metric of an interpolated 5-gram model of the training text."""
        first, last = self.windows.spans[split]
        return {"a 5-gram model": -self._model.bits(self.tokens[first:last].tolist())}

    def to_json(self) -> dict[str, Any]:
        """Return the alphabet, the window, and the digest of the text."""
        digest = hashlib.sha256(self.alphabet.encode() + self.tokens.tobytes()).hexdigest()
        window = {"window": self.windows.window, "burn": self.windows.burn}
        return {"kind": "text", "name": self.name, "alphabet": self.alphabet, **window, "digests": {"text": digest}}

    @cached_property
    def _model(self) -> NGram:
        begin, end = self.windows.spans["train"]
        return NGram(self.tokens[begin:end].tolist(), len(self.alphabet))

    def _cut(self, starts: Rows) -> tuple[Tokens, Tensor]:
        labels = self.windows.cut(self.tokens, starts, 1)
        return self.windows.cut(self.tokens, starts), torch.from_numpy(labels)

    def _judged(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        burn = self.windows.burn
        return outputs[:, burn:].flatten(0, 1), labels[:, burn:].flatten()


def open_task(
    folder: Path | None,
    *,
    window: PositiveInt = 64,
    burn: Count = 8,
    alpha: Share = 0.0,
    batch_size: int = 32,
    seed: int = 0,
    smoothing: float = 0.0,
    distil: float = 0.5,
    divergence: str = "kl",
) -> Text:
    """Return the task of predicting the next character of a text file.

    folder: the text file, in UTF-8. Its first 65 % train. The alphabet is that of the whole file.
    window: characters that a network reads in a training step.
    burn: the first characters of a window, whose outputs are not judged.
    alpha: share of the training text that trains architecture parameters and no weights: the split "alpha" (0).

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no text, is too short, or has too many different characters.

    Example: ``open_task(Path("book.txt"), window=64)``
    """
    if folder is None:
        raise ValueError("the task 'text' reads a UTF-8 text file; give --data FILE")
    text = read_text(folder)
    alphabet = alphabet_of(text)
    windows = Windows.divide(len(text), window, burn, 1, alpha)
    own = (batch_size, seed, smoothing, distil, divergence, folder.stem)
    return Text(encode(text, alphabet), alphabet, windows, *own)
