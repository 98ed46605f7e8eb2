"""Find the known word that is nearest to a misspelt one: `did_you_mean("targts", commands)`."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the nearest known word, or an empty text if none is near."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
