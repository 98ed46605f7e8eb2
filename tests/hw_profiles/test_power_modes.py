"""Power modes of a device, and the efficiencies that were fitted on published latencies."""

from pathlib import Path

import pytest

from hnas import hw_profiles
from hnas.hw_profiles import calibration

TEXT = (Path(hw_profiles.__file__).parent / "jetson-orin-nano.toml").read_text()
FITTED = Path(calibration.__file__).parent / "fitted" / "tensorrt-orin.toml"
PAGE = Path(__file__).parents[2] / "docs" / "devices.md"
WITH_MODES = [name for name in hw_profiles.names() if hw_profiles.load(name).power_modes]


def shipped(board: str) -> dict[str, str]:
    """Return what the page says of a board: JetPack -> TensorRT."""
    rows = (line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|")
    named = [row for row in rows if len(row) == 3 and board in row[2].partition(";")[0].split(", ")]
    return {jetpack: tensorrt for row in named for jetpack, tensorrt in ((each, row[1]) for each in row[0].split(", "))}


def version(text: str) -> list[int]:
    return [int(part) for part in text.split(".")]


def test_jetson_is_another_name_of_the_orin_nano() -> None:
    assert hw_profiles.load("jetson") is hw_profiles.load("jetson-orin-nano")


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("jetson-orin-nano", {"7W", "15W", "25W", "MAXN_SUPER"}),
        ("jetson-orin-nx", {"10W", "15W", "25W", "40W", "MAXN", "MAXN_SUPER"}),
        ("jetson-agx-orin", {"15W", "30W", "50W", "MAXN"}),
        ("jetson-agx-thor", {"MAXN"}),
        ("jetson-xavier-nx", {"15W"}),
    ],
)
def test_the_promised_modes_are_there(name: str, modes: set[str]) -> None:
    device = hw_profiles.load(name)
    assert set(device.power_modes) == modes
    assert device.power in modes


@pytest.mark.parametrize("name", WITH_MODES)
def test_power_modes_have_a_source(name: str) -> None:
    """A file of nvpmodel, or its mode; what was assumed says so."""
    device = hw_profiles.load(name)
    (source,) = (source for source in device.sources if source.startswith("power modes: "))
    named = "nvpmodel" in source and all(f" {mode} " in source for mode in device.power_modes)
    assert named or "nvpmodel_" in source or source.startswith("power modes: assumed")


@pytest.mark.parametrize(
    ("name", "board"),
    [
        ("jetson-orin-nano", "Orin"),
        ("jetson-orin-nx", "Orin"),
        ("jetson-agx-orin", "Orin"),
        ("jetson-agx-thor", "Thor"),
        ("jetson-xavier-nx", "Xavier NX"),
    ],
)
def test_a_profile_ships_the_tensorrt_of_the_page(name: str, board: str) -> None:
    toolchain = hw_profiles.load(name).toolchain
    parts = [
        part.split(": ") for part in toolchain["ships"].removeprefix("JetPack ").replace(" TensorRT", "").split("; ")
    ]
    ships = {jetpack: tensorrt for many, tensorrt in parts for jetpack in many.split(" and ")}
    assert ships == shipped(board)
    for product, versions in (("JetPack", ships), ("TensorRT", ships.values())):
        ends = dict.fromkeys((min(versions, key=version), max(versions, key=version)))
        assert toolchain[product] == "-".join(ends)


def test_a_mode_scales_the_peaks_by_the_clock_and_by_the_part_that_is_switched_on() -> None:
    given = hw_profiles.load("jetson")
    fast, slow = (hw_profiles.load("jetson", power) for power in ("MAXN_SUPER", "7W"))
    assert fast.peaks["fp16"] == pytest.approx(32 * 256 * 2 * 1.02)  # tensor cores x FMA x 2 x GHz
    assert slow.peaks["fp16"] == pytest.approx(16 * 256 * 2 * 0.408)
    assert (fast.bandwidth, slow.bandwidth, given.bandwidth) == (102.4, 68.0, 68.0)
    assert (fast.power, fast.name) == ("MAXN_SUPER", "jetson-orin-nano")
    assert fast.power_mode == "MAXN_SUPER, GPU at 1020 MHz, memory 102.4 GB/s"
    assert slow.power_mode == "7W, GPU at 408 MHz, 0.5 of it switched on, memory 68 GB/s"


