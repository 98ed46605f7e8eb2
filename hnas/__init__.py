"""Neural architecture search that ends in a verified and measured file for a real device.

    hnas.train("photos/", "trained/")                      train a supernet on a folder of images
    hnas.deploy("openvino-cpu", supernet="trained/")       search it, build, verify, measure -> a bundle
    hnas.deploy_network("mynets:small", "openvino-cpu")    the same for a network of your own
    hnas.load("runs/x/bundle").predict("cat.png")          [(label, probability), ...]
    hnas.check("runs/x/bundle")                            do its claims hold on this machine?
    hnas.targets(), hnas.doctor()                          devices; what runs and builds here

`help(hnas.deploy)` explains a function; `from hnas import export` is the compiler. `load` and `check` need no torch.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import hnas.export.device  # noqa: F401 - switches off the telemetry of third-party packages

# torch's threads (GNU OpenMP) wait in a loop of 300,000 turns before they sleep. Beside other programs this takes a
# core from the thread that is waited for (docs/scale.md#threads).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from hnas.benchmarks.gate.checking import check as check
    from hnas.cli.from_python import TrainedSupernet as TrainedSupernet
    from hnas.cli.from_python import train as train
    from hnas.cost import Cost as Cost
    from hnas.cost import Price as Price
    from hnas.deployment import deploy as deploy
    from hnas.deployment import deploy_network as deploy_network
    from hnas.deployment.bundle import Deployment as Deployment
    from hnas.deployment.classifier import Classifier as Classifier
    from hnas.deployment.classifier import load as load
    from hnas.deployment.inventory import BackendReport as BackendReport
    from hnas.deployment.inventory import doctor as doctor
    from hnas.deployment.inventory import targets as targets
    from hnas.export.device.errors import ExportError as ExportError
    from hnas.export.device.errors import Unavailable as Unavailable
    from hnas.hw_profiles import Device as Device
    from hnas.pareto import Candidate as Candidate
    from hnas.space import Arch as Arch
    from hnas.space import Choice as Choice
    from hnas.space import Space as Space
    from hnas.study import Study as Study
    from hnas.supernet import Stats as Stats
    from hnas.supernet import Supernet as Supernet

    __version__: str

_HOME = {
    "benchmarks.gate.checking": ("check",),
    "cli.from_python": ("TrainedSupernet", "train"),
    "cost": ("Cost", "Price"),
    "deployment": ("deploy", "deploy_network"),
    "deployment.bundle": ("Deployment",),
    "deployment.classifier": ("Classifier", "load"),
    "deployment.inventory": ("BackendReport", "doctor", "targets"),
    "export.device.errors": ("ExportError", "Unavailable"),
    "hw_profiles": ("Device",),
    "pareto": ("Candidate",),
    "space": ("Arch", "Choice", "Space"),
    "study": ("Study",),
    "supernet": ("Stats", "Supernet"),
}
_NEED_TORCH = ("deployment.bundle", "study", "supernet")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hnas")
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"hnas.{module}"), name)
    raise AttributeError(f"module 'hnas' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names. Those that import torch are left out until it is imported: ``help`` looks up each name."""
    absent = () if sys.modules.get("torch") else _NEED_TORCH
    names = [name for module, own in _HOME.items() if module not in absent for name in own]
    return sorted(
        {"__doc__", "__file__", "__name__", "__path__", "__version__", *names} - {"Cost"}
    )  # an alias of a type: help would show all of it
