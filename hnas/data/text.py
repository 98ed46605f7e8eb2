"""Characters of a text file as numbers, and an n-gram model of them: ``read_text(Path("book.txt"))``. Numpy only."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnas.files import read_plain

Tokens = NDArray[np.int64]

_LARGEST = 2**26  # bytes of a text file
MOST = 512  # different characters


def read_text(file: Path) -> str:
    """Return the content of a UTF-8 text file of at most 64 MiB.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no text, empty, or too large.
    """
    if not file.exists():
        raise FileNotFoundError(f"no text {file}; give a UTF-8 text file")
    try:
        text = read_plain(file, _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error}") from None
    if not text:
        raise ValueError(f"{file} is empty; give a UTF-8 text file")
    if "\0" in text:
        raise ValueError(f"{file} is no text: character {text.index(chr(0)) + 1} is NUL; give a UTF-8 text file")
    return text


def alphabet_of(text: str) -> str:
    """Return the characters of a text, sorted. Raise ValueError if they are fewer than 2 or more than 512."""
    found = "".join(sorted(set(text)))
    if not 2 <= len(found) <= MOST:
        raise ValueError(f"the text has {len(found)} different characters; a network of characters takes 2 to {MOST}")
    return found


def encode(text: str, alphabet: str) -> Tokens:
    """Return the position of each character in the alphabet. Raise ValueError for a character that is not in it."""
    known = {character: index for index, character in enumerate(alphabet)}
    for at, character in enumerate(text):
        if character not in known:
            where = f"character {at + 1} of the text is {character!r}, which was not in the training text"
            raise ValueError(f"{where}; the network knows {''.join(alphabet).strip()[:40]!r}")
    return np.asarray([known[character] for character in text], np.int64)


class NGram:
    """A character model that interpolates orders 0 to ``order`` by Witten and Bell's weights (1991).

    tokens: the training text.
    characters: size of the alphabet.

    Example: ``NGram(tokens[:5000], 60).bits(tokens[5000:])`` is the bits per character of the rest.
    """

    def __init__(self, tokens: Sequence[int], characters: int, order: int = 4) -> None:
        self.order = order
        self.characters = characters
        self._counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(order + 1)]
        text = [int(token) for token in tokens]
        for n, table in enumerate(self._counts):
            for at in range(n, len(text)):
                table[tuple(text[at - n : at])][text[at]] += 1

    def probability(self, context: Sequence[int], token: int) -> float:
        """Return the probability of ``token`` after ``context``, of which the last ``order`` characters count."""
        found = 1 / self.characters
        for n, table in enumerate(self._counts):
            if n > len(context):
                break
            counts = table.get(tuple(context[len(context) - n :]))
            if counts is None:
                break
            total, kinds = counts.total(), len(counts)
            found = (counts[token] + kinds * found) / (total + kinds)
        return found

    def bits(self, tokens: Sequence[int]) -> float:
        """Return the mean of -log2 of the probabilities of all tokens after the first."""
        text = [int(token) for token in tokens]
        lost = [
            -math.log2(self.probability(text[max(0, at - self.order) : at], text[at])) for at in range(1, len(text))
        ]
        return sum(lost) / max(1, len(lost))
