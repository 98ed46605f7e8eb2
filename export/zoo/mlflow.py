"""Log bundles as MLflow models of the flavour ``python_function``: ``log_model("runs/photos/bundle", "photos")``.

MLflow stores the files of the bundle as they are, without a pickle. ``mlflow.pyfunc.load_model`` calls this module.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hnas.export.bundle.bundle import read_bundle
from hnas.export.device.artifact import Artifact, TensorSpec
from hnas.export.device.dynamic import DynamicSize, rows_of
from hnas.export.device.errors import needing
from hnas.export.remote.worker import Worker
from hnas.export.zoo.address import KEY
from hnas.export.zoo.arrival import Untrusted, refuse_pickles
from hnas.export.zoo.signing import check_signature


def log_model(bundle: str | os.PathLike[str], name: str, **options: Any) -> Any:
    """Check a bundle and log it to MLflow's current tracking store. Return the ``ModelInfo`` of MLflow.

    The signature of the model has the shapes and types of the artifact. The first axis may have any number of rows, if
    all inputs and outputs have the same number of rows there.

    Args:
        bundle: the folder of the bundle.
        name: the name of the logged model.
        options: options of ``mlflow.pyfunc.log_model``, such as ``registered_model_name="photos"`` or ``run_id``.
            ``pip_requirements`` is empty by default: hnas and the runtime have to be installed where the model is
            loaded.

    Example:
        mlflow.set_tracking_uri("sqlite:///mlruns.db")
        info = log_model("runs/photos/bundle", "photos", registered_model_name="photos")
        mlflow.pyfunc.load_model(info.model_uri).predict(images)

    Raises:
        ValueError: the bundle is not valid, or its network takes no input.
        Unavailable: MLflow is not installed.
    """
    found = read_bundle(Path(bundle))
    refuse_pickles(found.path, found.manifest.files)
    with needing("mlflow"):
        import mlflow.pyfunc
    stated = {"target": found.manifest.target, "precision": found.manifest.precision}
    given = {"pip_requirements": [], "metadata": stated, "signature": _signature(found.artifact()), **options}
    return mlflow.pyfunc.log_model(
        name=name, loader_module=__name__, data_path=str(found.path), model_config={"digest": found.digest}, **given
    )


def _signature(artifact: Artifact) -> Any:
    """Return the signature of MLflow. Several inputs or outputs are named, a single one is a plain array."""
    if not artifact.inputs:
        raise ValueError(f"{artifact.path} takes no input; an MLflow model needs one or more")
    from mlflow.models import ModelSignature
    from mlflow.types import Schema
    from mlflow.types import TensorSpec as Tensor

    size = DynamicSize.of(artifact)
    free: tuple[int | None, ...] = (0,) if rows_of(artifact) else (None,)

    def schema(specs: Sequence[TensorSpec], axes: Sequence[int | None]) -> Any:
        shapes = [
            tuple(-1 if axis == open_ or not length else length for axis, length in enumerate(spec.shape))
            for spec, open_ in zip(specs, axes, strict=True)
        ]
        names = [spec.name for spec in specs] if len(specs) > 1 else [None]
        return Schema([Tensor(np.dtype(s.dtype), *each) for s, *each in zip(specs, shapes, names, strict=True)])

    return ModelSignature(
        schema(artifact.inputs, size.inputs if size else free * len(artifact.inputs)),
        schema(artifact.outputs, size.outputs if size else free * len(artifact.outputs)),
    )


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> _Model:
    """Open the bundle in the folder ``path`` after a check of every byte. MLflow calls this function.

    ``model_config``: ``digest`` is the digest of the bundle that was logged, or the one that the caller pins.

    Raises:
        ValueError: the bundle is not valid.
        Untrusted: it has another digest, or HNAS_ZOO_KEY is set and does not verify its signature.
        Unavailable: the runtime is not installed.
    """
    folder, wanted = Path(path), (model_config or {}).get("digest")
    if key := os.environ.get(KEY):
        check_signature(folder, Path(key))
    found = read_bundle(folder)
    if found.digest != wanted:
        raise Untrusted(f"{folder} has the digest {found.digest}, and {wanted} is asked for")
    refuse_pickles(folder, found.manifest.files)
    return _Model(found.artifact())


class _Model:
    """A bundle that is open in a process of its own."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact, self._worker, self._rows = artifact, Worker(artifact), rows_of(artifact)

    def predict(self, model_input: Any) -> Any:
        """Return the output as an array; several outputs as a dict by name.

        Inputs of more rows than the network takes are run in parts.

        Raises:
            ValueError: the inputs have other shapes or types than the network takes.
        """
        specs = self._artifact.inputs
        given = model_input if isinstance(model_input, Mapping) else {specs[0].name: model_input}
        if missing := [spec.name for spec in specs if spec.name not in given]:
            raise ValueError(f"no input {missing[0]!r}; the network takes {', '.join(spec.name for spec in specs)}")
        inputs = [np.asarray(given[spec.name]) for spec in specs]
        outputs = self._worker(*inputs) if self._rows is None else self._by_rows(inputs, self._rows)
        if len(outputs) == 1:
            return outputs[0]
        return {spec.name: value for spec, value in zip(self._artifact.outputs, outputs, strict=True)}

    def _by_rows(self, inputs: Sequence[np.ndarray[Any, Any]], rows: int) -> Sequence[np.ndarray[Any, Any]]:
        lengths = {value.shape[:1] for value in inputs}
        count = next(iter(lengths.pop()), 0)
        if lengths or not count or count % rows:
            raise ValueError(f"the inputs have to have one number of rows, a multiple of {rows}")
        calls = [self._worker(*(value[i : i + rows] for value in inputs)) for i in range(0, count, rows)]
        return [np.concatenate(parts) for parts in zip(*calls, strict=True)]
