"""The commands on networks of your own, and the library, talk to nobody."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from hnas.cli import COMMANDS
from tests.benchmarks import bundles
from tests.export import onnx_files
from tests.export.zoo.keys import make_keys
from tests.hostile.builders import copied
from tests.privacy.test_search import GROWING, SEARCHING
from tests.privacy.tracing import addresses, deploy, entry, left_in, require_strace, sends, traced

pytestmark = pytest.mark.slow

LIBRARY = """
import torch
from hnas import export
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
samples = [(torch.randn(1, 3, 16, 16),) for _ in range(8)]
for device in ("onnxruntime-cpu", "openvino-cpu", "tflite-cpu"):
    artifact = export.compile(net, samples[0], device=device, precision="int8", calibration=samples, path=device)
    export.measure(artifact, [samples[0][0].numpy()], seconds=0.2)
"""
SUITE = """
[[claim]]
name = "size"
artifact = "out/bundle"
max_size = "1MB"

[[claim]]
name = "speed"
artifact = "out/bundle"
baseline = "out-ov/bundle"
at_least = 0.01
"""
LOOK_UP = "import socket\ntry: socket.getaddrinfo('telemetry.invalid', 443)\nexcept OSError: pass"


def test_the_check_sees_a_look_up(folder: Path) -> None:
    require_strace()
    assert traced(folder, "-c", LOOK_UP), "a look-up of a name went unseen"


def test_what_is_local(tmp_path: Path) -> None:
    v4 = 'connect(3, {{sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("{}")}}, 16) = 0\n'
    v6 = 'connect(3, {{sa_family=AF_INET6, sin6_port=htons(1), inet_pton(AF_INET6, "{}", &sin6_addr)}}, 28) = 0\n'
    local = (v4.format("127.0.0.53"), v4.format("0.0.0.0"), *map(v6.format, ("::1", "::", "::ffff:127.0.0.1")))
    away = ("::ffff:9.9.9.9", "2001:db8::1", "::1:2")
    (tmp_path / "trace").write_text("".join((*local, *map(v6.format, away), v4.format("10.0.0.1"))))
    assert addresses(tmp_path / "trace") == [*away, "10.0.0.1"]


def test_the_library_sends_nothing(folder: Path) -> None:
    require_strace()
    (folder / "library.py").write_text(LIBRARY)
    assert traced(folder, "library.py") == []


BUNDLE, BUILD = "out/bundle", ("--model", "mine:build", "--input", "1x4")
QUICK = ("--processes", "1", "--max-time", "5s")
OWN = (
    deploy("targets"),
    deploy("doctor"),
    deploy("export", *BUILD, "--target", "onnxruntime-cpu", "--out", "out"),
    deploy("show", BUNDLE),
    deploy("show", BUNDLE, "--layers"),
    deploy("verify", BUNDLE, "--model", "mine:build"),
    deploy("export", *BUILD, "--target", "openvino-cpu", "--out", "out-ov"),
    deploy("export", *BUILD, "--target", "tflite-cpu", "--out", "out-lite"),
    entry("hnas.benchmarks.cli.main", "check", BUNDLE, "--here", *QUICK),
    entry("hnas.benchmarks.cli.main", "compare", BUNDLE, "out-ov/bundle", *QUICK),
    entry("hnas.benchmarks.cli.main", "run", "suite.toml", "--history", "runs.jsonl", *QUICK),
    entry("hnas.benchmarks.cli.main", "history", "runs.jsonl"),
    deploy("pack", BUNDLE, "--out", "packed.tar"),
    deploy("push", BUNDLE, "--name", "mine", "--store", "store"),
    deploy("zoo", "--store", "store"),
    deploy("pull", "mine", "--store", "store", "--out", "pulled"),
    deploy("pull", "packed.tar", "--out", "unpacked"),
)
# The reader and the compiler of an ONNX file, in int8; the converter of others, for what the TFLite writer lacks.
IN_INT8 = ("--precision", "int8", "--calibration", "samples.npy")
OTHERS = (
    deploy("export", "net.onnx", "--target", "onnxruntime-cpu", *IN_INT8, "--out", "out-file"),
    deploy("export", "--model", "mine:computed", "--input", "1x4x8", "--target", "tflite-cpu", "--out", "out-computed"),
)
STEPS = (deploy("run", "series", "--csv", "a.csv"), deploy("run", "text", "--text", "ab", "--steps", "3"))
SIGN = deploy("sign", "series", "--key", "a.pem")


def test_every_command_is_traced() -> None:
    """The word after the code of `entry` is the command."""
    seen = {command[2] for command in (*OWN, *OTHERS, *STEPS, SIGN, *SEARCHING, *GROWING)}
    assert {*COMMANDS, "grow", "check", "compare", "history"} - seen == set()


def test_the_commands_on_a_network_of_your_own_send_nothing(folder: Path) -> None:
    require_strace()
    (folder / "store").mkdir()
    (folder / "suite.toml").write_text(SUITE)
    assert sends(folder, OWN) == {}
    made = ("runs.jsonl", "packed.tar", "pulled/manifest.json", "unpacked/manifest.json")
    assert all((folder / name).is_file() for name in made), "a command failed before its work"
    assert left_in(folder) == [], "something wrote into the user's home"


def test_files_and_other_converters_send_nothing(folder: Path) -> None:
    require_strace()
    pytest.importorskip("litert_torch")
    onnx_files.save(onnx_files.convolution(), folder / "net.onnx")
    np.save(folder / "samples.npy", np.concatenate([image for (image,) in onnx_files.images()]))
    assert sends(folder, OTHERS, (0,)) == {}
    converted = json.loads((folder / "out-computed/bundle/artifact/artifact.json").read_text())["notes"]["converter"]
    assert converted == "litert-torch"
    assert left_in(folder) == [], "something wrote into the user's home"


def test_steps_and_signatures_send_nothing(folder: Path) -> None:
    require_strace()
    said = {"features": ["a"], "targets": ["a"], "scaling": {"a": [0.0, 1.0]}, "horizon": 1}
    bundles.recurrent(folder, "series", "series-forecasting", said)
    bundles.recurrent(folder, "text", "text-modelling", {"alphabet": "ab"}, width=2)
    (folder / "a.csv").write_text("a\n1\n2\n3\n")
    assert sends(folder, STEPS, (0,)) == {}
    # Where model-signing is not installed, the command ends with code 3 after it has read the bundle.
    installed = find_spec("model_signing") is not None
    if installed:
        (folder / "keys").mkdir()
        copied(make_keys(folder / "keys") / "a.pem", folder / "a.pem")
    assert sends(folder, [SIGN], (0,) if installed else (3,)) == {}
    assert left_in(folder) == [], "something wrote into the user's home"
