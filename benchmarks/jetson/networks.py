"""Rebuild the networks of published rows with random weights, from torchvision, timm and ultralytics."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import nn

from hnas.cost.kernels import Kernel
from hnas.cost.roofline import trace


@cache
def kernels_of(model: str, resolution: tuple[int, int], batch: int) -> tuple[Kernel, ...] | str:
    """Return the kernels of one call of a network, or the reason why the network cannot be had."""
    try:
        net = _build(model, resolution)
    except ImportError as error:
        return f"needs {error.name}"
    if net is None:
        return "in neither torchvision, timm nor ultralytics"
    return tuple(trace(net.to("meta"), (3, *resolution), batch=batch, training=False))


def _build(model: str, resolution: tuple[int, int]) -> nn.Module | None:
    """Return the network, or None where no package has it. Raise ImportError for a missing package."""
    if model.startswith("yolo"):
        return _yolo(model, resolution)
    models = import_module("torchvision.models")
    if model in models.list_models():
        return _made(lambda: models.get_model(model, weights=None))
    timm = import_module("timm")
    return _made(lambda: timm.create_model(model, pretrained=False)) if model in timm.list_models() else None


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a network without weights, or with random weights if its constructor computes with tensors."""
    try:
        with torch.device("meta"):
            return make()
    except NotImplementedError:  # the meta device has no values to compute with
        return make()


def _yolo(model: str, resolution: tuple[int, int]) -> nn.Module:
    """Return a YOLO detector as its TensorRT engine has it: with decoded boxes, without suppression."""
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())  # the package writes settings when it is imported
    os.environ.setdefault("YOLO_OFFLINE", "true")
    net: Any = import_module("ultralytics.nn.tasks").DetectionModel(f"{model}.yaml", verbose=False).eval()
    with torch.no_grad():
        net(torch.zeros(1, 3, *resolution))  # makes the anchors, which are no buffers
    head = net.model[-1]
    head.export, head.format = True, "engine"
    head.anchors, head.strides = head.anchors.to("meta"), head.strides.to("meta")
    return net  # type: ignore[no-any-return]  # ultralytics has no types
