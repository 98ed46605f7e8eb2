"""Options that a plan refuses before any work, and the line for bounds that no subnet keeps."""

from __future__ import annotations

from typing import Any

import pytest

from hnas.deployment import deploy, deploy_network
from hnas.deployment.finalists import describe_nearest
from hnas.deployment.options import NetworkOptions, SearchOptions
from hnas.deployment.plan import resolve
from hnas.export import backends
from hnas.export.bundle.manifest import Machine
from hnas.pareto import Candidate
from hnas.space import Arch
from tests.conftest import need


def test_a_prediction_is_for_the_threads_of_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert resolve(SearchOptions("raspberry-pi-5", threads=1)).threads == 1
    with pytest.raises(ValueError, match=r"raspberry-pi-5 is predicted for 1 thread\(s\); --threads needs a device"):
        resolve(SearchOptions("raspberry-pi-5", threads=4))


def test_the_plan_says_what_an_alias_stands_for_and_in_which_power_mode() -> None:
    lines = dict(resolve(SearchOptions("jetson", power="maxn_super")).lines())
    assert lines["target"] == "jetson stands for jetson-orin-nano (NVIDIA Jetson Orin Nano 8 GB)"
    assert lines["power mode"] == "MAXN_SUPER, GPU at 1020 MHz, memory 102.4 GB/s"
    assert lines["out"].startswith("runs/jetson")
    lines = dict(resolve(SearchOptions("jetson-orin-nano")).lines())
    assert lines["target"] == "jetson-orin-nano (NVIDIA Jetson Orin Nano 8 GB)"
    assert lines["power mode"].startswith("15W, ")
    assert "power mode" not in dict(resolve(SearchOptions("pixel-8")).lines())


def test_a_run_in_another_power_mode_is_another_run() -> None:
    plans = [resolve(SearchOptions("jetson", power=power, out="run")) for power in (None, "15W", "25W")]
    assert plans[0].identity() == plans[1].identity() != plans[2].identity()


def test_the_command_that_repeats_a_run_names_the_power_mode() -> None:
    assert "--power MAXN_SUPER" in SearchOptions("jetson", power="MAXN_SUPER").command("jetson-orin-nano")
    assert "--power 25W" in NetworkOptions("a:b", "jetson", power="25W").command()


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        (("avx2", "avx512_vnni"), ("fp32", "int8")),
        (("avx512_bf16",), ("fp32", "bf16", "int8")),
        (("amx_bf16",), ("fp32", "bf16", "int8")),
    ],
)
def test_auto_builds_bf16_only_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, instructions: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Machine, "here", lambda: Machine("a CPU", 2, "Linux", "3", "", instructions))
    need("openvino", backends.load("openvino").missing())
    assert resolve(SearchOptions("openvino-cpu", precision="auto")).precisions == expected
    for name in ("bf16", "w8"):  # asked for by name: the runtime judges
        assert resolve(SearchOptions("openvino-cpu", precision=name)).precisions == (name,)


def test_bounds_that_only_each_other_exclude_are_both_named() -> None:
    plan = resolve(SearchOptions("raspberry-pi-5", max_latency="2ms", max_size="2KB"))
    figures = ({"latency_ms": 1.0, "size_bytes": 3e3}, {"latency_ms": 3.0, "size_bytes": 1e3})
    line = describe_nearest(plan, [Candidate(Arch({"width": i}), metrics) for i, metrics in enumerate(figures)])
    assert "each alone can be met" in line
    assert "the fastest takes 1 ms (asked: 2); the smallest has 1 KB of weights (asked: 2)" in line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_latency": 1}, "latency '1' is not understood; write for example 5ms, 800us or 0.1s"),
        ({"max_latency": [1]}, "max_latency is [1], expected text or None, such as '5ms'"),
        ({"min_accuracy": 0.9}, "min_accuracy is 0.9, expected text or None, such as '92%'"),
        ({"budget": 40}, "budget '40' is not understood; write for example 60s, 5min or 40evals"),
        ({"threads": "2"}, "threads is '2', expected a whole number or None"),
        ({"threads": True}, "threads is True, expected a whole number or None"),
        ({"seed": 1.5}, "seed is 1.5, expected a whole number"),
        ({"out": 5}, "out is 5, expected a path or text or None"),
        ({"host": 5}, "host is 5, expected text or None"),
        ({"resume": "no"}, "resume is 'no', expected True or False"),
    ],
)
def test_an_option_of_another_type_is_refused_in_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError) as caught:
        deploy("openvino-cpu", **options)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"model": object}, "model is <class 'object'>, expected text"),
        ({"model": "m:c", "inputs": "1x4"}, "inputs is '1x4', expected a list of text or None"),
        ({"model": "m:c", "inputs": [(1, 4)]}, "inputs is ((1, 4),), expected a list of text or None"),
    ],
)
def test_an_option_of_a_network_of_another_type_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError) as caught:
        deploy_network(**options, target="openvino-cpu")
    assert str(caught.value) == line
