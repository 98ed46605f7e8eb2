"""A derived subnet inside a limit of the measured latency, and what is refused in one line."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from hnas import spaces
from hnas.cost import Price
from hnas.deployment import derived
from hnas.sampling.draws import slot_types
from hnas.space import Arch
from hnas.supernet import Supernet
from hnas.tasks import load

SPACE = spaces.load("tabular_digits")()
MS = {"identity": 0.0, "conv1": 0.1, "avg3": 0.15, "dw5": 0.3, "conv3": 0.2}


def record(seed: int = 0, strategy: str = "msgdas") -> dict[str, Any]:
    rng = Random(seed)
    logits = {slot: {kind: rng.gauss(0, 1) for kind in slot_types(SPACE, slot)} for slot in SPACE.slots}
    return {"logits": logits, "recipe": {"train": {"strategy": strategy}}}


class Measured:
    """Stands in for the device: another latency for each type than the roofline model predicts."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.closed = False

    def __call__(self, arch: Arch) -> Price:
        value = 0.5 + sum(MS[str(arch[f"{slot}.op"])] for slot in SPACE.slots)
        return Price(value, "ms", value, value, "measured")

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def task():
    return load("digits").open_task()


def test_without_a_limit_every_slot_takes_its_most_likely_type(task):
    said = record()
    arch = derived.derive_subnet(Supernet(SPACE), said, task)
    for slot in SPACE.slots:
        own = said["logits"][slot]
        assert own[arch[f"{slot}.op"]] == max(own.values())


@pytest.mark.parametrize("limit", ["0.7ms", "900us", "1.2ms"])
def test_the_device_decides_whether_a_subnet_is_inside_the_limit(limit, task, monkeypatch):
    monkeypatch.setattr(derived, "MeasuredLatency", Measured)
    wanted = {"0.7ms": 0.7, "900us": 0.9, "1.2ms": 1.2}[limit]
    for seed in range(3):
        arch = derived.derive_subnet(Supernet(SPACE), record(seed), task, "openvino-cpu", limit)
        assert Measured()(arch).value <= wanted


def test_pdarts_allows_two_identities(task):
    said = record(strategy="pdarts")
    for own in said["logits"].values():
        own["identity"] = 9.0
    kinds = list(derived.derive_subnet(Supernet(SPACE), said, task).values())
    assert kinds.count("identity") == 2
    assert list(derived.derive_subnet(Supernet(SPACE), {**said, "recipe": {}}, task).values()).count("identity") == 4


def test_what_cannot_be_derived_is_one_line(task):
    supernet = Supernet(SPACE)
    with pytest.raises(ValueError, match=r"^a limit of latency needs a device: give both --target and --max-latency"):
        derived.derive_subnet(supernet, record(), task, "openvino-cpu")
    with pytest.raises(ValueError, match=r"^the supernet has no architecture parameters; train it with a strategy"):
        derived.derive_subnet(supernet, {}, task)
    with pytest.raises(ValueError, match=r"^the logits of the supernet are not those of its space"):
        derived.derive_subnet(supernet, {"logits": {"blocks.0": {"conv3": 1.0}}}, task)
    with pytest.raises(ValueError, match=r"^no derived architecture is inside \[0, 1e-06\]"):
        derived.derive_subnet(supernet, record(), task, "pixel-8", "0.000001ms")
