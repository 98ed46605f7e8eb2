"""Test the commands that a document shows indented, without a fence: a test runs each, or a reason why not is here.

Commands with a placeholder (DIR, BUNDLE, [options], package.module) show a form and cannot run; tests/test_readme.py
checks their flags and targets, as it does for all others.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests import test_readme
from tests.benchmarks.gate import test_templates

NOT_RUN = {
    "takes minutes to hours; tests/benchmarks runs its parts": (
        "python -m hnas.benchmarks.costs.overhead",
        "python -m hnas.benchmarks.costs.overhead --whole --jobs 6",
        "python -m hnas.benchmarks.costs.recurrent",
        "python -m hnas.benchmarks.costs.supernet",
        "python -m hnas.benchmarks.costs.waiting",
        "python -m hnas.benchmarks.costs.waiting --busy 2",
        "python -m hnas.benchmarks.papers C3",
        "python -m hnas.benchmarks.papers C5",
        "python -m hnas.benchmarks.papers C6",
        "python -m hnas.benchmarks.papers D1",
        "python -m hnas.benchmarks.papers all --quick",
        "python -m hnas.benchmarks.peers --quick",
        "python -m hnas.benchmarks.peers.accuracy --nets lite0_imagenet",
        "python -m hnas.benchmarks.zoo",
        "python -m hnas.benchmarks.zoo --only 'ViT,timm.res*' --backends tflite",
        "python -m hnas.benchmarks.zoo --failed",
        "python -m hnas.benchmarks.zoo --print --write docs/coverage.md --out benchmarks/zoo/results/coverage.jsonl",
        "python -m hnas.benchmarks.zoo --quick",
    ),
    "installs a cross-compiler, or needs it": (
        "python -m hnas.benchmarks.costs.arm64 --prepare",
        "python -m hnas.benchmarks.costs.arm64 runs/raspberry-pi-5/bundle",
    ),
    "needs the device; tests/export/remote and tests/hnas/deployment have stand-ins": (
        "hnas-bench check runs/raspberry-pi-5/bundle --host ssh://pi@raspberrypi",
        "hnas-deploy --target cuda",
        "hnas-deploy --target jetson --host ssh://me@jetson:2222/~/venv/bin/python",
        "hnas-deploy --target pixel-8 --host adb://",
        "hnas-deploy --target raspberry-pi-5 --host ssh://pi@raspberrypi",
        "hnas-deploy export --model mynet:net --input 1x3x224x224 --target cuda",
        "hnas-deploy export --model mynet:net --input 1x3x64x64 --target jetson --host ssh://me@jetson",
    ),
    "needs a store of that kind or the packages of sign.lock; tests/hnas/cli/test_zoo.py has both": (
        "hnas-deploy pull photos-cpu --out photos-cpu --require-signature public.pem",
        "hnas-deploy pull photos-cpu --out photos-cpu --store s3://bucket/models",
        "hnas-deploy push runs/photos/bundle --name photos-cpu --store s3://bucket/models",
        "hnas-deploy sign runs/photos/bundle --key private.pem",
        "hnas-deploy zoo --store s3://bucket/models",
    ),
    "searches the shipped supernet for long, or needs one that was trained for hours": (
        "hnas-bench compare runs/mobilenet/bundle runs/openvino-cpu/bundle",
        "hnas-deploy --target jetson --power MAXN_SUPER",
        "hnas-deploy --target openvino-cpu --png front.png",
        "hnas-deploy --target openvino-cpu --supernet mobilenet --out runs/mobilenet",
    ),
    "needs calibration inputs; tests/hnas/deployment/test_own_onnx.py gives some": (
        "hnas-deploy export net.onnx --target openvino-cpu --precision int8 --calibration samples.npz --out made",
    ),
    "writes into the home folder; tests/test_main.py prints the script": (
        "hnas-deploy --print-completion bash > ~/.local/share/bash-completion/completions/hnas-deploy",
    ),
}
PLACEHOLDER = re.compile(r"(?<![A-Za-z0-9_])(?!MAXN_SUPER)[A-Z][A-Z_]*(?![A-Za-z0-9])|\[|package\.module")


def indented(page: Path) -> list[str]:
    """Return the commands of this project that stand outside of fences, without comments and placeholders."""
    found, fenced = [], False
    for line in page.read_text("utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and re.match(r"\s{4,}(hnas-\w+|python -m hnas|torchrun)\b", line):
            found.append(" ".join(re.sub(r"\s+#.*", "", line).split()))
    return [line for line in found if not PLACEHOLDER.search(line)]


def run_by_tests() -> set[str]:
    """Return the commands that other tests run: those of tested blocks, and those that tests read from a page."""
    fenced = [block for page in test_readme.PAGES for block in test_readme.runnable(page) if block.language == "bash"]
    typed = {shlex.join(words) for block in fenced for words in test_readme.commands(block.text)}
    return {*typed, *test_templates.typed(), *(line for lines in test_readme.AFTERWARDS.values() for line in lines)}


@pytest.mark.parametrize("page", test_readme.PAGES, ids=test_readme.named)
def test_a_command_is_run_or_there_is_a_reason(page: Path) -> None:
    known = run_by_tests() | {line for lines in NOT_RUN.values() for line in lines}
    unknown = [line for line in indented(page) if line not in known]
    assert not unknown, "run these by a test, or state in NOT_RUN why not:\n" + "\n".join(unknown)


def test_no_reason_is_stale() -> None:
    shown = {line for page in test_readme.PAGES for line in indented(page)}
    listed = [line for lines in NOT_RUN.values() for line in lines]
    assert len(listed) == len(set(listed))
    assert not set(listed) - shown, "no document shows these any more"
    assert not set(listed) & run_by_tests(), "a test runs these"
    assert {line for lines in test_readme.AFTERWARDS.values() for line in lines} <= shown


def test_indented_commands_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "    hnas-train --recipe x \\\n      --epochs 2   # long\n    pip install x\n    hnas-bench check BUNDLE\n"
        "```bash\n    hnas-deploy doctor\n```\n    python -m hnas.benchmarks.zoo\n"
    )
    assert indented(page) == ["hnas-train --recipe x --epochs 2", "python -m hnas.benchmarks.zoo"]
