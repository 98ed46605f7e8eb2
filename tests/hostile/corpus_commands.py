"""The corpus of the commands that read a bundle, a supernet or data of other kinds, so that every command has a case.

`run`, `score`, `sign`, `zoo`, `show --layers`, `verify` of a saved failure, `hnas-train grow`, a training that is
continued, series, texts and tar shards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.hostile import builders as b
from tests.hostile.corpus import DEEP, UNREADABLE, Build, Case, _bundle, _file, _huge, _put
from tests.hostile.corpus_data import _png
from tests.hostile.corpus_search import _RECIPE, _words

# --- bundles ----------------------------------------------------------------------------------------------------------


def _run(
    flag: str, name: str, spoil: Callable[[Path], object], change: Callable[[Path], object] | None = None
) -> Build:
    """Return a builder that runs a bundle on a hostile file. ``change``: spoils the bundle too."""

    def build(good: Path, work: Path) -> list[object]:
        bundle = b.copied(good / ("series" if flag == "--csv" else "bundle"), work / "bundle")
        if change is not None:
            change(bundle)
        (work / name).write_bytes(b"")
        spoil(work / name)
        return ["run", "bundle", flag, name]

    return build


def _image(spoil: Callable[[Path], object]) -> Build:
    return _run("--image", "a.png", spoil)


def _csv(spoil: Callable[[Path], object]) -> Build:
    return _run("--csv", "a.csv", spoil)


def _layers(spoil: Callable[[Path], object]) -> Build:
    return _bundle(spoil, "show", "--layers")


def _sealed_noise(bundle: Path) -> None:
    """Put noise in place of the model, with a valid digest."""
    (bundle / "artifact/model.onnx").write_bytes(bytes(range(256)) * 8)
    b.seal_file(bundle / "artifact", "model.onnx")
    b.reseal(bundle)


def _sign(spoil: Callable[[Path], object], key: Callable[[Path], object] = lambda _: None) -> Build:
    def build(good: Path, work: Path) -> list[object]:
        spoil(b.copied(good / "bundle", work / "bundle"))
        (work / "k.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
        key(work / "k.pem")
        return ["sign", "bundle", "--key", "k.pem"]

    return build


def _store(spoil: Callable[[Path], object]) -> Build:
    def build(_: Path, work: Path) -> list[object]:
        spoil(work / "store")
        return ["zoo", "--store", "store"]

    return build


BUNDLES: Mapping[str, Build] = {
    "run: manifest is a pipe": _run("--image", "a.png", b.sparse, lambda p: b.fifo(p / "manifest.json")),
    "run: a terabyte": _run("--image", "a.png", b.sparse, _huge),
    "run: image is a pipe": _image(b.fifo),
    "run: image is a device": _image(b.device),
    "run: image of a terabyte": _image(b.sparse),
    "run: image of billions of pixels": _image(lambda file: file.write_bytes(_png(2**31 - 1, 2**31 - 1))),
    "run: a text for a network of images": _bundle(lambda _: None, "run", "--text", "\x1b[2J"),
    "run: series is a pipe": _csv(b.fifo),
    "run: series of a terabyte": _csv(b.sparse),
    "run: series with an escape": _csv(lambda file: file.write_text("\x1b[2J\n1\n")),
    "run: series beyond floats": _csv(lambda file: file.write_text("a\n1e999\n")),
    "show layers: model is a pipe": _layers(lambda bundle: b.fifo(bundle / "artifact/model.onnx")),
    "show layers: a terabyte": _layers(_huge),
    "show layers: model is noise": _layers(_sealed_noise),
    "sign: manifest is a pipe": _sign(lambda bundle: b.fifo(bundle / "manifest.json")),
    "sign: a terabyte": _sign(_huge),
    "sign: key is a pipe": _sign(lambda _: None, b.fifo),
    "sign: key of a terabyte": _sign(lambda _: None, b.sparse),
    "zoo: store is a pipe": _store(os.mkfifo),
    "zoo: store is a device": _store(lambda store: store.symlink_to("/dev/zero")),
}

# --- saved failures ---------------------------------------------------------------------------------------------------


def _failure(spoil: Callable[[Path], object]) -> Build:
    """Return a builder that repeats a spoilt copy of a failure that ``verify --reduce`` saved."""

    def build(good: Path, work: Path) -> list[object]:
        spoil(b.copied(good / "failing", work / "bundle-failing"))
        return ["verify", "bundle-failing"]

    return build


def _setting(field: str, value: object) -> Build:
    return _failure(lambda folder: b.edit_json(folder / "reproduction.json", _put(f"setting.{field}", value)))


def _evil_operator(folder: Path) -> None:
    """Let the graph read a file of this machine, with a valid digest."""
    graph = folder / "program/graph.json"
    graph.write_text(graph.read_text().replace("aten.relu.default", "aten.from_file.default"))
    b.seal_file(folder / "program", "graph.json")


FAILURES: Mapping[str, Build] = {
    "record is a pipe": _failure(lambda folder: b.fifo(folder / "reproduction.json")),
    "record of a terabyte": _failure(lambda folder: b.sparse(folder / "reproduction.json")),
    "record deep": _failure(lambda folder: (folder / "reproduction.json").write_bytes(DEEP)),
    "record of an unknown pass": _setting("passes", ["\x1b[2J"]),
    "record of an unknown backend": _setting("backend", "\x1b[2J"),
    "record of an unknown device": _setting("device", "../\x1b[2J"),
    "calls are a pipe": _failure(lambda folder: b.fifo(folder / "calls.npz")),
    "calls of a terabyte": _failure(lambda folder: b.sparse(folder / "calls.npz")),
    "calls are a pickle": _failure(lambda folder: (folder / "calls.npz").write_bytes(b"\x80\x02}q\x00.")),
    "program is a pipe": _failure(lambda folder: b.fifo(folder / "program/graph.json")),
    "program that reads a file": _failure(_evil_operator),
}

# --- supernets that are scored, grown, or whose training is continued -------------------------------------------------


def _supernet(spoil: Callable[[Path], object], *words: object) -> Build:
    """Return a builder that gives a spoilt copy of the shipped supernet to a command; it is the folder ``net``."""

    def build(good: Path, work: Path) -> list[object]:
        spoil(b.copied(good / "supernet", work / "net"))
        (work / "r.toml").write_text(_RECIPE)
        return [good / "photos" if word == "PHOTOS" else word for word in words]

    return build


def _scored(spoil: Callable[[Path], object]) -> Build:
    return _supernet(spoil, "score", "--supernet", "net", "--subnets", "3")


def _grown(spoil: Callable[[Path], object]) -> Build:
    return _supernet(spoil, "grow", "--supernet", "net", "--data", "PHOTOS", "--out", "out", "--max-weights", "9")


def _continued(spoil: Callable[[Path], object], *flags: object) -> Build:
    return _supernet(spoil, "--recipe", "r.toml", "--data", "PHOTOS", "--out", "net", "--resume", *flags)


def _checkpoint(spoil: Callable[[Path], object]) -> Build:
    def place(net: Path) -> None:
        file = net / "checkpoint-0.safetensors"
        file.write_bytes(b"")
        spoil(file)

    return _continued(place)


SCORED: Mapping[str, Build] = {
    "record is a pipe": _scored(lambda net: b.fifo(net / "supernet.json")),
    "record of 64 GB": _scored(lambda net: b.sparse(net / "supernet.json", 64 * 2**30)),
    "weights of a terabyte": _scored(lambda net: b.sparse(net / "supernet.safetensors")),
    "scores are a pipe": _scored(lambda net: b.fifo(net / "scores.jsonl")),
}
GROWN: Mapping[str, Build] = {
    "record is a pipe": _grown(lambda net: b.fifo(net / "supernet.json")),
    "record of 64 GB": _grown(lambda net: b.sparse(net / "supernet.json", 64 * 2**30)),
    "recipe is a list": _grown(lambda net: b.edit_json(net / "supernet.json", _put("recipe", []))),
    "recipe with an escape": _grown(lambda net: b.edit_json(net / "supernet.json", _put("recipe.name", "\x1b[2J"))),
    "weights are a pipe": _grown(lambda net: b.fifo(net / "supernet.safetensors")),
}
CONTINUED: Mapping[str, Build] = {
    "record is a pipe": _continued(lambda net: b.fifo(net / "supernet.json")),
    "record deep": _continued(lambda net: (net / "supernet.json").write_bytes(DEEP)),
    "record of another run": _continued(lambda net: b.edit_json(net / "supernet.json", _put("seed", "\x1b[2J"))),
    "checkpoint is a pipe": _checkpoint(b.fifo),
    "checkpoint of a terabyte": _checkpoint(b.sparse),
    "checkpoint of no JSON": _checkpoint(lambda file: file.write_bytes(b.safetensors(b"{" * 1000))),
    "length is a pipe": _continued(lambda net: os.mkfifo(net / "length.json"), "--minutes", "1"),
    "length of a terabyte": _continued(
        lambda net: ((net / "length.json").write_bytes(b""), b.sparse(net / "length.json")), "--minutes", "1"
    ),
}

# --- series, texts, tar shards ----------------------------------------------------------------------------------------


def _data(recipe: str, content: bytes | Callable[[Path], object]) -> Build:
    """Return a builder that trains on a hostile file."""

    def build(_: Path, work: Path) -> list[object]:
        (work / "data").write_bytes(content if isinstance(content, bytes) else b"")
        if not isinstance(content, bytes):
            content(work / "data")
        return ["--recipe", recipe, "--data", "data", "--out", "out"]

    return build


def _shards(spoil: Callable[[Path], object]) -> Build:
    """Return a builder that trains on a folder of spoilt tar shards."""
    from tests.hnas.imagenet import write_shards

    def build(_: Path, work: Path) -> list[object]:
        spoil(write_shards(work / "data", size=4))
        (work / "r.toml").write_text(_RECIPE.replace("[data]", '[data]\nreader = "webdataset"'))
        return ["--recipe", "r.toml", "--data", "data", "--out", "out"]

    return build


SEQUENCES: Mapping[str, Build] = {
    "series is a pipe": _data("series", b.fifo),
    "series of a terabyte": _data("series", b.sparse),
    "series with an escape": _data("series", b"\x1b[2J\n1\n\x1b]0;a\x07\n"),
    "series beyond floats": _data("series", b"a\n" + b"1e999\n" * 200),
    "series of one cell": _data("series", b'a\n"' + b"9" * 2**20),
    "text is a pipe": _data("text", b.fifo),
    "text is a device": _data("text", b.device),
    "text of a terabyte": _data("text", b.sparse),
    "text of zeros": _data("text", bytes(4096)),
    "text of one letter": _data("text", b"a" * 4096),
}
SHARDS: Mapping[str, Build] = {
    "classes are a pipe": _shards(lambda root: b.fifo(root / "classes.txt")),
    "classes of a terabyte": _shards(lambda root: b.sparse(root / "classes.txt")),
    "a shard is a pipe": _shards(lambda root: b.fifo(root / "train/shard-000002.tar")),
    "a shard is a device": _shards(lambda root: b.device(root / "train/shard-000002.tar")),
    "a shard of a terabyte": _shards(lambda root: b.sparse(root / "val/shard-000000.tar")),
    "sizes are of a terabyte": _shards(
        lambda root: ((root / "val/sizes.json").write_bytes(b""), b.sparse(root / "val/sizes.json"))
    ),
}

# --- pages that are drawn from a record or a history ------------------------------------------------------------------

DRAWN: Mapping[str, Build] = {
    **{
        f"{kind[1:]}, {name}": _file(f"r{kind}", content, "report")
        for name, content in UNREADABLE.items()
        for kind in (".json", ".jsonl")
    },
    "claims of a number": _file("r.json", b'{"claims": 5}', "report"),
    "an escape in a claim": _file("r.json", b'{"claims": ["\\u001b[2J"]}', "report"),
}

ARGUMENTS: Mapping[str, Case] = {
    "targets: escape": _words("deploy", "targets", "\x1b[2J"),
    "doctor: escape": _words("deploy", "doctor", "--\x1b]0;x\x07"),
    "score: subnets of 10**30": _words("deploy", "score", "--supernet", ".", "--subnets", 10**30),
    "zoo: escape in a store": _words("deploy", "zoo", "--store", "x\x1b[2J://y"),
    "loadgen: seconds of 10**300": _words("bench", "loadgen", ".", "--seconds", 10**300),
    "loadgen: queries without end": _words("bench", "loadgen", ".", "--scenario", "Server", "--qps", 10**300),
    "grow: weights below none": _words("train", "grow", "--supernet", ".", "--out", "o", "--max-weights", -1),
}

LOADED: Mapping[str, Build] = {
    "manifest is a pipe": _bundle(lambda folder: b.fifo(folder / "manifest.json"), "loadgen"),
    "a terabyte": _bundle(_huge, "loadgen"),
}

MORE: Mapping[str, Case] = {
    **{f"loadgen: {name}": Case("bench", build) for name, build in LOADED.items()},
    **{name: Case("deploy", build) for name, build in BUNDLES.items()},
    **{f"failure: {name}": Case("deploy", build) for name, build in FAILURES.items()},
    **{f"score: {name}": Case("deploy", build) for name, build in SCORED.items()},
    **{f"grow: {name}": Case("train", build) for name, build in GROWN.items()},
    **{f"resume: {name}": Case("train", build) for name, build in CONTINUED.items()},
    **{f"train: {name}": Case("train", build) for name, build in {**SEQUENCES, **SHARDS}.items()},
    **{f"drawn: {name}": Case("bench", build) for name, build in DRAWN.items()},
    **ARGUMENTS,
}
