"""Name the rungs of accuracy recovery, and read the records of unlike parts, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hnas.export.device.records import JSON

FILE_LADDER = ("bias",)  # those of an ONNX file, which has no torch graph
LADDER = ("bias", "equalise", "round", "finetune")  # the rungs of `hnas.export.int8.ladder`, cheapest first
TRIALS = 32  # largest number of mixed-precision assignments to try; each costs a build and a measurement
_ONE_SCALE = "one scale: "


def with_one_scale(apart: Sequence[JSON], why: str) -> list[JSON]:
    """Return the records of unlike parts (`hnas.export.int8.unlike`) with the reason why they share a scale."""
    return [{**record, "how": f"{_ONE_SCALE}{why}"} for record in apart if isinstance(record, dict)]


def int8_remarks(quantisation: object) -> tuple[str, ...]:
    """Return a sentence for each value in ``notes["quantisation"]`` whose unlike parts share a scale."""
    apart = quantisation.get("apart") if isinstance(quantisation, Mapping) else None
    return tuple(
        f"{record['value']} has parts of unlike ranges on {record['how']}"
        for record in (apart if isinstance(apart, list) else [])
        if isinstance(record, Mapping) and str(record.get("how", "")).startswith(_ONE_SCALE)
    )
