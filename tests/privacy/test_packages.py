"""Packages that report by default are seen to do so, and are silent with hnas."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import LIMIT_S
from tests.privacy.tracing import ROOT, outside, require_strace, traced

SESSION = """
import sys, time, onnxruntime
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString())
time.sleep(float(sys.argv[1]))
"""
# NNCF and OpenVINO share a sender. Outside pytest and CI, and without a file of consent, it reports by default.
QUANTISED = """
import sys, time
if sys.argv[1] == "quiet":
    import hnas
import numpy as np, nncf, openvino
from openvino import opset13 as ops
x = ops.parameter([1, 3, 8, 8], np.float32, name="x")
y = ops.convolution(x, ops.constant(np.ones((4, 3, 3, 3), np.float32)), [1, 1], [0, 0], [0, 0], [1, 1])
nncf.quantize(openvino.Model([ops.result(y)], [x]), nncf.Dataset([np.zeros((1, 3, 8, 8), np.float32)]))
time.sleep(float(sys.argv[2]))
"""
PATIENCE = ("2", "10", "50")  # seconds for a sender of another thread; a busy machine may need more than the first


@pytest.mark.slow
def test_the_check_sees_a_runtime_that_is_not_silenced(folder: Path) -> None:
    """Without our switch ONNX Runtime looks up its event host, or keeps an identity in the home until it does."""
    require_strace()
    (folder / "session.py").write_text(SESSION)

    def reports(seconds: str) -> bool:
        sent = traced(folder, "session.py", seconds, home="loud")
        return bool(sent or list((folder / "loud").rglob("deviceid")))

    assert any(map(reports, PATIENCE)), "if ONNX Runtime has become quiet, this test may go"


@pytest.mark.slow
def test_the_sender_of_openvino_and_nncf_is_seen_and_silenced(folder: Path) -> None:
    require_strace()
    pytest.importorskip("nncf")
    (folder / "quantised.py").write_text(QUANTISED)
    sent = (seconds for seconds in PATIENCE if traced(folder, "quantised.py", "loud", seconds, home="loud"))
    needed = next(sent, None)
    assert needed is not None, "if NNCF has become quiet, this test may go"
    assert traced(folder, "quantised.py", "quiet", needed) == []  # it has the time that the loud one took to send
    assert not list((folder / "home").rglob("openvino_ga_cid"))


# --- packages that are seldom there: a child in which every look-up of a name is refused and printed ------------------

REFUSED = """
import socket, sys

def refuse(host, *_, **__):
    print(host, flush=True)
    raise OSError("the network is refused")

socket.getaddrinfo = refuse
if sys.argv[1] == "quiet":
    from hnas.export.device.privacy import silence
    silence()
"""
SENDERS = {
    "huggingface_hub": """
from huggingface_hub.utils import _telemetry, send_telemetry
send_telemetry("hnas/test")
_telemetry._TELEMETRY_QUEUE.join()
""",
    "mlflow": """
import mlflow
from mlflow.telemetry.client import get_telemetry_client
client = get_telemetry_client()
if client is not None:
    client.activate()
    client._config_thread.join()
""",
    # What the head of a cluster does once a minute.
    "ray": """
from dataclasses import dataclass
try:
    from ray._common.usage import usage_lib
except ImportError:  # before Ray 2.50
    from ray._private.usage import usage_lib

@dataclass
class Report:
    schema_version: str = "0.1"

if usage_lib.usage_stats_enabled():
    try:
        usage_lib.UsageReportClient().report_usage_data(usage_lib._usage_stats_report_url(), Report())
    except Exception:
        pass
""",
}
HOSTS = {
    "huggingface_hub": "huggingface.co",
    "mlflow": "config.mlflow-telemetry.io",
    "ray": "usage-stats.ray.io",
}


def looked_up(folder: Path, code: str, how: str) -> list[str]:
    """Return the names that a child looks up."""
    command = [sys.executable, "-c", REFUSED + code, how]
    done = subprocess.run(command, env=outside(folder), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.parametrize("package", SENDERS)
def test_a_package_that_reports_by_default_is_silenced(folder: Path, package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed; pip install {package} to see that it is silenced")
    assert HOSTS[package] in looked_up(folder, SENDERS[package], "loud"), f"if {package} has become quiet, this may go"
    assert looked_up(folder, SENDERS[package], "quiet") == []


def test_mlflow_that_is_imported_before_hnas_is_silenced(folder: Path) -> None:
    """``mlflow.pyfunc.load_model`` imports hnas long after a program imported MLflow."""
    if find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed; make test-extras")
    assert looked_up(folder, "import mlflow, hnas" + SENDERS["mlflow"], "late") == []


def test_torch_hub_is_asked_by_nobody(folder: Path) -> None:
    """torch.hub has no telemetry. It connects when it is called, so nothing here may call it, or another downloader."""
    pytest.importorskip("torch")
    call = "import torch.hub\ntry: torch.hub.load('pytorch/vision', 'a', trust_repo=True)\nexcept Exception: pass"
    assert looked_up(folder, call, "loud"), "torch.hub is not seen"
    assert looked_up(folder, "import torch.hub, hnas, hnas.export", "quiet") == []


def test_the_installed_package_calls_no_downloader() -> None:
    """Only the stores of the zoo connect, to the address that a user names; `tests.export.zoo` holds them to it.

    MLflow's client connects to the tracking server that the user chose.
    """
    words = (
        r"torch\.hub|load_state_dict_from_url|hf_hub_download|snapshot_download|urlopen|urlretrieve|"
        r"(import|from) (requests|s3fs|oras|huggingface_hub|mlflow)\b"
    )
    files = sorted({p.resolve() for name in ("hnas", "export", "hw_profiles") for p in (ROOT / name).rglob("*.py")})
    assert len(files) > 200
    found = [str(path.relative_to(ROOT)) for path in files if re.search(words, path.read_text())]
    stores = [f"export/zoo/stores/{kind}.py" for kind in ("hf", "oci", "s3")]
    assert found == ["export/zoo/mlflow.py", *stores, "export/zoo/web.py"]
