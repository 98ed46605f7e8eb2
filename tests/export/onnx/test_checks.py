"""Test that each bad ONNX file is refused in one line, and that nothing outside its folder is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hnas import export
from hnas.export import backends
from hnas.export.compiling.originals import capture_network
from hnas.export.device.errors import ExportError, one_line
from hnas.export.onnx import checks as onnx_checks
from hnas.export.onnx.reader import _reason
from hnas.export.onnx.sizes import fix_inputs
from hnas.export.onnx.source import Original
from tests.conftest import need
from tests.export.compile_flat import compile_flat
from tests.export.onnx_files import chain, convolution, images, model, save, weight

onnx = pytest.importorskip("onnx")
helper = onnx.helper


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    return save(convolution(), tmp_path / "hand.onnx")


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_backends_that_start_from_torch_refuse(tmp_path: Path, by_hand: Path) -> None:
    for backend in backends.names():
        why = backends.load(backend).no_onnx
        assert bool(why) == (backend in ("reference", "tflite"))
        if why:
            said = f"^{backend} takes no ONNX file: {why}; pass the torch module, or backend='o[a-z]+' or 'o[a-z]+'$"
            device = "tflite-cpu" if backend == "tflite" else "openvino-cpu"
            with pytest.raises(ValueError, match=said):
                compile_flat(by_hand, device=device, backend=backend, path=tmp_path / "a")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"recover": "round", "precision": "int8", "calibration": images(4)},
            "recover='round' edits the torch graph, .*; an ONNX file takes recover='bias'",
        ),
        ({"keep_float": ["head"], "precision": "int8", "calibration": images(4)}, "keep_float edits the torch graph"),
        ({"precision": "int8", "calibration": images(4, 3, 9, 9)}, r"calibration inputs are float32\[1, 3, 9, 9\]"),
        ({"evidence": images(4, 3, 8)}, r"evidence inputs are float32\[1, 3, 8\]"),
        ({"precision": "int8", "calibration": [np.full((1, 3, 8, 8), np.nan, np.float32)]}, "hold NaN or infinity"),
        (
            {"example_inputs": images(1, 3, 9, 9)[0]},
            r"takes x float32\[1, 3, 8, 8\]; the example inputs are float32\[1",
        ),
        (
            {"example_inputs": np.zeros((1, 3, 8, 8), int)},
            r"takes x float32\[1, 3, 8, 8\]; the example inputs are int64",
        ),
        ({"example_inputs": images(2)[0] * 2}, r"the example inputs are float32\[1, 3, 8, 8\], float32"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, by_hand: Path, options: dict[str, Any], says: str) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    with pytest.raises((ValueError, ExportError), match=says) as caught:
        compile_flat(by_hand, **{"device": "onnxruntime-cpu", "path": tmp_path / "a", **options})
    assert "\n" not in str(caught.value)
    assert left_behind(tmp_path) == ["hand.onnx"]


@pytest.mark.parametrize(
    ("count", "size", "says"),
    [
        (2, 8, r"have the shape \[2, 3, 8, 8\], those of hand.onnx are float32\[1, 3, 8, 8\]; open the file"),
        (1, 9, r"^the given example inputs are float32\[1, 3, 9, 9\], the example inputs float32\[1, 3, 8, 8\]$"),
    ],
)
def test_examples_of_another_shape_than_those_of_an_open_file(by_hand: Path, count: int, size: int, says: str) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    with (
        Original(by_hand) as original,
        pytest.raises(ValueError, match=says),
        capture_network(original, np.zeros((count, 3, size, size), np.float32), "onnxruntime"),
    ):
        pass


def test_a_module_needs_example_inputs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass example_inputs"):
        export.compile(torch.nn.ReLU(), path=tmp_path / "a")


def quantised() -> Any:
    weights = [onnx.numpy_helper.from_array(np.float32(0.1), "s")]
    return chain(("QuantizeLinear", "s"), ("DequantizeLinear", "s"), weights=weights)


def bomb() -> Any:
    sizes = onnx.numpy_helper.from_array(np.array([2**20, 2**22], np.int64), "n")
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["b"]),
        helper.make_node("ReduceSum", ["b"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    return model(nodes, {"x": [1, 3]}, {"y": [1, 3]}, [sizes])


def sequence() -> Any:
    made = chain("Relu")
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [1, 3]))
    made.graph.input[0].type.CopyFrom(kind)
    made.graph.node[0].op_type = "SequenceLength"
    return made


class Damaged:
    """A file with a name that is not UTF-8."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - as models have it
        return bytes(chain("Relu", sizes=("batch", 3)).SerializeToString().replace(b"batch", b"ba\xff\xfeh"))


def by_value() -> Any:
    made = chain("Relu", "NonZero", sizes=(1, 30))
    made.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return made


def larger() -> Any:
    made = convolution()
    made.graph.initializer[0].dims[0] = 2**40
    return made


