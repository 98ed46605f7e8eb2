"""hnas as a Python package: light to import, short to explain, typed, and with the texts of the command line."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

import hnas
from hnas.cli.training import make_train_parser
from hnas.data.images import Preprocessing
from hnas.deployment import classifier
from hnas.export import backends
from hnas.export.device.errors import Unavailable
from tests.conftest import need

FUNCTIONS = ("train", "deploy", "deploy_network", "load", "check", "targets", "doctor")
HEAVY = ("torch", "numpy", "rich", "PIL", "msgspec", "pymoo")


def python(code: str, *blocked: str) -> str:
    """Run code in a new process in which the ``blocked`` packages cannot be imported, and return what it prints."""
    start = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the names --------------------------------------------------------------------------------------------------------


def test_import_loads_nothing_heavy() -> None:
    assert python(f"import hnas\nprint([name for name in {HEAVY} if name in sys.modules])") == "[]\n"


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_waiting_threads_sleep_early_unless_the_user_says_otherwise(own: dict[str, str], expected: str) -> None:
    """OpenMP itself says how often its threads turn: a variable that is set after torch is loaded has no effect."""
    usual = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", "import hnas.training.loop"]
    shown = usual | {"OMP_DISPLAY_ENV": "VERBOSE"} | own
    done = subprocess.run(command, env=shown, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr


def test_every_function_is_there_with_its_signature_without_torch() -> None:
    code = "import hnas, inspect\n" + "".join(f"print(inspect.signature(hnas.{name}))\n" for name in FUNCTIONS)
    shown = python(code, "torch")
    assert shown.count("\n") == len(FUNCTIONS)
    assert "max_latency: 'str | None' = None" in shown


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_explains_itself_with_an_example(name: str) -> None:
    text = inspect.getdoc(getattr(hnas, name)) or ""
    assert "Example:\n" in text
    assert f"hnas.{name}(" in text


def test_every_name_that_an_ide_sees_is_there() -> None:
    text = Path(hnas.__file__).read_text("utf-8")
    named = [line.split(" as ")[1] for line in text.splitlines() if line.startswith("    from hnas.")]
    assert len(named) > 20
    assert all(getattr(hnas, name) is not None for name in named)
    assert sorted(named) == sorted(name for names in hnas._HOME.values() for name in names)


def test_help_fits_on_a_screen_and_needs_no_torch() -> None:
    shown = python("import hnas; help(hnas)", *HEAVY[:1])
    assert shown.count("\n") <= 56
    assert all(f"hnas.{name}(" in shown for name in FUNCTIONS)


def test_names_that_import_torch_are_completed_once_it_is_imported() -> None:
    heavy = ["Deployment", "Stats", "Study", "Supernet"]
    listed = f"print([name for name in dir(hnas) if name in {heavy}])"
    assert python(f"import hnas\n{listed}", "torch") == "[]\n"
    shown = python(f"import hnas\n{listed}\nsys.modules['torch'] = sys\n{listed}")
    assert shown == f"[]\n{heavy}\n"


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert hnas.__version__ == version("hnas")
    with pytest.raises(AttributeError, match="no attribute 'deplyo'"):
        hnas.deplyo  # noqa: B018


# --- wrong use --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: hnas.deploy("openvino-cpu", max_latency=1), "latency '1' is not understood"),
        (lambda: hnas.deploy("toaster"), "no device 'toaster'; known: "),
        (lambda: hnas.deploy_network("a:b", "openvino-cpu", inputs=["1xN"]), "--input '1xN' is not understood"),
        (lambda: hnas.deploy_network("a:b", "openvino-cpu", limit="25"), "25"),
        (lambda: hnas.train("photos", "out", epochs="many"), "argument --epochs: "),
        (lambda: hnas.train("photos", "out", recipe="soup"), "no recipe 'soup'; known: "),
        (lambda: hnas.train("photos", "out", recipe="imges"), "no recipe 'imges'; did you mean images?; known: "),
        (lambda: hnas.load(3), "bundle is 3, expected the path of a folder"),
        (lambda: hnas.check("x", max_time="soon"), "max_time is 'soon', not a number above 0"),
        (lambda: hnas.check("x", min_speedup=0), "min_speedup is 0, not a number above 0"),
        (lambda: hnas.check("x", processes=0), "processes is 0, expected a whole number of 1 or more"),
        (lambda: hnas.check(3), "bundle is 3, expected the path of a folder"),
    ],
)
def test_wrong_use_is_a_value_error_in_one_line(call: Any, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_values_are_refused_before_torch_is_imported() -> None:
    calls = (
        "hnas.deploy('openvino-cpu', budget=40)",
        "hnas.deploy('openvino-cpu', precision='int3')",
        "hnas.deploy('openvino-cpu', min_accuracy='92')",
        "hnas.deploy('openvino-cpu', data='nowhere')",
        "hnas.deploy('openvino-cpu', out='nowhere', resume=True)",
        "hnas.deploy_network('a:b', 'openvino-cpu', threads='2')",
        "hnas.train('photos', 'out', recipe='soup')",
        "hnas.train('nowhere', 'out')",
        "hnas.train('.', 'gone', resume=True)",
        "hnas.train('.', 'out', epochs=-1)",
        "hnas.train('.', 'out', minutes=0)",
        "hnas.train('.', 'out', minutes=1, epochs=1)",
        "hnas.train('.', 'out', threads=0)",
        "hnas.train('.', 'out', seed=-1)",
        "hnas.train('.', 'out', alone='best')",
        "hnas.train('.', 'out', device='tpu')",
        "hnas.train('.', '/proc/x')",
        "hnas.train('.', 'out', pretrained='mobilenetv2_100', from_scratch=True)",
    )
    tried = "".join(f"try: {call}\nexcept (ValueError, OSError) as error: print(error)\n" for call in calls)
    shown = python(f"import hnas\n{tried}print('torch' in sys.modules)")
    assert shown.count("\n") == len(calls) + 1
    assert shown.endswith("False\n")


def test_what_is_not_there_is_refused_before_torch_is_imported() -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    lines = {
        "score --supernet /nowhere": "no folder /nowhere; --supernet takes",
        "score --supernet . --data /nowhere": "no folder /nowhere; --data takes",
        "score --supernet . --subnets 0": "subnets is 0; give 1 to 500",
        "export nowhere.onnx --target onnxruntime-cpu": "no ONNX file at nowhere.onnx",
        "export --model nowhere:x --target onnxruntime-cpu": "no module 'nowhere' in",
        "export --model nowhere.nets:x --target onnxruntime-cpu": "no module 'nowhere.nets' in",
        "export --model .nets:x --target onnxruntime-cpu": "no module '.nets' in",
        "export --model json.nosuch:x --target onnxruntime-cpu": "no module 'json.nosuch' in",
        "export --model json:x --target onnxruntime-cpu --calibration nowhere": "no calibration file nowhere",
        "export --model nets --target onnxruntime-cpu": "--model 'nets' is not understood",
    }
    shown = python(
        "from hnas.cli import deploy_main\nsys.stderr = sys.stdout\n"
        f"for line in {[*lines]}: print(deploy_main(line.split()), 'torch' in sys.modules)"
    ).splitlines()
    assert shown[1::2] == ["2 False"] * len(lines)
    for text, said in zip(lines.values(), shown[::2], strict=True):
        assert text in said


def test_a_missing_package_is_unavailable() -> None:
    for call in ("hnas.deploy('onnxruntime-cpu')", "hnas.train('.', 'out')"):
        shown = python(f"import hnas\ntry: {call}\nexcept hnas.Unavailable as error: print(error)", "torch")
        assert "torch is not installed; pip install 'hnas[search" in shown


def test_missing_weights_are_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Unavailable, match=r"resnet18 needs timm, which is not installed; pip install"):
        hnas.train(tmp_path, tmp_path / "out", pretrained="resnet18")


def test_the_parameters_of_train_are_the_flags_of_the_command() -> None:
    own = {"help", "==SUPPRESS==", "config", "print_config", "json"}
    flags = {action.dest: action for action in make_train_parser()._actions if action.dest not in own}
    parameters = {n: p for n, p in inspect.signature(hnas.train).parameters.items() if not n.startswith("on_")}
    assert set(flags) == set(parameters)
    for name, parameter in parameters.items():
        if parameter.default is not inspect.Parameter.empty and name != "recipe":
            assert flags[name].default == parameter.default, name


# --- a bundle ---------------------------------------------------------------------------------------------------------


def test_load_classifies_files_images_arrays_and_lists(bundle: Path, photo: Path) -> None:
    net = hnas.load(bundle)
    expected = net.predict(str(photo))
    assert sorted(label for label, _ in expected) == sorted(net.labels)
    assert sum(odds for _, odds in expected) == pytest.approx(1)
    assert [odds for _, odds in expected] == sorted((odds for _, odds in expected), reverse=True)
    image = Image.open(photo)
    pixels = np.asarray(image)
    for same in (photo, image, pixels):
        assert net.predict(same) == expected
    assert net.predict([photo, pixels]) == [expected, expected]
    assert net.predict(np.stack([pixels, pixels])) == [expected, expected]
    assert net.predict(photo, top=2) == expected[:2]
    assert net.predict(pixels[..., 0]) == net.predict(pixels[..., :1]) == net.predict(Image.fromarray(pixels[..., 0]))


MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


def in_mode(photo: Path, mode: str) -> Image.Image:
    """Return the photo in a mode of Pillow."""
    image = Image.open(photo)
    if mode == "LAB":
        both = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        change = ImageCms.buildTransform(*both, "RGB", "LAB")
        return ImageCms.applyTransform(image, change)
    between = {"La": ["LA"], "RGBa": ["RGBA"], "PA": ["P"]}.get(mode, [])
    for each in (*between, mode):
        image = image.convert(each)
    return image


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_mode_are_read(photo: Path, mode: str, channels: int) -> None:
    image = in_mode(photo, mode)
    prepare = Preprocessing(image.size[::-1], image.size[::-1], (0.5,) * channels, (0.5,) * channels)
    base = {"1": "1", "L": "L", "LA": "L", "La": "L", "P": "P", "PA": "P"}.get(mode, "RGB")
    expected = np.asarray(Image.open(photo).convert(base).convert("L" if channels == 1 else "RGB"))
    found = classifier._read_pixels(image, prepare).reshape(expected.shape)
    coarse = mode in ("YCbCr", "HSV", "LAB")  # their 8 bits do not tell all colours of RGB apart
    assert np.abs(found.astype(int) - expected).mean() <= (2 if coarse else 0)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        *(("RGB", ending) for ending in ("png", "jpg", "tif", "webp")),
        *(("RGBA", "png"), ("RGBA", "tif"), ("CMYK", "jpg"), ("CMYK", "tif"), ("I;16", "png"), ("I;16", "tif")),
        *(("P", "png"), ("P", "gif"), ("1", "png")),
    ],
)
def test_an_open_image_is_read_as_its_file(photo: Path, tmp_path: Path, mode: str, ending: str) -> None:
    name = f"a.{ending}"
    image = Image.open(photo)
    grey = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    (grey if mode == "I;16" else image.convert(mode)).save(tmp_path / name, exif=exif)
    prepare = Preprocessing((8, 8), (8, 8), (0.5,) * 3, (0.5,) * 3)
    with Image.open(tmp_path / name) as opened:
        found = classifier._read_pixels(opened, prepare)
    assert np.array_equal(found, classifier._read_pixels(tmp_path / name, prepare))


def test_a_truncated_image_is_one_line(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:-99])
    prepare = Preprocessing((8, 8), (8, 8), (0.5,), (0.5,))
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(ValueError, match="the image cannot be read as an"):
        classifier._read_pixels(image, prepare)


@pytest.mark.parametrize(
    ("image", "line"),
    [
        (Image.new("F", (4, 4)), "the image cannot be read as an image: its pixels have 32 bits (mode F)"),
        (Image.new("I", (4, 4)), "the image cannot be read as an image: its pixels have 32 bits (mode I)"),
        (3, "an image is a path, a PIL image or an array uint8 [H, W, 3]; got int"),
        (np.zeros((4, 4, 3)), "an array is uint8 [H, W], [H, W, 1] or [H, W, 3]; got float64 [4, 4, 3]"),
        (np.zeros((3, 4, 4), np.uint8), "got uint8 [3, 4, 4]"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
    ],
)
def test_what_is_no_image_is_refused(bundle: Path, image: Any, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        hnas.load(bundle).predict(image)
    assert line in str(caught.value)


def test_a_missing_image_or_bundle_is_named(bundle: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image file gone\.png"):
        hnas.load(bundle).predict("gone.png")
    with pytest.raises(FileNotFoundError, match="no bundle at nowhere"):
        hnas.load("nowhere")


def test_load_and_check_need_no_torch(bundle: Path, photo: Path) -> None:
    code = f"import hnas\nprint(len(hnas.load({str(bundle)!r}).predict({str(photo)!r})))\n"
    code += f"print(hnas.check({str(bundle)!r}, max_time=1, processes=1).outcome)"
    count, outcome = python(code, "torch", "safetensors", "pymoo", "msgspec").split()
    assert count == "10"
    assert outcome in ("holds", "fails", "inconclusive")


def test_targets_and_doctor_are_records() -> None:
    assert [device.name for device in hnas.targets()] == sorted(device.name for device in hnas.targets())
    reports = {report.backend: report for report in hnas.doctor()}
    assert reports["reference"].runs
    assert reports["reference"].builds
    assert reports["reference"].install is None
