"""A network of the user's own through everything after the search: compile, verify, measure, bundle."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import export
from export import zoo
from export.compiler import Compiler
from export.errors import ExportError
from export.fusion import fuse
from export.manifest import Input, Manifest
from export.measurement import Comparison, compare_many
from export.program import Program, capture
from export.verification import Check
from hnas.cost import Price
from hnas.cost.roofline import latency_ms, trace
from hnas.deployment import bundling
from hnas.deployment.build import (
    BLOCKS,
    CALIBRATION,
    PROCESSES,
    Built,
    Refused,
    Row,
    Stage,
    build_each,
    engine_of,
    judge,
    limited_compiler,
)
from hnas.deployment.folder import workshop
from hnas.deployment.network import SEED, Arrays, load, read_calibration
from hnas.deployment.plan import Plan, resolve
from hw_profiles import Device

AGAINST = "the same network in fp32 on the same backend"


def export_static(
    model: str,
    target: str,
    *,
    inputs: Sequence[str] | None = None,
    calibration: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    out: str | None = None,
    host: str | None = None,
    on: Stage | None = None,
) -> dict[str, Any]:
    """Bundle the network that ``model`` ("package.module:callable") names for ``target``; the table as plain values.

    inputs: shapes such as "1x3x64x64", one for each; calibration: a .npz or .npy file. Every precision is verified from
    disk in a new process and measured in turns with the network's own fp32 artifact; the fastest is kept. "auto" leaves
    int8 out where there is no calibration. ValueError for wrong use, a network that cannot be captured among it;
    Unavailable for a missing runtime; ExportError when no artifact computes what the network does.
    """
    plan = resolve(target, precision=precision, threads=threads, out=out, host=host)
    notify = on or (lambda _stage, _done, _total: None)
    with workshop(plan.out) as work:
        net, examples = load(model, inputs)
        program = _program(net, examples)
        images = None if calibration is None else read_calibration(Path(calibration), examples)
        wanted, refused = _wanted(plan, images)
        with limited_compiler() as compiler:
            built, failed = _build(net, examples, images, wanted, plan, work, notify, compiler)
        notify("measure", 0, 1)
        comparisons = _compare(plan, built, examples)
        tried = [b for b in built.values() if b.artifact.precision in wanted]
        best, rows = judge(tried, [comparisons.get(b.artifact.precision) for b in tried], 0.0, 0.0)
        assert best is not None  # nothing is refused for its accuracy where none is known
        forecast = _predict(program, plan.device, built)
        notify("bundle", 0, 1)
        options = {"calibration": calibration, "precision": precision, "threads": threads, "host": host}
        command = _command(model, target, inputs, options)
        manifest = _manifest(type(net).__name__, plan, rows[best], forecast, command)
        kept = rows[best].built.artifact
        baseline = None if manifest.speedup is None else built["fp32"].artifact
        lines = _rows(type(net).__name__, built, rows, comparisons, forecast)
        bundle = zoo.write(plan.out / "bundle", manifest, artifact=kept, baseline=baseline)
    return {
        "target": plan.device.name,
        "name": manifest.name,
        "bundle": str(bundle.path),
        "rows": lines,
        "refused": [{"precision": r.precision, "reason": r.reason} for r in (*refused, *failed)],
        "footnote": f"{bundling.conditions(plan, rows[best].comparison)}; speedup against {AGAINST}",
    }


def _program(net: nn.Module, examples: tuple[Tensor, ...]) -> Program:
    """The captured and fused network; one that cannot be captured is wrong input, NaN weights among it."""
    try:
        captured = capture(net, examples)
    except ExportError as error:
        raise ValueError(str(error)) from error
    return fuse(captured)


def _wanted(plan: Plan, images: Arrays | None) -> tuple[list[str], list[Refused]]:
    """The precisions to build and those left out of "auto": int8 has no ranges without real inputs."""
    if images is not None or "int8" not in plan.precisions:
        return list(plan.precisions), []
    if plan.precision == "int8":
        raise ValueError("int8 needs real inputs; give them with --calibration FILE (.npz or .npy, [N, ...] each)")
    missing = Refused("int8", "no real inputs were given; add --calibration FILE")
    return [p for p in plan.precisions if p != "int8"], [missing]


def _build(
    net: nn.Module,
    examples: tuple[Tensor, ...],
    images: Arrays | None,
    wanted: Sequence[str],
    plan: Plan,
    work: Path,
    notify: Stage,
    compiler: Compiler,
) -> tuple[dict[str, Built], list[Refused]]:
    """The network in fp32, then in every precision wanted, each verified; by precision."""

    def make(precision: str) -> Built:
        artifact = export.compile(
            net,
            examples,
            device=plan.device.name,
            precision=precision,
            calibration=None if images is None else [_first(images, examples, CALIBRATION)],
            evidence=None if images is None else [_first(images, examples, CALIBRATION)],
            threads=plan.threads,
            path=work / precision,
            opened=plan.open if plan.site else None,
            compiler=compiler,
        )
        found = Check.from_json(artifact.notes["verification"])
        if plan.site is None:
            return Built(artifact, found, {})
        with plan.open(artifact) as worker:
            return Built(artifact, found, {}, engine_of(worker))

    steps = iter(range(1, len(wanted) + 2))
    notify("build", 0, len(wanted) + 1)
    baseline = make("fp32")
    built, refused = build_each(
        wanted,
        lambda precision: baseline if precision == "fp32" else make(precision),
        lambda _: notify("build", next(steps), len(wanted) + 1),
    )
    return {"fp32": baseline} | {b.artifact.precision: b for b in built}, refused


def _first(images: Arrays, examples: Sequence[Tensor], batches: int) -> Arrays:
    return tuple(array[: batches * len(example)] for array, example in zip(images, examples, strict=True))


def _compare(plan: Plan, built: Mapping[str, Built], examples: Sequence[Tensor]) -> dict[str, Comparison]:
    """Every artifact in turns with the fp32 one, itself included: that is the noise. Nothing for a device elsewhere."""
    if not plan.measured:
        return {}
    artifacts = [b.artifact for b in built.values()]
    inputs = [value.numpy() for value in examples]
    session: dict[str, Any] = {"processes": PROCESSES, "blocks": BLOCKS, "transport": plan.transport}
    found = compare_many(built["fp32"].artifact, artifacts, inputs, **session)
    return dict(zip(built, found, strict=True))


def _predict(program: Program, device: Device, precisions: Iterable[str]) -> dict[str, Price]:
    """What the profile of ``device`` says of the fused graph in each precision, and of it in fp32 as "baseline"."""
    graph = copy.deepcopy(program.module).to("meta")
    inputs = [value.to("meta") for value in program.inputs]
    kernels = trace(_Closed(lambda: graph(*inputs)))
    low, high = device.band

    def price(precision: str) -> Price:
        value = latency_ms(kernels, device, precision)
        return Price(value, "ms", value * low, value * high, "predicted")

    return {precision: price(precision) for precision in precisions} | {"baseline": price("fp32")}


class _Closed(nn.Module):
    """A call as a module without inputs; what it calls stays in eval mode, at its own batch and types."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self) -> Any:
        return self.call()