def commanding(kind: str) -> Any:
    """Return a file with a name that would change the title of the terminal that prints it."""
    made = chain("Relu", "Foo", domains=("com.acme",)) if kind in ("op_type", "domain") else chain("Sqrt")
    node, name = made.graph.node[-1], "a\x1b]0;b\x07"
    if kind == "output":
        node.output[0] = made.graph.output[0].name = name
    else:
        node.domain = "com.acme" if kind == "op_type" else node.domain
        setattr(node, kind, name)
    return made


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "an operator of nobody": (lambda: chain("Foo"), r"bad.onnx uses Foo, which ONNX opset 17 does not have"),
    "an operator of later": (
        lambda: chain("Gelu"),
        r"uses Gelu, which ONNX opset 17 does not have \(newest: ",
    ),
    "an opset of nobody": (lambda: chain("Relu", opset=2**40), "uses Relu, which ONNX opset 1099511627776 does not"),
    "a name that is no text": (Damaged, "bad.onnx is not a valid ONNX file: a name in it is not UTF-8 text"),
    "a foreign domain": (
        lambda: convolution(extra="com.acme:Foo", domains=("com.acme",)),
        "does not open bad.onnx: it has no operator Foo of domain com.acme",
    ),
    "an opset to come": (lambda: chain("Relu", opset=99), r"it supports opset \d+, the file has opset 99"),
    "quantised": (quantised, r"is already quantised \(1 DequantizeLinear, 1 QuantizeLinear\); give the float file"),
    "random": (lambda: chain("RandomNormalLike"), r"draws random numbers \(RandomNormalLike\)"),
    "NaN in a weight": (lambda: convolution(fill=np.nan), "constant kernel of bad.onnx holds NaN"),
    "infinity in a weight": (lambda: convolution(fill=np.inf), "constant kernel of bad.onnx holds infinity"),
    "NaN in the output": (lambda: chain("Log"), "output y of bad.onnx holds NaN on its example inputs"),
    "open sizes": (
        lambda: chain("Relu", sizes=("N", 3)),
        r"takes x float32\[N, 3\], with dynamic sizes; give example inputs",
    ),
    "no sizes at all": (lambda: chain("Relu", sizes=("", 3)), r"takes x float32\[\?, 3\], with dynamic sizes"),
    "sizes by value": (by_value, r"y of bad.onnx is \[2, \d+\] on the example inputs, \[2, \d+\] on others"),
    "a sequence": (sequence, "input x of bad.onnx is a sequence; an artifact takes tensors of numbers"),
    "words": (
        lambda: chain("Identity", dtype=8),
        "input x of bad.onnx: dtype is 'object', expected one like float32",
    ),
    "a type of few": (lambda: chain("Relu", dtype=17), "input x of bad.onnx: dtype is 'float8_e4m3fn'"),
    **{
        f"a terminal's command as {kind}": (
            partial(commanding, kind),
            r"bad.onnx has a name that cannot be printed, 'a\\x1b\]0;b\\x07'; rename it$",
        )
        for kind in ("output", "name", "op_type", "domain")
    },
    "an unsorted graph": (lambda: chain(("Add", "later")), "bad.onnx is not a valid ONNX file: "),
    "a weight of other bytes": (larger, "bad.onnx is not a valid ONNX file: .*kernel"),
    "more memory than there is": (bomb, "does not run on its example inputs: ConstantOfShape: .*memory"),
    "an input of everything": (
        lambda: chain("Relu", sizes=(2**40,)),
        r"shape is \[1099511627776\], expected at most",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_file_is_one_line(tmp_path: Path, case: str) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    make, says = HOSTILE[case]
    (tmp_path / "bad.onnx").write_bytes(make().SerializeToString())
    with pytest.raises((ValueError, ExportError), match=says) as caught:
        export.compile(tmp_path / "bad.onnx", device="onnxruntime-cpu", path=tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert left_behind(tmp_path) == ["bad.onnx"]


def test_what_is_cut_off_is_no_file(tmp_path: Path) -> None:
    whole = convolution().SerializeToString()
    path = tmp_path / "cut.onnx"
    rng = np.random.default_rng(0)
    for size in (0, 1, 17, *rng.integers(18, len(whole), 40), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(
            ValueError, match=r"^cut.onnx (is not an ONNX file, or is truncated|is not a valid ONNX file|uses )"
        ):
            onnx_checks.read_onnx(path)
    path.write_text("this is a text")
    with pytest.raises(ValueError, match=r"^cut.onnx is not an ONNX file, or is truncated \(14 bytes\)$"):
        onnx_checks.read_onnx(path)
    with pytest.raises(FileNotFoundError, match="no ONNX file at"):
        export.compile(tmp_path / "absent.onnx", device="onnxruntime-cpu", path=tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no ONNX file at"):
        export.compile(tmp_path, device="onnxruntime-cpu", path=tmp_path / "a")


def test_any_byte_may_be_another(tmp_path: Path) -> None:
    """A flipped byte is refused in one line, or gives another valid file."""
    whole = bytearray(convolution().SerializeToString())
    path = tmp_path / "flipped.onnx"
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(whole), 120):
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        said = ""
        try:
            fix_inputs(onnx_checks.read_onnx(path), None)
        except ValueError as error:
            said = str(error)
        assert "\n" not in said
        assert len(said) < 400


def entry(key: str, value: str) -> Callable[[Path], None]:
    """Return a function that changes where the file says that its weights are."""

    def change(path: Path) -> None:
        made = onnx.load(path, load_external_data=False)
        for tensor in made.graph.initializer:
            for found in tensor.external_data:
                found.value = value if found.key == key else found.value
        path.write_bytes(made.SerializeToString())

    return change


def linked(path: Path) -> None:
    (path.parent / "w.bin").unlink()
    (path.parent / "w.bin").symlink_to(path.parents[1] / "secret")


OUTSIDE: dict[str, tuple[Callable[[Path], None], str]] = {
    "above": (entry("location", "../secret"), "'../secret' is not a plain path inside the folder"),
    "absolute": (entry("location", "/etc/hostname"), "'/etc/hostname' is not a plain path inside the folder"),
    "a link out": (linked, "is a link that leaves"),
    "missing": (entry("location", "none.bin"), r"none.bin is missing"),
    "the folder itself": (entry("location", ""), "is not a plain path inside the folder"),
    "behind the end": (entry("offset", "99999"), r"claims bytes 99999 to \d+ of w.bin, which has \d+"),
    "before the beginning": (entry("offset", "-5"), "claims bytes -5 to"),
    "nowhere": (entry("offset", "abc"), "'abc'"),
    "of negative length": (entry("length", "-1"), "claims bytes 0 to -1"),
    "of another length": (entry("length", "4"), r"is not a valid ONNX file: .*kernel"),
    "cut off": (lambda path: (path.parent / "w.bin").write_bytes(b"abc") and None, "of w.bin, which has 3$"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_weights_outside_of_the_folder_are_not_read(tmp_path: Path, case: str) -> None:
    change, says = OUTSIDE[case]
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"s" * 10000)
    path = save(convolution(), tmp_path / "in" / "m.onnx", "w.bin")
    change(path)
    with pytest.raises(ValueError, match=says) as caught:
        onnx_checks.read_onnx(path)
    assert "m.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_than_a_message_can_hold(tmp_path: Path, by_hand: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(convolution(), tmp_path / "m.onnx", "w.bin")
    monkeypatch.setattr(onnx_checks, "LARGEST", path.stat().st_size)
    with pytest.raises(ValueError, match="has more than 2 GB with its weights"):
        onnx_checks.read_onnx(path)
    with pytest.raises(ValueError, match=r"hand.onnx has \d+ bytes; an ONNX file has at most"):
        onnx_checks.read_onnx(by_hand)


def test_a_mask_may_hold_infinities(tmp_path: Path) -> None:
    mask = onnx.numpy_helper.from_array(np.array([[0.0, -np.inf, 0.0]], np.float32), "mask")
    path = save(chain(("Add", "mask"), "Softmax", weights=[mask]), tmp_path / "masked.onnx")
    assert onnx_checks.read_onnx(path).changes == []


def test_a_mask_without_a_name_beside_a_layer_that_leaves_an_input_out(tmp_path: Path) -> None:
    mask = onnx.numpy_helper.from_array(np.array([0.0, -np.inf, 0.0, 0.0], np.float32))
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "", "", ""], ["all", "last"], hidden_size=4),
        helper.make_node("Constant", [], ["mask"], value=mask),
        helper.make_node("Add", ["last", "mask"], ["y"]),
    ]
    made = model(nodes, {"x": [5, 2, 3]}, {"y": [1, 2, 4]}, [weight("w", 1, 16, 3), weight("r", 1, 16, 4)])
    assert onnx_checks.read_onnx(save(made, tmp_path / "masked.onnx")).changes == []


def test_foreign_words_are_no_commands_to_a_terminal() -> None:
    assert one_line(RuntimeError("\x1b[31mno\x1b[0m node \x1b]0;b\x07\tat\rall\nmore")) == (
        r"RuntimeError: no node \x1b]0;b\x07 at"
    )


# --- the process that reads -------------------------------------------------------------------------------------------


def test_a_reader_that_dies_is_one_line_and_leaves_no_copy(by_hand: Path) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    with Original(by_hand) as original:
        copy = Path(original.source.path)
        assert copy.is_file()
        original._process.kill()
        with pytest.raises(ExportError, match=r"^the reader of hand.onnx died with SIGKILL on 'run'"):
            original.probes()
    assert not copy.parent.exists()


def test_a_runtimes_reason_names_the_operator() -> None:
    said = RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Conv(11) node")
    assert _reason(said) == "it has no Conv of opset 11 for these types"
    assert (
        _reason(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Load model from /a/b failed:what\nelse")) == "what else"
    )
