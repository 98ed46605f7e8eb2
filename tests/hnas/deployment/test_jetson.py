"""A deployment to a Jetson with ``--host``, on a stand-in: sshd here, and a trtexec that computes in ONNX Runtime.

The test covers the path to the device and back. Its outputs are the stand-in's; no figure here is a Jetson's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hnas.cli import deploy_main
from hnas.export import backends
from hnas.export.bundle.bundle import read_bundle
from tests.conftest import need
from tests.export.loopback import SSHD, Loopback, loopback

pytestmark = [
    pytest.mark.skipif(SSHD is None, reason="sshd is not installed; apt-get install openssh-server"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler for the stand-in of libcudart"),
    pytest.mark.slow,
]
CUDART = """
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : 7;
    return device;
}
"""
TOOL = """#!{python}
import json, os, shutil, sys
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec [TensorRT v8602] # trtexec")
if "onnx" in options:
    shutil.copy(options["onnx"], options["saveEngine"])
    open(options["timingCacheFile"], "w").write("tactics")
    half, single = [{{"Format/Datatype": "Row major FP16"}}], [{{"Format/Datatype": "Row major linear FP32"}}]
    layers = [dict(Name="conv", LayerType="CaskConvolution", Inputs=half, Outputs=half)]
    layers += [dict(Name="gelu", LayerType="PointWiseV2", Inputs=single, Outputs=single)]  # planted: above fp16
    json.dump({{"Layers": layers}}, open(options["exportLayerInfo"], "w"))
if "loadEngine" in options:
    import numpy, onnxruntime
    if "exportTimes" in options:
        runs = [{{"h2dMs": 0.25, "computeMs": 0.5, "d2hMs": 0.125}}] * int(options["iterations"])
        json.dump(runs, open(options["exportTimes"], "w"))
    if "exportOutput" in options:
        session = onnxruntime.InferenceSession(options["loadEngine"], providers=["CPUExecutionProvider"])
        place, name = session.get_inputs()[0], session.get_outputs()[0].name
        x = numpy.fromfile(options["loadInputs"].partition(":")[2], numpy.float32).reshape(place.shape)
        (y,) = session.run(None, {{place.name: x}})
        json.dump([{{"name": name, "values": y.ravel().tolist()}}], open(options["exportOutput"], "w"))
"""


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    (tmp_path / "lib").mkdir()
    (tmp_path / "cudart.c").write_text(CUDART)
    library = tmp_path / "lib" / "libcudart.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "cudart.c"], check=True)
    tool = tmp_path / "tools" / "trtexec"
    tool.parent.mkdir()
    tool.write_text(TOOL.format(python=sys.executable))
    tool.chmod(0o755)
    there = {"PATH": f"{tool.parent}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(library.parent)}
    with loopback(tmp_path / "board", **there) as board:
        monkeypatch.setenv("PATH", f"{board.bin}:{os.environ['PATH']}")
        yield board


def test_a_net_is_built_verified_and_measured_there(
    jetson: Loopback,
    own_net: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    pytest.importorskip("onnxscript")
    assert deploy_main([*own_net, "--target", "jetson", "--host", f"{jetson.address}{sys.executable}"]) == 0, (
        capsys.readouterr().err
    )
    said, above = json.loads(capsys.readouterr().out), "gelu runs in f32, the artifact states fp16"
    assert "measured in interleaved blocks on ssh://board" in said["footnote"]
    (line,) = [note for note in said["notes"] if note.startswith("end to end on the device ")]
    assert "prepare: not known for this network, copies 0.375, run 0.5, answer " in line
    assert line.endswith(" (medians, n=30)")
    assert f"engine: {above}" in caplog.messages  # which the log hnas.export prints to standard error
    manifest = read_bundle(tmp_path / "run" / "bundle").manifest
    assert (manifest.target, manifest.precision, manifest.latency.kind) == ("jetson-orin-nano", "fp16", "measured")
    assert manifest.latency.value == pytest.approx(0.5)
    assert manifest.versions["tensorrt"] == "8.6.2"
    assert manifest.build is not None
    engine = manifest.build["engine"]
    assert (engine["sm"], engine["built_by"], engine["precisions"]) == ("87", "trtexec", {"f16": 1, "f32": 1})
    assert engine["above"] == [above]
    assert len(engine["build_medians_ms"]) == 3
    assert len(list((jetson.cache / "engines").glob("*/model.engine"))) == 2  # fp32, the baseline, and fp16
