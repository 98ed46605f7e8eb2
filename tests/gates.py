"""Check what this tree builds against fixed bounds, with ``hnas-bench run`` as a user's CI does.

``python -m tests.gates`` builds one subnet of the shipped supernet for each CPU runtime, in ``build/gates``. Then it
runs two suites of ``.ci``:

1. ``gates.toml``: sizes, multiply-accumulates, LiteRT's layers: no clock, and no CPU decides them. A bound that does
   not hold fails CI.
2. ``information.toml``: claims on latency, and on layers that runtimes choose by the CPU. Their verdicts are printed
   and change nothing: CI shares its machine, and runs on more than one kind.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITES = ROOT / ".ci"
BUILT = ROOT / "build" / "gates"

# With these the smallest subnet has every operation of its space but the skip.
CHANGES = {
    "stages.0.blocks.1.op": "fusedconv",
    "stages.1.blocks.1.op": "convnext",
    "stages.2.blocks.1.op": "attention",
}
TARGETS = ("onnxruntime-cpu", "openvino-cpu", "tflite-cpu")
PRECISIONS = ("fp32", "int8")
JUDGED = (0, 1, 4)  # exit codes of hnas-bench where every claim has a verdict


def build(folder: Path) -> None:
    """Compile the subnet for every runtime and precision, into ``folder/TARGET-PRECISION``."""
    from hnas import export
    from hnas.deployment.pricing import held_out_samples
    from hnas.deployment.source import open_source
    from hnas.study import Study

    source = open_source(None, None)
    space = source.supernet.space
    arch = space.smallest
    for name, option in CHANGES.items():
        arch = space.changed(arch, name, option)
    study = Study(source.supernet, source.task)
    module = source.supernet.extract(arch, study.calibrate(arch))
    fitted, unseen = (held_out_samples(study, split, space.example(arch), 64) for split in ("calibration", "search"))
    for target in TARGETS:
        for precision in PRECISIONS:
            export.compile(
                module,
                fitted[0],
                path=folder / f"{target}-{precision}",
                device=target,
                precision=precision,
                calibration=fitted,
                options=export.CompileOptions(evidence=unseen),
            )


def run(suite: str) -> int:
    """Return the exit code of ``hnas-bench run`` on a suite of ``.ci``."""
    words = [sys.executable, "-m", "hnas.benchmarks", "run", str(SUITES / suite)]
    return subprocess.run(words, cwd=ROOT, check=False).returncode


def main() -> int:
    """Build, run both suites, and return the exit code of the job."""
    shutil.rmtree(BUILT, ignore_errors=True)
    build(BUILT)
    hard = run("gates.toml")
    informed = run("information.toml")
    return hard or (0 if informed in JUDGED else informed)


if __name__ == "__main__":
    sys.exit(main())
