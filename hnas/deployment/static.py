"""A network of the user's own through everything after the search: compile, verify, measure, bundle."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hnas import export
from hnas.cost import Price
from hnas.cost.roofline import Kernel, latency_ms
from hnas.deployment import bundling, mixing
from hnas.deployment.build import (
    BLOCKS,
    CALIBRATION,
    PROCESSES,
    TRIALS,
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
from hnas.deployment.given import Given, given
from hnas.deployment.network import SEED, Arrays, read_calibration
from hnas.deployment.plan import Plan, resolve
from hnas.export.bundle.bundle import write_bundle
from hnas.export.bundle.manifest import Input, Manifest, Mixed
from hnas.export.compiling.compiler import Compiler
from hnas.export.device.errors import ExportError
from hnas.export.onnx.source import describe_origin
from hnas.export.proof.measurement import Comparison
from hnas.export.proof.slowdown import Slowdown
from hnas.export.proof.timing import compare_many
from hnas.export.proof.verification import Check
from hnas.hw_profiles import Device

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
    """Bundle the network that ``model`` names for ``target``; the table as plain values.

    model: "package.module:callable", or the path of an ONNX file, which goes to the backend as it is.
    inputs: shapes such as "1x3x64x64", one for each; calibration: a .npz or .npy file. Every precision is verified from
    disk in a new process and measured in turns with the network's own fp32 artifact; the fastest is kept. "auto" leaves
    int8 out where there is no calibration. ValueError for wrong use, a network that cannot be captured among it;
    Unavailable for a missing runtime; ExportError when no artifact computes what the network does.
    """
    plan = resolve(target, precision=precision, threads=threads, out=out, host=host)
    notify = on or (lambda _stage, _done, _total: None)
    with workshop(plan.out) as work, given(model, inputs, plan) as net:
        examples, kernels = net.examples, net.kernels()
        images = None if calibration is None else read_calibration(Path(calibration), examples, net.inputs)
        wanted, refused = _wanted(plan, images)
        with limited_compiler() as compiler:
            built, failed = _build(net, images, wanted, plan, work, notify, compiler)
            notify("measure", 0, 1)
            table = _judged(plan, built, wanted, examples)
            table = replace(table, slowdown=mixing.slowdown(plan, table.rows, table.best))
            if images is not None and net.editable:
                make = partial(_build_mixed, net, images, plan, work, compiler)
                table = _mixed(plan, table, failed, examples, notify, make)
        if table.best is None:
            raise ExportError("; ".join([*(r.reason for r in failed), *table.notes]))
        kept = table.rows[table.best]
        forecast = _predict(kernels, plan.device, sorted({b.artifact.precision for b in table.built.values()}))
        notify("bundle", 0, 1)
        options = {"calibration": calibration, "precision": precision, "threads": threads, "host": host}
        command = _command(model, target, inputs, options)
        manifest = _manifest(net.name, plan, kept, forecast, command)
        manifest = replace(manifest, slowdown=table.slowdown, mixed=table.mixed)
        baseline = None if manifest.speedup is None else table.built["fp32"].artifact
        lines = _rows(net.name, table, forecast)
        bundle = write_bundle(plan.out / "bundle", manifest, artifact=kept.built.artifact, baseline=baseline)
    return {
        "target": plan.device.name,
        "name": manifest.name,
        "bundle": str(bundle.path),
        "rows": lines,
        "refused": [{"precision": r.precision, "reason": r.reason} for r in (*refused, *failed)],
        "notes": [*filter(None, [describe_origin(manifest.source)]), *table.notes],
        "footnote": f"{bundling.conditions(plan, kept.comparison)}; speedup against {AGAINST}",
    }


@dataclass(frozen=True)
class Table:
    """The artifacts by label, fp32 first, and how each compares with it; ``rows`` were asked for, ``best`` is kept."""

    built: Mapping[str, Built]
    comparisons: Mapping[str, Comparison]
    rows: tuple[Row, ...]
    best: int | None
    slowdown: Slowdown | None = None
    mixed: Mixed | None = None

    @property
    def notes(self) -> list[str]:
        """What is said below it."""
        return bundling.notes(self.slowdown, self.mixed)


def _wanted(plan: Plan, images: Arrays | None) -> tuple[list[str], list[Refused]]:
    """The precisions to build and those left out of "auto": int8 has no ranges without real inputs."""
    if images is not None or "int8" not in plan.precisions:
        return list(plan.precisions), []
    if plan.precision != "auto":
        raise ValueError("int8 needs real inputs; give them with --calibration FILE (.npz or .npy, [N, ...] each)")
    missing = Refused("int8", "no real inputs were given; add --calibration FILE")
    return [p for p in plan.precisions if p != "int8"], [missing]


def _build(
    net: Given,
    images: Arrays | None,
    wanted: Sequence[str],
    plan: Plan,
    work: Path,
    notify: Stage,
    compiler: Compiler,
) -> tuple[dict[str, Built], list[Refused]]:
    """The network in fp32, then in every precision wanted, each verified; by precision."""

    def make(precision: str) -> Built:
        real = None if images is None else [_first(images, net.examples, CALIBRATION)]
        artifact = export.compile(
            net.network,
            net.examples,
            device=plan.device.name,
            precision=precision,
            calibration=real,
            threads=plan.threads,
            path=work / precision,
            options=export.CompileOptions(
                evidence=real,
                recover="auto" if precision == "int8" and net.editable else None,
                open_worker=plan.open if plan.site else None,
                compiler=compiler,
            ),
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
        spare=plan.mixes,
    )
    return {"fp32": baseline} | {b.label: b for b in built}, refused


def _judged(plan: Plan, built: Mapping[str, Built], wanted: Sequence[str], examples: Sequence[Tensor]) -> Table:
    """The artifacts in turns with the fp32 one, and the fastest of those that were wanted."""
    comparisons = _compare(plan, built, examples)
    asked = [label for label in built if label in wanted]
    best, rows = judge([built[label] for label in asked], [comparisons.get(label) for label in asked], 0.0, 0.0)
    return Table(built, comparisons, tuple(rows), best)


def _mixed(
    plan: Plan,
    table: Table,
    failed: Sequence[Refused],
    examples: Sequence[Tensor],
    notify: Stage,
    make: Callable[[], Built],
) -> Table:
    """The table with int8 with blocks in float, which ``make`` builds, where `mixing.reason` says that it may help."""
    why = mixing.reason(plan, table.rows, failed, table.slowdown)
    if why is None:
        return table
    notify("mixed", 0, 1)
    made = mixing.attempt(make)
    if isinstance(made, str):
        return replace(table, mixed=Mixed(why, made))
    asked = [*(row.built.label for row in table.rows), "mixed"]
    found = _judged(plan, {**table.built, "mixed": made}, asked, examples)
    return replace(found, slowdown=table.slowdown, mixed=mixing.record(why, found.rows[-1]))


def _build_mixed(net: Given, images: Arrays, plan: Plan, work: Path, compiler: Compiler) -> Built:
    """The fastest int8 artifact with blocks in float that verifies; no accuracy is known to judge it by."""
    assert isinstance(net.network, nn.Module)
    artifact = export.compile_mixed(
        net.network,
        net.examples,
        accept=lambda _: True,
        device=plan.device.name,
        calibration=[_first(images, net.examples, CALIBRATION)],
        threads=plan.threads,
        path=work / "mixed",
        options=export.MixedOptions(compiler=compiler, trials=TRIALS),
    )
    return Built(artifact, Check.from_json(artifact.notes["verification"]), {})


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


def _predict(kernels: list[Kernel], device: Device, precisions: Iterable[str]) -> dict[str, Price]:
    """What the profile of ``device`` says of a network in each precision, and of it in fp32 as "baseline"."""
    low, high = device.band

    def price(precision: str) -> Price:
        value = latency_ms(kernels, device, precision)
        return Price(value, "ms", value * low, value * high, "predicted")

    return {precision: price(precision) for precision in precisions} | {"baseline": price("fp32")}


def _manifest(name: str, plan: Plan, kept: Row, forecast: Mapping[str, Price], command: str) -> Manifest:
    """What the bundle says; fp32 kept has no speedup, as it is its own baseline."""
    artifact, comparison = kept.built.artifact, kept.comparison
    source = artifact.notes.get("source")
    first, *others = artifact.inputs
    layout = "NCHW" if len(first.shape) == 4 else "the module's own"
    latency = bundling.latency(comparison, forecast[artifact.precision], artifact)
    faster = bundling.speedup(comparison, forecast, artifact.precision, AGAINST)
    return Manifest(
        name=f"{name}-{plan.device.name}-{kept.built.label}",
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
        seeds={"inputs" if source else "torch": SEED},
        data=None,
        reproduce=command,
        build=bundling.build_note(kept.built),
        source=source if isinstance(source, dict) else None,
    )


def _rows(name: str, table: Table, forecast: Mapping[str, Price]) -> list[dict[str, Any]]:
    """The rows to show: fp32 first, as the baseline where it was not asked for."""
    verdicts = {row.built.label: row.verdict for row in table.rows}
    found = []
    for label, each in table.built.items():
        comparison, precision = table.comparisons.get(label), each.artifact.precision
        line = bundling.row(name, each, comparison, verdicts.get(label, "baseline"), forecast[precision])
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
