"""Deploy a network to a device: build, verify, measure, and write a bundle.

Call `deploy("openvino-cpu", max_latency="5ms")` for a subnet of a supernet, or
`deploy_network("mynets:small", "openvino-cpu")` for a network of your own. The flags of the commands ``hnas-deploy``
and ``hnas-deploy export`` are the parameters of these functions. torch and numpy are imported only by a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hnas.deployment.options import NetworkOptions, Progress, SearchOptions, silent

if TYPE_CHECKING:
    from hnas.deployment.bundle import Deployment


def deploy(
    target: str,
    *,
    power: str | None = None,
    max_latency: str | None = None,
    min_accuracy: str | None = None,
    max_size: str | None = None,
    precision: str | None = None,
    budget: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    supernet: Path | str | None = None,
    data: Path | str | None = None,
    host: str | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    on: Progress = silent,
) -> Deployment:
    """Search a supernet for a device, and write a verified, measured bundle to the folder ``out``/bundle.

    Example:
        found = hnas.deploy("openvino-cpu", max_latency="1ms", budget="40evals")
        print(found.bundle.path, found.bundle.manifest.latency)

    Args:
        target: a device profile; hnas-deploy targets lists them
        power: power mode of the device, e.g. MAXN_SUPER; default: that of the device profile
        max_latency: hard constraint on the median latency at batch 1, e.g. 5ms
        min_accuracy: hard constraint on top-1 on the search images, e.g. 92%
        max_size: hard constraint on the size of the model files, e.g. 300KB
        precision: auto, fp32, fp16, bf16, int8, mixed (int8 with blocks in float) or w8 (int8 weights only); default:
            the device's
        budget: limit of the search: 32evals (default), 60s or 5min
        seed: seed of the search
        threads: number of threads of the runtime; default: that of the device profile (1 on CPUs)
        supernet: folder that hnas-train wrote; default: the shipped Fashion-MNIST supernet
        data: folder of IDX files, or with one sub-folder of images for each class; default: the shipped slice of
            Fashion-MNIST
        host: verify and measure on this device: ssh://[user@]device[:port][/path/of/python] or adb://[serial]
        out: folder of the run; default: runs/DEVICE, or runs/DEVICE-2 and so on if that exists
        resume: continue an interrupted run; for a finished run, show its result again
        on: called with (stage, steps done, steps in total)

    The folder ``out`` keeps the journal and every artifact that was built. With ``resume``:

    - The run was interrupted: finished evaluations, builds and measurements are read from its journal.
    - The run was finished: its bundle is checked byte for byte, and its records are returned. Nothing is repeated.
    - There is no run in ``out``: FileNotFoundError.
    - Options, weights, images, CPU or version of hnas differ from those of the run: ValueError names them.

    Raises:
        ValueError: an option is not understood, or another process uses ``out``.
        FileNotFoundError: a folder is missing, or there is nothing to resume.
        FileExistsError: ``out`` holds a run and ``resume`` is not set, or it holds other files.
        Unavailable: a runtime or the host is missing.
        Unreachable: no subnet meets every constraint. A subclass of ExportError.
        ExportError: no artifact can be kept.
    """
    options = SearchOptions(
        target=target,
        power=power,
        max_latency=max_latency,
        min_accuracy=min_accuracy,
        max_size=max_size,
        precision=precision,
        budget=budget,
        seed=seed,
        threads=threads,
        supernet=supernet,
        data=data,
        host=host,
        out=out,
        resume=resume,
    )
    from hnas.deployment.places import check_places
    from hnas.deployment.plan import require_packages, resolve

    plan = resolve(options)  # imports no torch, so that a wrong value is refused at once
    check_places(plan, resume=resume)
    require_packages(plan, search=True)
    from hnas.deployment.search import deploy_subnet

    return deploy_subnet(plan, options, on)


def deploy_network(
    model: str,
    target: str,
    *,
    power: str | None = None,
    inputs: Sequence[str] | None = None,
    dynamic: Sequence[str] | None = None,
    calibration: Path | str | None = None,
    precision: str | None = None,
    limit: str | None = None,
    classifier: bool = False,
    threads: int | None = None,
    host: str | None = None,
    out: Path | str | None = None,
    on: Progress = silent,
) -> Deployment:
    """Compile, verify and measure a static network of your own, and write its bundle to the folder ``out``/bundle.

    Example:
        found = hnas.deploy_network("mynets:small", "onnxruntime-cpu", inputs=["1x3x32x32"])
        print(found.bundle.path, found.bundle.manifest.latency)

    Each precision is built. The saved file is verified in a new process, and measured interleaved with the fp32
    artifact of the same network. The fastest artifact is kept. "auto" leaves out int8 without ``calibration``.

    Args:
        model: FILE.onnx, or PACKAGE.MODULE:CALLABLE, which returns an nn.Module, or (module, example inputs); these may
            be a dict or nested
        target: a device profile; hnas-deploy targets lists them
        power: power mode of the device, e.g. MAXN_SUPER; default: that of the device profile
        inputs: the shape of each input in order, batch first, e.g. 1x3x64x64; by name, e.g. image=1x3x64x64; or one
            file of inputs (.npz or .pt by name, past.0.key for nested ones, .npy)
        dynamic: a size that stays open, INPUT:AXIS=SIZE, e.g. image:0=batch or image:0=batch=1..32; once for each input
        calibration: .npz, .npy or .pt file of real inputs [N, ...], by the same names, needed for int8. With an array
            labels [N] of classes in it, the accuracy decides
        precision: auto, fp32, fp16, bf16, int8, mixed (int8 with blocks in float) or w8 (int8 weights only); default:
            the device's
        limit: what every artifact must reach, in dB and in top-1 agreement, e.g. "25dB|97%"; default: the limits of its
            precision, which refuse what is broken
        classifier: the first output holds class scores, so that top-1 agreement counts; default: only if softmax or
            argmax is the last operator
        threads: number of threads of the runtime; default: that of the device profile (1 on CPUs)
        host: verify and measure on this device: ssh://[user@]device[:port][/path/of/python] or adb://[serial]
        out: folder of the run, new or empty; default: runs/DEVICE, or runs/DEVICE-2 and so on if that exists
        on: called with (stage, steps done, steps in total)

    Raises:
        ValueError: an option is not understood, or the network cannot be captured.
        FileExistsError: ``out`` is not empty.
        Unavailable: a runtime or the host is missing.
        ExportError: no artifact computes the same outputs as the network.
    """
    options = NetworkOptions(
        model=model,
        target=target,
        power=power,
        inputs=tuple(inputs) if isinstance(inputs, list) else inputs,  # type: ignore[arg-type]  # it checks
        dynamic=tuple(dynamic) if isinstance(dynamic, list) else dynamic,  # type: ignore[arg-type]  # it checks
        calibration=calibration,
        precision=precision,
        limit=limit,
        classifier=classifier,
        threads=threads,
        host=host,
        out=out,
    )
    from hnas.deployment.examples import parse_dynamic, parse_inputs
    from hnas.deployment.places import require_calibration, require_model
    from hnas.deployment.plan import require_packages, resolve
    from hnas.export.proof.verification import Limits

    plan = resolve(options.search())  # imports no torch, so that a wrong value is refused at once
    given, sizes = parse_inputs(options.inputs), parse_dynamic(options.dynamic)
    limits = None if limit is None else Limits.parse(limit)
    require_packages(plan, search=False)
    require_model(model)
    require_calibration(None if calibration is None else Path(calibration))
    from hnas.deployment.own import deploy_own_network

    return deploy_own_network(plan, options, given, sizes, limits, on)
