"""The corpus: each case spoils a copy of a good file and names the command that reads it.

A case is (command, builder, words): the builder gets the folder of good files and an empty folder to work in, and
returns the arguments of the command. The line that refuses the input has the words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from tests.hostile import builders as b

Build: TypeAlias = Callable[[Path, Path], list[object]]


class Case(NamedTuple):
    """One hostile input, the command that reads it, and words of the line that refuses it."""

    command: str
    build: Build
    words: str = ""


def _bundle(spoil: Callable[[Path], object], *verb: str) -> Build:
    """Return a builder that spoils a copy of the good bundle and shows it, or runs ``verb``."""

    def build(good: Path, work: Path) -> list[object]:
        bundle = b.copied(good / "bundle", work / "bundle")
        spoil(bundle)
        return [*(verb or ("show",)), bundle]

    return build


def _manifest(change: Callable[[dict[str, Any]], object]) -> Build:
    return _bundle(lambda bundle: b.reseal(bundle, change))


def _record(change: Callable[[dict[str, Any]], object]) -> Build:
    """Return a builder that changes artifact.json and seals the bundle again."""

    def spoil(bundle: Path) -> None:
        b.edit_json(bundle / "artifact/artifact.json", change)
        b.reseal(bundle)

    return _bundle(spoil)


def _text(content: bytes, name: str = "manifest.json") -> Build:
    return _bundle(lambda bundle: (bundle / name).write_bytes(content))


def _put(field: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Return a change that sets a field; dots lead into objects."""

    def change(record: dict[str, Any]) -> None:
        *path, last = field.split(".")
        for key in path:
            record = record[key]
        record[last] = value

    return change


def _huge(bundle: Path) -> None:
    """Let the manifest state a terabyte, and have it, in holes."""
    b.sparse(bundle / "artifact/model.onnx")
    b.reseal(bundle, lambda m: m["sizes"].update({"artifact/model.onnx": b.TERABYTE}), renew=False)


def _sizeless(bundle: Path) -> None:
    """Make a bundle as hnas 0.1.0 wrote it, and let a file grow to a terabyte."""
    b.sparse(bundle / "artifact/model.onnx")
    b.reseal(bundle, lambda m: m.pop("sizes"), renew=False)


def _unlisted_weights(bundle: Path) -> None:
    """Leave a file with weights out of artifact.json."""
    (bundle / "artifact/model.onnx").write_bytes(b.onnx_with_external("w.bin"))
    (bundle / "artifact/w.bin").write_bytes(bytes(16))
    b.seal_file(bundle / "artifact", "model.onnx")
    b.reseal(bundle, lambda m: (m["files"].update(LISTED), m["sizes"].update({"artifact/w.bin": 16})))


LISTED = {"artifact/w.bin": "374708fff7719dd5979ec875d56cd2286f6d3cf7ec317a3b25632aab28ec37bb"}
DEEP, WIDE = b"[" * 200_000, b'{"schema": 1, "a": "' + b"x" * 2**24 + b'"}'

