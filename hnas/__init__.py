"""Neural architecture search that ends in a verified and measured file for a real device.

Call `hnas.deploy("openvino-cpu", max_latency="5ms")`. A name is imported when it is first used, so that reading,
checking and measuring a bundle never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import hnas.export.device  # noqa: F401 - switches off the telemetry of third-party packages

if TYPE_CHECKING:
    from hnas.cost import Cost, Price
    from hnas.deployment import deploy, deploy_network
    from hnas.deployment.bundle import Deployment
    from hnas.pareto import Candidate
    from hnas.space import Arch, Choice, Space
    from hnas.study import Study
    from hnas.supernet import Stats, Supernet

__all__ = [
    "Arch",
    "Candidate",
    "Choice",
    "Cost",
    "Deployment",
    "Price",
    "Space",
    "Stats",
    "Study",
    "Supernet",
    "deploy",
    "deploy_network",
]

_HOME = {
    "cost": ("Cost", "Price"),
    "deployment": ("deploy", "deploy_network"),
    "deployment.bundle": ("Deployment",),
    "pareto": ("Candidate",),
    "space": ("Arch", "Choice", "Space"),
    "study": ("Study",),
    "supernet": ("Stats", "Supernet"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"hnas.{module}"), name)
    raise AttributeError(f"module 'hnas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
