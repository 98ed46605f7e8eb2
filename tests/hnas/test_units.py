"""Quantities as people type them, and the texts that are refused."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnas import units


@pytest.mark.parametrize(
    ("text", "value"), [("5ms", 5.0), ("800us", 0.8), ("0.1s", 100.0), (" 2 ms ", 2.0), (".5ms", 0.5), ("5.ms", 5.0)]
)
def test_latency(text: str, value: float):
    assert units.parse_latency_ms(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"), [("10B", 10), ("300KB", 3e5), ("2MB", 2e6), ("1.5GB", 1.5e9), ("1KiB", 1024), ("1MiB", 2**20)]
)
def test_size(text: str, value: float):
    assert units.parse_size_bytes(text) == value


@pytest.mark.parametrize(("text", "value"), [("92%", 0.92), ("0.92", 0.92), ("100%", 1.0), ("1", 1.0), ("0", 0.0)])
def test_share(text: str, value: float):
    assert units.parse_share(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"), [("40evals", (40, None)), ("1eval", (1, None)), ("60s", (None, 60.0)), ("1.5min", (None, 90.0))]
)
def test_budget(text: str, value: tuple[int | None, float | None]):
    assert units.parse_budget(text) == value


WRONG = ("", "ms", "5", "5 m s", "-5ms", "0ms", "0KB", "0evals", "nan", "inf", "1e3ms", "5MS", "5kb", "½s", "5ms\n5ms")


@pytest.mark.parametrize("text", [*WRONG, "9" * 400 + "ms", "9" * 400 + "evals", "9" * 400 + "MB", "0.5evals", "101%"])
@pytest.mark.parametrize("read", [units.parse_latency_ms, units.parse_size_bytes, units.parse_budget])
def test_what_is_not_understood_is_one_line_with_an_example(read, text: str):
    with pytest.raises(ValueError, match=re.escape(repr(text)) + " is not understood; write for example "):
        read(text)


@pytest.mark.parametrize("text", ["92", "1.01", "-1%", "101%", "", "%", "0.9x", "nan"])
def test_a_share_is_a_share(text: str):
    with pytest.raises(ValueError, match=r"is not understood; write for example 92% or 0\.92"):
        units.parse_share(text)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str):
    for read in (units.parse_latency_ms, units.parse_size_bytes, units.parse_share, units.parse_budget):
        with suppress(ValueError):
            assert read(text) is not None