MANIFESTS: Mapping[str, Build] = {
    "empty": _text(b""),
    "binary": _text(bytes(range(256))),
    "a list": _text(b"[1]"),
    "a number": _text(b"5"),
    "a key twice": _text(b'{"schema": 1, "schema": 1}'),
    "not a number": _text(b'{"schema": NaN}'),
    "beyond floats": _text(b'{"schema": 1, "size_bytes": 1e999}'),
    "a long integer": _text(b'{"schema": 1, "size_bytes": ' + b"9" * 5000 + b"}"),
    "deep": _text(DEEP),
    "wide": _text(WIDE),
    "utf-16": _text('{"schema": 1}'.encode("utf-16")),
    "half a character": _text(b'{"schema": 1, "name": "\\ud800"}'),
    "another schema": _manifest(_put("schema", 9)),
    "an unknown key": _manifest(_put("evil", 1)),
    "escape in a key": _manifest(lambda m: m.update({"\x1b[2J": 1})),
    "escape in a name": _manifest(_put("name", "a\x1b]0;b\x07")),
    "a name of two lines": _manifest(_put("name", "a\nb")),
    "no zone": _manifest(_put("created", "2026-01-01")),
    "negative size": _manifest(_put("size_bytes", -1)),
    "latency outside its interval": _manifest(_put("latency.low", 99.0)),
    "latency is text": _manifest(_put("latency.value", "1")),
    "threads": _manifest(_put("latency.threads", 0)),
    "speedup of nothing": _manifest(_put("speedup.low", 0.0)),
    "accuracy of 2": _manifest(_put("accuracy.artifact", 2.0)),
    "labels are numbers": _manifest(_put("labels", [1, 2])),
    "artifact outside": _manifest(_put("artifact", "../artifact")),
    "artifact absolute": _manifest(_put("artifact", "/etc")),
    "no baseline": _manifest(_put("baseline", "baseline")),
    "verification failed": _manifest(_put("verification.passed", False)),
    "another backend": _manifest(_put("backend", "openvino")),
    "file outside": _manifest(lambda m: (m["files"].update({"../x": "0" * 64}), m["sizes"].update({"../x": 1}))),
    "file absolute": _manifest(lambda m: m.update(files={"/etc/passwd": "0" * 64}, sizes={"/etc/passwd": 1})),
    "file with an escape": _manifest(lambda m: m.update(files={"a\x1b[31m": "0" * 64}, sizes={"a\x1b[31m": 1})),
    "file with a drive": _manifest(lambda m: m.update(files={"C:\\x": "0" * 64}, sizes={"C:\\x": 1})),
    "no hash": _manifest(lambda m: m.update(files={"README.md": "beef"}, sizes={"README.md": 1})),
    "sizes of others": _manifest(_put("sizes", {"nothing": 1})),
    "negative sizes": _manifest(lambda m: m["sizes"].update({"README.md": -1})),
    "sizes beyond all": _manifest(lambda m: m["sizes"].update({"README.md": 2**62})),
    "not sealed": _bundle(lambda bundle: b.edit_json(bundle / "manifest.json", _put("name", "x"))),
}
FOLDERS: Mapping[str, Build] = {
    "a terabyte that is stated": _bundle(_huge),
    "a terabyte that is not stated": _bundle(_sizeless),
    "a terabyte of manifest": _bundle(lambda bundle: b.sparse(bundle / "manifest.json")),
    "a terabyte of record": _bundle(lambda bundle: b.sparse(bundle / "artifact/artifact.json")),
    "a longer file": _bundle(lambda bundle: b.sparse(bundle / "README.md", 2**33)),
    "manifest is a pipe": _bundle(lambda bundle: b.fifo(bundle / "manifest.json")),
    "manifest is a device": _bundle(lambda bundle: b.device(bundle / "manifest.json")),
    "manifest is a socket": _bundle(lambda bundle: b.unix_socket(bundle / "manifest.json")),
    "manifest is a folder": _bundle(lambda p: ((p / "manifest.json").unlink(), (p / "manifest.json").mkdir())),
    "model is a pipe": _bundle(lambda bundle: b.fifo(bundle / "artifact/model.onnx")),
    "model is a socket": _bundle(lambda bundle: b.unix_socket(bundle / "artifact/model.onnx")),
    "model is a device": _bundle(lambda bundle: b.device(bundle / "artifact/model.onnx")),
    "record is a pipe": _bundle(lambda bundle: b.fifo(bundle / "artifact/artifact.json")),
    "a pipe more": _bundle(lambda bundle: b.fifo(bundle / "more")),
    "a link out": _bundle(lambda bundle: (bundle / "more").symlink_to("/etc")),
    "a link in a circle": _bundle(lambda p: ((p / "README.md").unlink(), (p / "README.md").symlink_to("README.md"))),
    "a file more": _bundle(lambda bundle: (bundle / "artifact/\x1b[2Jmore").write_text("")),
    "a file less": _bundle(lambda bundle: (bundle / "README.md").unlink()),
    "weights that are not listed": _bundle(_unlisted_weights),
}
RECORDS: Mapping[str, Build] = {
    "5000 threads": _record(_put("threads", 5000)),
    "threads below none": _record(_put("threads", -1)),
    "a backend that is a module": _record(_put("backend", "os.path")),
    "a backend of two lines": _record(_put("backend", "a\nb")),
    "a tensor of a petabyte": _record(_put("inputs", [{"name": "x", "shape": [10**9, 10**6], "dtype": "float32"}])),
    "a negative tensor": _record(_put("inputs", [{"name": "x", "shape": [-1], "dtype": "float32"}])),
    "a tensor of objects": _record(_put("inputs", [{"name": "x", "shape": [1], "dtype": "O"}])),
    "no model": _record(lambda r: r.update(files={}, sizes={})),
    "model outside": _record(lambda r: r.update(files={"../../x": "0" * 64}, sizes={"../../x": 1})),
    "model of another kind": _record(_put("backend", "tflite")),
    "notes are a list": _record(_put("notes", [])),
}

# --- ONNX files, bare models ------------------------------------------------------------------------------------------


def _onnx(content: Callable[[bytes], bytes], more: Callable[[Path], object] = lambda _: None) -> Build:
    """Return a builder that exports a changed copy of the good ONNX file."""

    def build(good: Path, work: Path) -> list[object]:
        (work / "net.onnx").write_bytes(content((good / "net.onnx").read_bytes()))
        more(work)
        return ["export", "net.onnx", "--target", "onnxruntime-cpu", "--out", work / "out"]

    return build


