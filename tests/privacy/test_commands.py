"""The commands on networks of your own, and the library, talk to nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_the_commands_on_a_network_of_your_own_send_nothing(folder: Path) -> None:
    require_strace()
    bundle, build = "out/bundle", ("--model", "mine:build", "--input", "1x4")
    quick = ("--processes", "1", "--max-time", "5s")
    commands = [
        deploy("targets"),
        deploy("doctor"),
        deploy("export", *build, "--target", "onnxruntime-cpu", "--out", "out"),
        deploy("show", bundle),
        deploy("show", bundle, "--layers"),
        deploy("verify", bundle, "--model", "mine:build"),
        deploy("export", *build, "--target", "openvino-cpu", "--out", "out-ov"),
        deploy("export", *build, "--target", "tflite-cpu", "--out", "out-lite"),
        entry("hnas.benchmarks.cli.main", "check", bundle, "--here", *quick),
        entry("hnas.benchmarks.cli.main", "compare", bundle, "out-ov/bundle", *quick),
        entry("hnas.benchmarks.cli.main", "run", "suite.toml", "--history", "runs.jsonl", *quick),
        entry("hnas.benchmarks.cli.main", "history", "runs.jsonl"),
        deploy("pack", bundle, "--out", "packed.tar"),
        deploy("push", bundle, "--name", "mine", "--store", "store"),
        deploy("zoo", "--store", "store"),
        deploy("pull", "mine", "--store", "store", "--out", "pulled"),
        deploy("pull", "packed.tar", "--out", "unpacked"),
    ]
    (folder / "store").mkdir()
    (folder / "suite.toml").write_text(SUITE)
    assert sends(folder, commands) == {}
    made = ("runs.jsonl", "packed.tar", "pulled/manifest.json", "unpacked/manifest.json")
    assert all((folder / name).is_file() for name in made), "a command failed before its work"
    assert left_in(folder) == [], "something wrote into the user's home"
