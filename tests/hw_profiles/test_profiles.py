"""Laws of every device profile that is found, and the errors of a wrong profile."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest

from hnas import hw_profiles
from hnas.hw_profiles import Device
from tests.conftest import LIMIT_S

# The devices that the documents promise. A new profile needs no line here.
PROMISED = {
    "onnxruntime-cpu",
    "openvino-cpu",
    "tflite-cpu",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-agx-orin",
    "jetson-agx-thor",
    "jetson-xavier-nx",
    "raspberry-pi-5",
    "raspberry-pi-4",
    "pixel-8",
    "pixel-3",
}
GOOD = (Path(hw_profiles.__file__).parent / "openvino-cpu.toml").read_text()


@pytest.fixture(params=hw_profiles.names())
def device(request: pytest.FixtureRequest) -> Device:
    return hw_profiles.load(request.param)


def test_every_promised_device_is_there() -> None:
    assert set(hw_profiles.names()) >= PROMISED


def test_figures_cover_what_is_claimed(device: Device) -> None:
    assert set(device.precisions) <= set(device.peaks)
    assert device.precision in (*device.precisions, "auto")
    assert device.precisions[0] == "fp32"
    assert device.backend in device.backends
    assert min(device.peaks.values()) > 0
    assert device.band[0] <= 1 <= device.band[1]


def test_a_lower_precision_is_never_slower_at_its_peak(device: Device) -> None:
    peaks = [device.peaks[precision] for precision in ("fp32", "fp16", "int8") if precision in device.peaks]
    assert peaks == sorted(peaks)


def test_every_peak_and_every_assumption_has_a_source(device: Device) -> None:
    text = "\n".join(device.sources)
    for word in (*(precision for precision in device.peaks if not device.local), "launch_us"):
        assert word in text, f"{device.name}: no source for {word}"
    assert device.local or device.power_mode, "a predicted figure holds in a stated power mode"


def test_names_and_aliases_are_unique() -> None:
    known = [name for each in hw_profiles.names() for name in (each, *hw_profiles.load(each).aliases)]
    assert len(known) == len(set(known))


def test_an_alias_loads_its_device(device: Device) -> None:
    assert all(hw_profiles.load(alias) is device for alias in device.aliases)


def test_a_device_is_frozen_hashable_and_plain_data(device: Device) -> None:
    with pytest.raises(FrozenInstanceError):
        device.name = "x"
    assert hash(device) == hash(hw_profiles.load(device.name))
    assert asdict(device)["peaks"] == device.peaks


@pytest.mark.parametrize("name", [name for name in hw_profiles.names() if name.startswith("jetson")])
def test_a_jetson_states_its_toolchain(name: str) -> None:
    device = hw_profiles.load(name)
    assert device.compute_capability == {"jetson-xavier-nx": "7.2", "jetson-agx-thor": "11.0"}.get(name, "8.7")
    assert {"JetPack", "TensorRT", "ships", "opset"} <= set(device.toolchain)
    assert device.precision == "fp16"
    assert not device.local


def test_only_cpus_of_the_machine_at_hand_are_measured() -> None:
    assert {name for name in hw_profiles.names() if hw_profiles.load(name).local} == {
        "onnxruntime-cpu",
        "openvino-cpu",
        "tflite-cpu",
    }


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^no device 'toaster'; known: .*\bjetson-orin-nano\b.*openvino-cpu.*, cuda$"):
        hw_profiles.load("toaster")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "cpu"', 'kind = "cpu"\ncolour = "red"', "unknown key 'colour'; known: title, "),
        ('kind = "cpu"', "", "kind is missing; it is a string"),
        ('kind = "cpu"', 'kind = "toaster"', "kind='toaster' is not one of cpu, gpu, board, phone"),
        ("bandwidth = 15.0", 'bandwidth = "15"', "bandwidth='15' is not a number"),
        ("bandwidth = 15.0", "bandwidth = true", "bandwidth=True is not a number"),
        ("bandwidth = 15.0", "bandwidth = 0", "must be above 0"),
        ("local = true", "local = 1", "local=1 is not a true or false"),
        ("local = true", "threads = 1.5", "threads=1.5 is not a whole number"),
        ("band = [0.3, 3.0]", "band = [0.3]", "band=[0.3] is not a list of two numbers"),
        ("band = [0.3, 3.0]", "band = [2.0, 3.0]", "band=[2.0, 3.0] must enclose 1"),
        ('backend = "openvino"', 'backend = "abacus"', "backend='abacus' is not in backends"),
        ('["fp32", "bf16", "int8", "w8"]', '["int8"]', "precisions must start with fp32"),
        ('["fp32", "bf16", "int8", "w8"]', '["fp32", "int4"]', "no peak for int4"),
        ("fp32 = 96.0", 'fp32 = "fast"', "is not a table of numbers"),
        ("[peaks]", "[peaks", "not TOML: "),
        ("[peaks]", "quantisation = 3\n[peaks]", "quantisation=3 is not a table of tables, one a backend"),
        ("[peaks]", "[quantisation]\nopenvino = 1\n[peaks]", "quantisation.openvino=1 is not a table of leave_float"),
        ("[peaks]", "[quantisation.abacus]\n[peaks]", "quantisation names a backend that is not in backends"),
        ("[peaks]", "[quantisation.openvino]\nbits = 4\n[peaks]", "unknown key 'quantisation.openvino.bits'; known: "),
        (
            "[peaks]",
            '[quantisation.openvino]\nleave_float = "Add"\n[peaks]',
            "leave_float='Add' is not a list of strings",
        ),
        (
            "[peaks]",
            '[quantisation.openvino]\nranges = "best"\n[peaks]',
            "that are not one of minmax, percentile, entropy",
        ),
    ],
)
def test_a_wrong_profile_is_one_clear_line(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ValueError, match=r"^profile wrong: ") as caught:
        hw_profiles.parse_profile("wrong", GOOD.replace(old, new, 1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_device_overrides_the_int8_policy_of_a_backend() -> None:
    table = '[quantisation.openvino]\nleave_float = ["MVN"]\nranges = "percentile"\n'
    device = hw_profiles.parse_profile("mine", GOOD + table)
    assert device.quantisation == {"openvino": hw_profiles.Override(("MVN",), "percentile")}


def test_devices_are_data_and_bring_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, hw_profiles\n"
        "[hw_profiles.load(name) for name in hw_profiles.names()]\n"
        "print(sorted({'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("GPU", "did you mean one of jetson-agx-orin, jetson-agx-thor, jetson-orin-nano, "),
        ("tensorrt", "did you mean one of jetson-agx-orin, "),
        ("phone", "did you mean one of pixel-3, pixel-8, snapdragon-7-gen4?"),
        ("cpu", "did you mean one of onnxruntime-cpu, openvino-cpu, tflite-cpu?"),
        ("raspberry", "did you mean one of raspberry-pi-4, raspberry-pi-5?"),
        ("raspberry-pi", "did you mean one of raspberry-pi-4, raspberry-pi-5?"),
        ("pi", "did you mean one of raspberry-pi-4, raspberry-pi-5?"),
        ("Pixel", "did you mean one of pixel-3, pixel-8?"),
        ("rb3", "did you mean rb3-gen2?"),
        ("board", "did you mean one of dragonwing-q6690, raspberry-pi-4, raspberry-pi-5, rb3-gen2?"),
        ("openvno-cpu", "did you mean openvino-cpu?"),
        ("jetson-orin-nan", "did you mean jetson-orin-nano?"),
    ],
)
def test_a_word_for_several_devices_or_a_slip_is_answered_with_names(word: str, line: str) -> None:
    with pytest.raises(ValueError, match="no device ") as caught:
        hw_profiles.load(word)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("word", "name"), [("openvino", "openvino-cpu"), ("ort", "onnxruntime-cpu"), ("litert", "tflite-cpu")]
)
def test_a_runtime_names_this_machine_with_it(word: str, name: str) -> None:
    assert hw_profiles.load(word).name == name
