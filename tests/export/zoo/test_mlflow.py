"""An MLflow model gives the outputs of the runtime, and is refused unless it is the bundle that was logged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas.export.bundle.bundle import read_bundle
from hnas.export.device.errors import ExportError, Unavailable
from hnas.export.remote.worker import Worker
from hnas.export.zoo.mlflow import _load_pyfunc, log_model
from tests.benchmarks import bundles
from tests.conftest import LIMIT_S
from tests.hostile import builders as b

ROOT = Path(__file__).resolve().parents[3]
IMAGES = np.random.default_rng(3).standard_normal((3, 1, 28, 28)).astype(np.float32)
HERE = "import json, sys, mlflow, numpy as np\nmlflow.set_tracking_uri('sqlite:///mlruns.db')\n"
LOG = """
from hnas.export.zoo.mlflow import log_model
log_model(sys.argv[1], "photos", registered_model_name="photos")
log_model(sys.argv[2], "steps", registered_model_name="steps")
"""
LOAD = """
import pandas
images, row = np.load("images.npy"), np.ones((1, 1), np.float32)
photos, steps = (mlflow.pyfunc.load_model(f"models:/{name}/1") for name in ("photos", "steps"))
table = pandas.DataFrame({"x": [image.ravel() for image in images]})
found = {"array": photos.predict(images).tolist(), "table": photos.predict(table).tolist()}
found["named"] = {name: float(value[0, 0]) for name, value in steps.predict({"x": 2 * row, "h": 3 * row}).items()}
for wrong in (images[:, :, 1:], images.astype("float64"), images.tolist()):
    try:
        photos.predict(wrong)
    except mlflow.exceptions.MlflowException:
        found["refused"] = found.get("refused", 0) + 1
try:
    mlflow.pyfunc.load_model("models:/photos/1", model_config={"digest": "0" * 64})
except Exception as error:
    found["pinned"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two inputs and two outputs."""
    return bundles.recurrent(tmp_path_factory.mktemp("steps"), "steps", "series-forecasting", {})


def expected(bundle: Path) -> np.ndarray[Any, Any]:
    """The outputs of the runtime, one image a call."""
    with Worker(read_bundle(bundle).artifact()) as worker:
        return np.concatenate([worker(image[None])[0] for image in IMAGES])


def opened(bundle: Path) -> Any:
    return _load_pyfunc(str(bundle), {"digest": read_bundle(bundle).digest})


def test_many_rows_are_run_in_parts(bundle: Path) -> None:
    assert np.array_equal(opened(bundle).predict(IMAGES), expected(bundle))
    with pytest.raises(ValueError, match="a multiple of 1"):
        opened(bundle).predict(IMAGES[:0])


def test_several_inputs_and_outputs_have_names(steps: Path) -> None:
    x, h = np.array([[1.0], [2.0]], np.float32), np.array([[3.0], [4.0]], np.float32)
    found = opened(steps).predict({"h": h, "x": x})
    assert (found["y"].tolist(), found["g"].tolist()) == (x.tolist(), h.tolist())
    with pytest.raises(ValueError, match="one number of rows"):
        opened(steps).predict({"h": h[:1], "x": x})


def _of(digest: str) -> Callable[[Path], object]:
    return lambda folder: _load_pyfunc(str(folder), {"digest": digest})


def test_another_bundle_than_the_logged_one_is_refused(bundle: Path, steps: Path) -> None:
    with pytest.raises(ExportError, match="is asked for"):
        _of(read_bundle(steps).digest)(bundle)
    with pytest.raises(ExportError, match="None is asked for"):
        _load_pyfunc(str(bundle))


def test_a_changed_byte_is_refused(bundle: Path, tmp_path: Path) -> None:
    folder = b.copied(bundle, tmp_path / "changed")
    (folder / "artifact/model.onnx").write_bytes((folder / "artifact/model.onnx").read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"model\.onnx"):
        _of(read_bundle(bundle).digest)(folder)


def test_a_signature_may_be_required(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pub").write_text("-----BEGIN PUBLIC KEY-----\n")
    monkeypatch.setenv("HNAS_ZOO_KEY", str(tmp_path / "a.pub"))
    with pytest.raises(ExportError, match=r"is not signed|model_signing is not installed"):
        opened(bundle)


def test_a_missing_package_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(Unavailable, match=r"^mlflow is not installed; pip install 'hnas\[mlflow\]'$"):
        log_model(bundle, "photos")


def test_a_new_process_loads_the_registered_model(bundle: Path, steps: Path, tmp_path: Path) -> None:
    if find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed; make test-extras")
    np.save(tmp_path / "images.npy", IMAGES)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HOME": str(tmp_path)}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", HERE + code, str(bundle), str(steps)],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=True,
        ).stdout
        for code in (LOG, LOAD)
    ]  # fmt: skip
    found = json.loads(outputs[1].splitlines()[-1])
    assert found["array"] == found["table"] == expected(bundle).tolist()
    assert found["named"] == {"y": 2.0, "g": 3.0}
    assert found["refused"] == 3
    assert "is asked for" in found["pinned"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pickle")]
