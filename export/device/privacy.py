"""Switch off the telemetry of every third-party package, before any of them is imported.

``silence()`` runs when ``hnas`` is imported and when the device half starts. Child processes inherit the environment.
"""

from __future__ import annotations

import os
import sys
from typing import Any

# Each variable is documented by the package that reads it.
SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: an event host, a device id and a queue on disk
    "NNCF_CI": "1",  # NNCF: replaces its telemetry by a stub
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub
    "DISABLE_TELEMETRY": "1",  # transformers and others of Hugging Face
    "DO_NOT_TRACK": "1",  # the common convention
    "MLFLOW_DISABLE_TELEMETRY": "true",  # MLflow, which reads DO_NOT_TRACK=true only
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray
    "OLIVE_DISABLE_TELEMETRY": "1",  # Olive, in the comparison with peers
}


def silence() -> None:
    """Switch telemetry off in this process and in its children, also for packages that are imported already.

    1. A package reads an environment variable: the variable is set, whatever its value was.
    2. ``openvino_telemetry`` reads none: its import fails, and OpenVINO and NNCF use their stub instead.
    3. A package was imported earlier: its own switch is called.
    """
    os.environ.update(SWITCHES)  # case 1
    imported: Any = sys.modules.get("openvino_telemetry.main")
    if imported is None:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # case 2
    else:
        imported.TelemetrySender.send = lambda *_: None  # case 3
    onnxruntime: Any = sys.modules.get("onnxruntime")
    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()  # case 3
    mlflow: Any = sys.modules.get("mlflow.telemetry")
    if hasattr(mlflow, "set_telemetry_client"):
        mlflow.set_telemetry_client()  # case 3: MLflow reads its variable again