def _manifest(name: str, plan: Plan, kept: Row, forecast: Mapping[str, Price], command: str) -> Manifest:
    """What the bundle says; fp32 kept has no speedup, as it is its own baseline."""
    artifact, comparison = kept.built.artifact, kept.comparison
    first, *others = artifact.inputs
    layout = "NCHW" if len(first.shape) == 4 else "the module's own"
    latency = bundling.latency(comparison, forecast[artifact.precision], artifact)
    faster = bundling.speedup(comparison, forecast, artifact.precision, AGAINST)
    return Manifest(
        name=f"{name}-{plan.device.name}-{artifact.precision}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task="a task of its own",
        target=plan.device.name,
        backend=artifact.backend,
        precision=artifact.precision,
        arch=None,
        space=None,
        labels=(),
        input=None if others else Input(first.shape, first.dtype, layout),
        accuracy=None,
        verification=kept.built.check,
        latency=replace(latency, batch=first.shape[0] if first.shape else 1),
        speedup=None if artifact.precision == "fp32" else faster,
        machine=plan.machine,
        versions={**artifact.versions, **plan.versions},
        seeds={"torch": SEED},
        data=None,
        reproduce=command,
        build=bundling.build_note(kept.built),
    )


def _rows(
    name: str,
    built: Mapping[str, Built],
    rows: Sequence[Row],
    comparisons: Mapping[str, Comparison],
    forecast: Mapping[str, Price],
) -> list[dict[str, Any]]:
    """The table: fp32 first, as the baseline where it was not asked for."""
    verdicts = {row.built.artifact.precision: row.verdict for row in rows}
    found = []
    for precision, each in built.items():
        comparison = comparisons.get(precision)
        line = bundling.row(name, each, comparison, verdicts.get(precision, "baseline"), forecast[precision])
        if precision != "fp32":
            line["speedup"] = bundling.factor(bundling.speedup(comparison, forecast, precision, AGAINST))
        found.append(line)
    return found


def _command(
    model: str,
    target: str,
    inputs: Sequence[str] | None,
    options: Mapping[str, object],
) -> str:
    """The command that repeats this export."""
    words = ["hnas-deploy", "export", "--model", model, "--target", target]
    for shape in inputs or ():
        words += ["--input", shape]
    for option, value in options.items():
        if value is not None:
            words += [f"--{option}", str(value)]
    return shlex.join(words)
