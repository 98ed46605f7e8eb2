"""A derived subnet inside a limit of the measured latency, and what is refused in one line."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from hnas import hw_profiles, spaces
from hnas.cost import Price
from hnas.cost.counts import counted
from hnas.deployment import derived
from hnas.deployment.limits import DerivedLimits
from hnas.sampling.draws import slot_types
from hnas.space import Arch
from hnas.study import Study
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

    confirmed = __call__

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
        limits = DerivedLimits("openvino-cpu", limit)
        arch = derived.derive_subnet(Supernet(SPACE), record(seed), task, limits)
        assert Measured()(arch).value <= wanted


@pytest.mark.parametrize(("limit", "expected"), [("0.71ms", 0.6), ("0.75ms", 0.7), ("0.51ms", 0.5)])
def test_a_measured_latency_keeps_a_margin_where_a_subnet_can(limit, expected, task, monkeypatch):
    """Of 0.5, 0.6, 0.7 ... ms the highest inside is wanted: 0.7 is too near to 0.71; below 0.51 nothing but 0.5 is."""
    monkeypatch.setattr(derived, "MeasuredLatency", Measured)
    said = record()
    said["logits"] = {
        slot: {kind: {"conv1": 2.0, "identity": 0.0}.get(kind, -40.0) for kind in own}
        for slot, own in said["logits"].items()
    }
    arch = derived.derive_subnet(Supernet(SPACE), said, task, DerivedLimits("openvino-cpu", limit))
    assert Measured()(arch).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("limits", "cost", "most"),
    [
        (DerivedLimits(max_weights=6_000), "weights", 0.006),
        (DerivedLimits(max_macs=400_000), "macs", 0.4),
        (DerivedLimits(max_memory="35KB"), "memory", 0.035),
    ],
)
def test_a_counted_cost_is_kept_and_its_limit_costs_the_least_regret(limits, cost, most, task):
    supernet, said = Supernet(SPACE), record()
    count = counted(SPACE, supernet.skeleton)[cost]
    for own in said["logits"].values():
        own["conv3"] = 9.0
    assert count(derived.derive_subnet(supernet, said, task)).value > most
    arch = derived.derive_subnet(supernet, said, task, limits)
    assert count(arch).value <= most
    assert "conv3" in arch.values(), "no more is given up than the limit asks for"


@pytest.mark.parametrize(("cost", "limit"), [("weights", 0.006), ("macs", [0.2, 0.4]), ("memory", 0.035)])
def test_without_flags_the_limit_of_the_search_is_kept(cost, limit, task):
    supernet, said = Supernet(SPACE), record()
    count = counted(SPACE, supernet.skeleton)[cost]
    for own in said["logits"].values():
        own["conv3"] = 9.0
    low, high = limit if isinstance(limit, list) else (0.0, limit)
    assert not low <= count(derived.derive_subnet(supernet, said, task)).value <= high
    searched = record_with(said, strategy="msgdas", options={"cost": cost, "limit": limit})
    assert low <= count(derived.derive_subnet(supernet, searched, task)).value <= high
    assert low <= count(derived.derive_subnet(supernet, searched, task, DerivedLimits(max_skips=3))).value <= high
    flag = DerivedLimits(max_weights=10**9)
    assert derived.derive_subnet(supernet, searched, task, flag) == derived.derive_subnet(supernet, said, task)


def test_without_flags_the_device_of_the_search_decides(task, monkeypatch):
    monkeypatch.setattr(derived, "MeasuredLatency", Measured)
    options = {"latency": "openvino-cpu", "limit": [0.7, 0.9]}
    for seed in range(3):
        arch = derived.derive_subnet(Supernet(SPACE), record_with(record(seed), options=options), task)
        assert 0.7 <= Measured()(arch).value <= 0.9


def test_a_search_without_a_limit_leaves_the_most_likely_subnet(task):
    said = record()
    for options in ({}, {"cost": "weights"}, {"latency": "openvino-cpu"}):
        arch = derived.derive_subnet(Supernet(SPACE), record_with(said, options=options), task)
        assert arch == derived.derive_subnet(Supernet(SPACE), said, task)


def test_a_limit_of_the_search_that_no_subnet_keeps_is_one_line_with_its_origin(task):
    line = r"inside \[0, 1e-09\] million weights; .*; the window is train\.options\.limit of the supernet, and a flag"
    said = record_with(record(), options={"cost": "weights", "limit": 1e-9})
    with pytest.raises(ValueError, match=line) as found:
        derived.derive_subnet(Supernet(SPACE), said, task)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "options",
    [[], {"cost": "weights", "limit": "2"}, {"latency": 5, "limit": 1.0}, {"cost": "macs", "limit": [1, 2, 3]}],
)
def test_a_broken_limit_in_a_record_is_one_line(options, task):
    said = record_with(record(), options=options or ["limit"])
    with pytest.raises(ValueError, match=r"^train\.options in the record of the supernet are not those of a search"):
        derived.derive_subnet(Supernet(SPACE), said, task)


def test_a_predicted_window_that_the_device_does_not_keep_says_what_to_do(task, monkeypatch):
    monkeypatch.setattr(derived, "MeasuredLatency", Measured)
    said = record_with(record(), options={"latency": "openvino-cpu", "limit": 1e-6})
    with pytest.raises(
        ValueError, match=r"the search predicted latencies, train\.options\.measured = true measures them$"
    ):
        derived.derive_subnet(Supernet(SPACE), said, task)


def test_pdarts_and_the_recipe_and_the_command_allow_identities(task):
    said = record(strategy="pdarts")
    for own in said["logits"].values():
        own["identity"] = 9.0

    def count(said: dict[str, Any], limits: DerivedLimits | None = None) -> int:
        return list(derived.derive_subnet(Supernet(SPACE), said, task, limits).values()).count("identity")

    assert count(said) == 2
    assert count({**said, "recipe": {}}) == 4
    assert count(record_with(said, strategy="darts", max_skips=1)) == 1
    assert count(record_with(said, strategy="pdarts", max_skips=3)) == 3
    assert count(record_with(said, strategy="pdarts", max_skips=-1)) == 2, "a record that was changed by hand"
    assert count(said, DerivedLimits(max_skips=0)) == 0
    limits = DerivedLimits(max_skips=1, max_weights=10**9)
    assert count(said, limits) == 1


def record_with(said: dict[str, Any], **train: Any) -> dict[str, Any]:
    return {**said, "recipe": {"train": train}}


def test_measuring_ends_its_workers_also_after_an_error(task, monkeypatch):
    made: list[Measured] = []
    monkeypatch.setattr(derived, "MeasuredLatency", lambda *a, **k: made.append(Measured()) or made[-1])
    with pytest.raises(KeyError), derived.measuring(Study(Supernet(SPACE), task), hw_profiles.load("openvino-cpu")):
        raise KeyError
    assert made[0].closed


def test_what_cannot_be_derived_is_one_line(task):
    supernet = Supernet(SPACE)
    with pytest.raises(ValueError, match=r"^the supernet has no architecture parameters; train it with a strategy"):
        derived.derive_subnet(supernet, {}, task)
    with pytest.raises(ValueError, match=r"^the logits of the supernet are not those of its space"):
        derived.derive_subnet(supernet, {"logits": {"blocks.0": {"conv3": 1.0}}}, task)
    with pytest.raises(ValueError, match=r"^none of the \d+ networks that were priced is inside \[0, 1e-06\] ms; the"):
        derived.derive_subnet(supernet, record(), task, DerivedLimits("pixel-8", "0.000001ms"))
    with pytest.raises(
        ValueError, match=r"is inside \[0, 1\.2e-05\] million MACs; the nearest has .* million MACs; widen"
    ):
        derived.derive_subnet(supernet, record(), task, DerivedLimits(max_macs=12))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"target": "openvino-cpu"}, "^a limit of latency needs a device: give both --target and --max-latency"),
        ({"max_weights": 9, "max_macs": 9}, "^a derived subnet has one limit; weights and macs have one each$"),
        ({"max_macs": 0}, "^the limit of macs is 0; it is above 0$"),
        ({"max_weights": -5}, "^the limit of weights is -5; it is above 0$"),
        ({"max_memory": "much"}, "^size 'much' is not understood"),
        ({"target": "abacus", "max_latency": "1ms"}, "^no device 'abacus'"),
        ({"max_skips": -1}, "^--max-skips is -1; it is 0 or more$"),
    ],
)
def test_limits_that_make_no_sense_are_one_line(given, line):
    with pytest.raises(ValueError, match=line):
        DerivedLimits(**given).cost()