def _compare(name: str, spoil: Callable[[Path], object]) -> Build:
    """Return a builder that compares a spoilt bare model with a good one."""

    def build(good: Path, work: Path) -> list[object]:
        b.copied(good / "net.onnx", work / name)
        spoil(work / name)
        flags = ("--input-shape", "1x1x28x28", "--processes", "1", "--max-time", "5s")
        return ["compare", name, good / "net.onnx", *flags]

    return build


def _bomb(kind: str, *, stated: bool = True) -> bytes:
    """Return an ONNX file of a few hundred bytes whose values need gigabytes. ``stated``: it has the output's shape."""
    from onnx import TensorProto, helper

    size = 950_000_000
    shapes = {"x": [1], "y": [size] if stated else None}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    many = helper.make_tensor("n", TensorProto.INT64, [1], [size])
    if kind == "Tile":
        nodes = [helper.make_node("Tile", ["x", "n"], ["y"])]
    else:
        nodes = [helper.make_node("ConstantOfShape", ["n"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [many])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found: bytes = model.SerializeToString()
    return found


def _outside(location: str) -> Build:
    return _onnx(lambda _: b.onnx_with_external(location))


EXPORTED: Mapping[str, Build] = {
    "onnx empty": _onnx(lambda _: b""),
    "onnx zeros": _onnx(lambda _: bytes(1000)),
    "onnx text": _onnx(lambda _: b"<html></html>"),
    "onnx zip": _onnx(lambda _: b"PK\x03\x04" + bytes(60)),
    "onnx half": _onnx(lambda whole: whole[: len(whole) // 2]),
    "onnx without its end": _onnx(lambda whole: whole[:-3]),
    "onnx of a terabyte": _onnx(lambda whole: whole, lambda work: b.sparse(work / "net.onnx")),
    "onnx is a pipe": _onnx(lambda whole: whole, lambda work: b.fifo(work / "net.onnx")),
    "onnx is a device": _onnx(lambda whole: whole, lambda work: b.device(work / "net.onnx")),
    "onnx is a folder": _onnx(
        lambda whole: whole, lambda work: ((work / "net.onnx").unlink(), (work / "net.onnx").mkdir())
    ),
    "onnx weights gone": _outside("w.bin"),
    "onnx weights outside": _outside("../../../../etc/passwd"),
    "onnx weights absolute": _outside("/etc/passwd"),
    "onnx weights with an escape": _outside("\x1b[2Jw"),
    "onnx weights are a pipe": _onnx(lambda _: b.onnx_with_external("w"), lambda work: os.mkfifo(work / "w")),
    "onnx weights are a device": _onnx(
        lambda _: b.onnx_with_external("w"), lambda work: (work / "w").symlink_to("/dev/zero")
    ),
    "onnx weights value first": _onnx(lambda _: b.onnx_with_external("/etc/passwd", value_first=True)),
    "onnx Tile bomb": _onnx(lambda _: _bomb("Tile")),
    "onnx Tile bomb without a shape": _onnx(lambda _: _bomb("Tile", stated=False)),
    "onnx constant bomb": _onnx(lambda _: _bomb("ConstantOfShape")),
}
COMPARED: Mapping[str, Build] = {
    **{
        f"{name} flipped {seed}": _compare(name, lambda p, s=seed: b.flip(p, s))
        for seed in (2, 3)
        for name in ("m.xml", "m.tflite")
    },
    **{f"onnx cut {seed}": _compare("m.onnx", lambda p, s=seed: b.cut(p, s)) for seed in (1, 2)},
    "openvino text": _compare("m.xml", lambda p: p.write_text("<?xml version='1.0'?><net name='a' version='11'/>")),
    "openvino empty": _compare("m.xml", lambda p: p.write_bytes(b"")),
    "openvino weights are a pipe": _compare("m.xml", lambda p: os.mkfifo(p.with_suffix(".bin"))),
    "tflite empty": _compare("m.tflite", lambda p: p.write_bytes(b"")),
    "tflite header": _compare("m.tflite", lambda p: p.write_bytes(b"\xff\xff\xff\x7fTFL3" + bytes(99))),
    "bare terabyte": _compare("m.onnx", b.sparse),
    "bare pipe": _compare("m.onnx", b.fifo),
    "bare bomb": _compare("m.onnx", lambda p: p.write_bytes(_bomb("ConstantOfShape"))),
    "bare of another kind": _compare("m.pt", lambda p: p.write_bytes(b"\x80\x02}q\x00.")),
}


# --- suites of claims, histories, bundles on their way into and out of a store ----------------------------------------


def _file(name: str, content: bytes | Callable[[Path], object], *verb: str) -> Build:
    """Return a builder that writes a file in the empty folder and gives it to the command ``verb``."""

    def build(_: Path, work: Path) -> list[object]:
        (work / name).write_bytes(content if isinstance(content, bytes) else b"")
        if not isinstance(content, bytes):
            content(work / name)
        return [*verb, name, *(("--out", work / "out") if verb in {("pull",), ("report",)} else ())]

    return build


def _suite(claim: str) -> Build:
    return _file("s.toml", f"[[claim]]\nname = 'a'\n{claim}\n".encode(), "run")


def _sent(spoil: Callable[[Path], object]) -> dict[str, Build]:
    """Return builders that pack and push a spoilt bundle."""
    flags = {"pack": ("--out", "b.tar"), "push": ("--name", "x", "--store", ".")}

    def build(verb: str) -> Build:
        made = _bundle(spoil, verb)
        return lambda good, work: [*made(good, work), *flags[verb]]

    return {verb: build(verb) for verb in flags}


UNREADABLE: Mapping[str, bytes | Callable[[Path], object]] = {
    "empty": b"",
    "binary": b"\xff\xfe\0\n" * 9,
    "deep": b"a = " + b"[" * 100_000,
    "a pipe": b.fifo,
    "a socket": b.unix_socket,
    "a device": b.device,
    "a terabyte": b.sparse,
}
SUITES: Mapping[str, Build] = {
    **{name: _file("s.toml", content, "run") for name, content in UNREADABLE.items()},
    "an escape in a key": _suite('"\\u001b[2J" = 1'),
    "an escape in a path": _suite('artifact = "\\u001b[2J\\u202e"\nat_least = 1'),
    "a factor that is none": _suite("artifact = 's.toml'\nbaseline = 's.toml'\nat_least = nan"),
    "a factor below none": _suite("artifact = 's.toml'\nbaseline = 's.toml'\nat_least = -1"),
    "a size beyond floats": _suite("artifact = 's.toml'\nmax_size = '1e999KB'"),
    "a shape of 10**30": _suite(f"artifact = 's.toml'\nat_least = 1\ninput_shapes = ['{10**30}x1']"),
    "a claim of a number": _file("s.toml", b"claim = 5", "run"),
}
HISTORIES: Mapping[str, Build] = {
    **{name: _file("h.jsonl", content, "history") for name, content in UNREADABLE.items()},
    "a wrong sum": _file("h.jsonl", b'{"check": "00000000", "claim": "a"}\n' * 3, "history"),
}
PACKED: Mapping[str, Build] = {name: _file("b.tar", content, "pull") for name, content in UNREADABLE.items()}
SPOILT: Mapping[str, Callable[[Path], object]] = {
    "a terabyte": _huge,
    "manifest is a pipe": lambda bundle: b.fifo(bundle / "manifest.json"),
    "model is a pipe": lambda bundle: b.fifo(bundle / "artifact/model.onnx"),
    "a link out": lambda bundle: (bundle / "more").symlink_to("/etc"),
    "file outside": lambda p: b.reseal(
        p, lambda m: (m["files"].update({"../x": "0" * 64}), m["sizes"].update({"../x": 1}))
    ),
}


def _with(command: str, builds: Mapping[str, Build], prefix: str = "") -> dict[str, Case]:
    return {f"{prefix}{name}": Case(command, build) for name, build in builds.items()}


FILES: Mapping[str, Case] = {
    **_with("deploy", MANIFESTS, "manifest: "),
    **_with("deploy", FOLDERS, "bundle: "),
    **_with("deploy", RECORDS, "record: "),
    **_with("deploy", EXPORTED, "export: "),
    **_with("bench", COMPARED, "compare: "),
    **_with("bench", SUITES, "suite: "),
    **_with("bench", HISTORIES, "history: "),
    **_with("deploy", PACKED, "packed: "),
    **{f"{verb}: {n}": Case("deploy", made) for n, spoil in SPOILT.items() for verb, made in _sent(spoil).items()},
    "check: manifest is a pipe": Case("bench", _bundle(lambda p: b.fifo(p / "manifest.json"), "check")),
    "check: a terabyte": Case("bench", _bundle(_huge, "check")),
    "verify: manifest is a pipe": Case("deploy", _bundle(lambda p: b.fifo(p / "manifest.json"), "verify")),
    "verify: a record of 5000 threads": Case(
        "deploy",
        _bundle(lambda p: (b.edit_json(p / "artifact/artifact.json", _put("threads", 5000)), b.reseal(p)), "verify"),
    ),
}
