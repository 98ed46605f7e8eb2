"""Write fitted efficiencies for people and for `hnas.hw_profiles.calibration`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hnas.benchmarks.jetson.errors import RowPrediction, evidence_of
from hnas.hw_profiles.calibration import Calibration


def parameters(found: Calibration, precisions: Collection[str]) -> list[str]:
    """Return the efficiencies in words, the peaks of those ``precisions`` that the rows have."""
    shares = ", ".join(
        f"{precision} {share:.3f}" for precision, share in found.compute.items() if precision in precisions
    )
    return [
        f"fitted {found.fitted}",
        f"share of the peak: {shares}; fp32 on tensor cores is TF32, as TensorRT computes by default",
        f"share of the bandwidth {found.bandwidth:.3f}, of it in depthwise convolutions {found.depthwise:.3f}",
        f"share of an element-wise pass {found.elementwise:.3f}, launch {found.launch_us:.2f} us",
    ]


def to_toml(head: str, found: Calibration, left: Sequence[RowPrediction], held: Sequence[RowPrediction]) -> str:
    """Return the text of the file that `hnas.hw_profiles.calibration` reads."""
    kinds = ", ".join(f'"{kind}"' for kind in found.kinds)
    lines = [head, f'fitted = "{found.fitted}"', f"kinds = [{kinds}]"]
    lines += [f"{key} = {getattr(found, key):.3f}" for key in ("bandwidth", "depthwise", "elementwise", "launch_us")]
    precisions = {each.sample.row.precision for each in left}
    shares = {name: share for name, share in found.compute.items() if name in precisions}
    lines += ["", "[compute]", *(f"{name} = {share:.3f}" for name, share in shares.items())]
    known = evidence_of(left, "leave-one-model-out")
    fitted = {(each.device, each.power) for each in known}
    others = [each for each in evidence_of(held, "held out") if (each.device, each.power) not in fitted]
    for each in (*known, *others):
        lines += ["", "[[evidence]]"]
        lines += [f'{key} = "{getattr(each, key)}"' for key in ("device", "power", "method", "timing")]
        lines += [f"{key} = {getattr(each, key)}" for key in ("rows", "models")]
        lines += [f"{key} = {getattr(each, key):.3f}" for key in ("mean", "worst", "low", "high")]
        lines += [f"gflop = [{each.gflop[0]:.3f}, {each.gflop[1]:.3f}]"]
    return "\n".join(lines) + "\n"