def test_a_profile_states_the_clocks_of_each_mode() -> None:
    assert hw_profiles.load("jetson").power_modes["7W"] == hw_profiles.PowerMode(mhz=408.0, gpu=0.5, bandwidth=68.0)


def test_the_default_mode_changes_nothing() -> None:
    for name in hw_profiles.names():
        device = hw_profiles.load(name)
        if device.power:
            again = hw_profiles.load(name, device.power)
            assert (again.peaks, again.bandwidth) == (device.peaks, device.bandwidth)


def test_a_mode_may_be_spelled_as_nvpmodel_and_users_spell_it() -> None:
    assert hw_profiles.load("agx-orin", "MODE_30W") == hw_profiles.load("agx-orin", "30w")


@pytest.mark.parametrize(
    ("name", "power", "line"),
    [
        (
            "jetson",
            "60W",
            "no power mode '60W' of jetson-orin-nano; known: 7W, 15W (default), 25W, MAXN_SUPER",
        ),
        ("pixel-8", "15W", "pixel-8 has no power modes; leave the power mode out"),
    ],
)
def test_an_unknown_mode_is_one_line_with_the_known_ones(name: str, power: str, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        hw_profiles.load(name, power)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mhz = 408", "hz = 408", "power_modes.7W={'hz': 408, 'gpu': 0.5, 'bandwidth': 68.0} is not a table"),
        ("mhz = 408", 'mhz = "408"', "is not a table with mhz, gpu and bandwidth"),
        ("mhz = 408", "mhz = 0", "power_modes need mhz and bandwidth above 0"),
        ("gpu = 0.5", "gpu = 1.5", "gpu above 0 and at most 1"),
        ('power = "15W"', 'power = "16W"', "power='16W' is not one of power_modes"),
        ('power = "15W"', 'power = "25W"', "bandwidth is not that of the default power mode"),
    ],
)
def test_a_wrong_mode_in_a_profile_is_one_clear_line(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(ValueError, match=r"^profile wrong: ") as caught:
        hw_profiles.parse_profile("wrong", TEXT.replace(old, new, 1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_calibration_that_a_profile_names_is_there() -> None:
    named = {hw_profiles.load(name).calibration for name in hw_profiles.names()} - {""}
    assert named == set(calibration.names())


@pytest.mark.parametrize("name", calibration.names())
def test_fitted_efficiencies_are_shares_with_their_provenance(name: str) -> None:
    devices = [hw_profiles.load(each) for each in hw_profiles.names()]
    found = next(fit for device in devices if device.calibration == name and (fit := calibration.of(device)))
    assert all(0 < share <= 1 for share in (*found.compute.values(), found.bandwidth, found.depthwise))
    assert "rows of" in found.fitted
    for each in found.evidence:
        device = hw_profiles.load(each.device, each.power or None)
        assert found.evidence_of(device) == each
        assert each.low <= 1 <= each.high
        assert 0 <= each.mean <= each.worst
        assert f"{each.rows} published rows of {each.models} networks" in each.line()


def test_a_device_without_calibration_has_none_and_a_wrong_name_is_one_line() -> None:
    from dataclasses import replace

    assert calibration.of(hw_profiles.load("openvino-cpu")) is None
    wrong = replace(hw_profiles.load("jetson"), calibration="nothing")
    with pytest.raises(
        ValueError, match=r"^profile jetson-orin-nano: no calibration 'nothing'; known: .*tensorrt-orin"
    ):
        calibration.of(wrong)


@pytest.mark.parametrize(
    ("old", "new"),
    [("bandwidth =", "width ="), ("elementwise = 0", "elementwise = 3"), ("launch_us = ", "launch_us = -")],
)
def test_a_wrong_calibration_is_refused(old: str, new: str) -> None:
    text = FITTED.read_text()
    assert old in text
    with pytest.raises(ValueError, match=r"^calibration wrong: "):
        calibration.parse("wrong", text.replace(old, new, 1))
