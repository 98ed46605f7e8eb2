"""The corpus of the search: supernets, recipes, runs that are continued and arguments; with images and real inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.hostile import builders as b
from tests.hostile.corpus import DEEP, Case, _put
from tests.hostile.corpus_data import DATA

# --- supernets --------------------------------------------------------------------------------------------------------


def _supernet(spoil: Callable[[Path], object], *flags: object) -> Case:
    """Return a case that deploys from a spoilt copy of the shipped supernet."""

    def build(good: Path, work: Path) -> list[object]:
        spoil(b.copied(good / "supernet", work / "net"))
        return ["--target", "raspberry-pi-5", "--supernet", "net", "--budget", "1evals", "--out", work / "out", *flags]

    return Case("deploy", build)


def _json(change: Callable[[dict[str, object]], object]) -> Case:
    return _supernet(lambda net: b.edit_json(net / "supernet.json", change))


def _argument(name: str, value: object) -> Case:
    return _json(_put(f"space.arguments.{name}", value))


def _weights(content: bytes) -> Case:
    return _supernet(lambda net: (net / "supernet.safetensors").write_bytes(content))


def _other_dtype(net: Path) -> None:
    """Store every weight in another type."""
    from safetensors.torch import load_file, save_file

    file = net / "supernet.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)


def _not_finite(net: Path) -> None:
    """Store NaN in every weight."""
    from safetensors.torch import load_file, save_file

    file = net / "supernet.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(file).items()}, file)


SUPERNETS: Mapping[str, Case] = {
    "record is a pipe": _supernet(lambda net: b.fifo(net / "supernet.json")),
    "record is a device": _supernet(lambda net: b.device(net / "supernet.json")),
    "record of 64 GB": _supernet(lambda net: b.sparse(net / "supernet.json", 64 * 2**30)),
    "record empty": _supernet(lambda net: (net / "supernet.json").write_bytes(b"")),
    "record deep": _supernet(lambda net: (net / "supernet.json").write_bytes(DEEP)),
    "record is a list": _supernet(lambda net: (net / "supernet.json").write_bytes(b"[]")),
    "record of another schema": _json(_put("schema", 2)),
    "no such space": _json(_put("space.name", "../../x")),
    "space is a list": _json(_put("space", [])),
    "options are text": _json(_put("space.options", "x")),
    "depths of a million": _argument("depths", [[10**6], [2], [2]]),
    "a depth of 10**30": _argument("depths", [[10**30], [2], [2]]),
    "widths of 65536": _argument("widths", [[65536], [65536], [65536]]),
    "a width of 10**30": _argument("widths", [[10**30], [8], [8]]),
    "a list of a million": _argument("kernels", [3] * 10**6),
    "classes below none": _argument("classes", -1),
    "classes of 10**12": _argument("classes", 10**12),
    "a stem of text": _argument("stem", "wide"),
    "strides of 0": _argument("strides", [0, 0, 0]),
    "an unknown argument": _argument("\x1b[2J", 1),
    "seed below none": _json(_put("seed", -1)),
    "seed beyond floats": _supernet(
        lambda net: (net / "supernet.json").write_text('{"schema": 1, "space": {}, "seed": 1e999}')
    ),
    "splits are numbers": _json(_put("splits", [1, 2])),
    "splits of nothing": _json(_put("splits", [["no", "such", ["branch", "here"]]])),
    "no task": _json(_put("task", None)),
    "preprocessing is empty": _json(_put("task.preprocessing", {})),
    "preprocessing of a million pixels": _json(_put("task.preprocessing.size", [10**6, 10**6])),
    "classes are numbers": _json(_put("task.classes", [1])),
    "weights are a pipe": _supernet(lambda net: b.fifo(net / "supernet.safetensors")),
    "weights of a terabyte": _supernet(lambda net: b.sparse(net / "supernet.safetensors")),
    "weights empty": _weights(b""),
    "weights are a pickle": _weights(b"\x80\x02cos\nsystem\n(S'true'\ntR."),
    "weights of a header of exabytes": _weights(b.safetensors(b"{}", size=2**62)),
    "weights of no JSON": _weights(b.safetensors(b"{" * 1000)),
    "weights outside of the file": _weights(
        b.safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    ),
    "weights of negative shape": _weights(
        b.safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4))
    ),
    "weights cut": _supernet(lambda net: b.cut(net / "supernet.safetensors", 0)),
    "weights of another type": _supernet(_other_dtype),
    "weights that are not finite": _supernet(_not_finite),
}

# --- recipes ----------------------------------------------------------------------------------------------------------

_RECIPE = """
[space]
name = "hybrid_vision"
resolutions = [12]
[data]
size = [12, 12]
channels = 3
[train]
strategy = "spos"
epochs = 1
"""


def _recipe(*changes: tuple[str, str], more: str = "", raw: bytes | None = None) -> Case:
    """Return a case that trains by a changed recipe."""

    def build(good: Path, work: Path) -> list[object]:
        text = _RECIPE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (work / "r.toml").write_bytes((text + more).encode() if raw is None else raw)
        return ["--recipe", "r.toml", "--data", good / "photos", "--out", work / "out"]

    return Case("train", build)


def _train(line: str) -> Case:
    return _recipe(("epochs = 1", f"epochs = 1\n{line}"))


def _option(strategy: str, line: str) -> Case:
    return _recipe(('strategy = "spos"', f'strategy = "{strategy}"'), more=f"[train.options]\n{line}\n")


def _shrink(*lines: str) -> Case:
    return _recipe(more="\n".join(("[shrink]", *lines)) + "\n")


RECIPES: Mapping[str, Case] = {
    "empty": _recipe(raw=b""),
    "binary": _recipe(raw=b"\xff\xfe\x00"),
    "NUL": _recipe(raw=b"\0" * 100),
    "deep": _recipe(more=f"[train.options]\na = {'[' * 5000}"),
    "deep tables": _recipe(raw=f"[{'.'.join('a' * 5000)}]\n".encode()),
    "large": _recipe(raw=b"#" * 2**21),
    "a rate of 1e308": _train("rate = 1e308"),
    "a rate beyond floats": _train("rate = 1e999"),
    "a rate below none": _train("rate = -1"),
    "a rate that is none": _train("rate = nan"),
    "epochs beyond all": _recipe(("epochs = 1", "epochs = 1e300")),
    "a batch of 10**30": _train(f"batch = {10**30}"),
    "restarts of text": _train('restarts = [["a", "b"]]'),
    "an escape in a key": _train('"\\u001b[2J" = 1'),
    "paths without end": _option("sandwich", f"paths = {10**30}"),
    "paths of a billion": _option("hybrid_union", f"paths = {10**9}"),
    "weight below none": _option("proxylessnas", "weight = -1"),
    "switch below none": _option("spos_then_hybrid", "switch = -1"),
    "no such strategy": _recipe(('strategy = "spos"', 'strategy = "../x"')),
    "no such latency": _option("proxylessnas", 'latency = "../x"'),
    "a shift of 10**30": _recipe(("channels = 3", f"channels = 3\nshift = {10**30}")),
    "a size of 10**30": _recipe(("size = [12, 12]", f"size = [{10**30}, 12]")),
    "a size below none": _recipe(("size = [12, 12]", "size = [-12, 12]")),
    "no such task": _recipe(("channels = 3", 'channels = 3\ntask = "../x"')),
    "resolutions of 10**30": _recipe(("[12]\n[data]", f"[{10**30}]\n[data]")),
    "resolutions of nothing": _recipe(("[12]\n[data]", "[]\n[data]")),
    "resolutions of text": _recipe(("[12]\n[data]", '["a"]\n[data]')),
    "depths of a million": _recipe(("resolutions", "depths = [[1000000], [2], [2]]\nresolutions")),
    "no such space": _recipe(("hybrid_vision", "\\u001b[2J")),
    "drop of 1e30": _shrink('evidence = "magnitude"', "drop = 1e30"),
    "drop of 10**30": _shrink('evidence = "magnitude"', f"drop = {10**30}"),
    "no such evidence": _shrink('evidence = "../x"', "drop = 1"),
    "balance of no option": _shrink('method = "pwsnas"', 'balance = "../x"'),
    "spread of 2": _shrink('method = "pwsnas"', "spread = 2"),
    "a section of a number": _recipe(raw=b"space = 5"),
    "recipe is a pipe": Case(
        "train",
        lambda good, work: (b.fifo(work / "r.toml"), _plain_train(good, work))[1],
    ),
}


def _plain_train(good: Path, work: Path) -> list[object]:
    return ["--recipe", "r.toml", "--data", good / "photos", "--out", work / "out"]


# --- runs that are continued ------------------------------------------------------------------------------------------


def _resumed(spoil: Callable[[Path], object]) -> Case:
    def build(good: Path, work: Path) -> list[object]:
        spoil(b.copied(good / "run", work / "run"))
        return ["--target", "raspberry-pi-5", "--budget", "1evals", "--out", "run", "--resume"]

    return Case("deploy", build)


def _journal(content: bytes) -> Case:
    return _resumed(lambda run: (run / "journal.jsonl").write_bytes(content))


RUNS: Mapping[str, Case] = {
    "plan is a pipe": _resumed(lambda run: b.fifo(run / "plan.json")),
    "plan is empty": _resumed(lambda run: (run / "plan.json").write_bytes(b"")),
    "plan of a terabyte": _resumed(lambda run: b.sparse(run / "plan.json")),
    "plan beyond floats": _resumed(lambda run: (run / "plan.json").write_bytes(b'{"seed": 1e999}')),
    "plan of another run": _resumed(lambda run: b.edit_json(run / "plan.json", _put("seed", 7))),
    "plan with an escape": _resumed(lambda run: b.edit_json(run / "plan.json", _put("cpu", "\x1b[2J"))),
    "journal is a pipe": _resumed(lambda run: b.fifo(run / "journal.jsonl")),
    "journal is a socket": _resumed(lambda run: b.unix_socket(run / "journal.jsonl")),
    "journal of a terabyte": _resumed(lambda run: b.sparse(run / "journal.jsonl")),
    "journal of another kind": _journal(b"\x89PNG\r\n"),
    "journal damaged": _journal(b'["a", 1, 0.1]\n["b", 1, x.1]\n["c", 1, 0.1]\n'),
    "journal with a wrong sum": _journal(b'["a", 1, 0.1, "00000000"]\n["b", 1, 0.1]\n'),
    "journal with zeros inside": _journal(b'["a", 1, 0.1]\n\0\0\0\0\n["c", 1, 0.1]\n'),
    "journal beyond floats": _journal(b'["baseline_ms", 1e999, 0.1]\n["c", 1, 0.1]\n'),
    "journal deep": _journal(b'["a", ' + b"[" * 100_000 + b"\n[1]\n"),
}

# --- arguments --------------------------------------------------------------------------------------------------------


def _words(command: str, *words: object) -> Case:
    return Case(command, lambda _, __: list(words))


def _alone(*words: object) -> Case:
    given = ("--recipe", "images", "--data", ".", "--out", "o", "--alone", "derived", "--supernet", "s")
    return _words("train", *given, *words)


ARGUMENTS: Mapping[str, Case] = {
    "supernet of nothing": _words("deploy", "--target", "raspberry-pi-5", "--supernet", ""),
    "supernet of nothing after =": _words("deploy", "--target", "raspberry-pi-5", "--supernet="),
    "data of nothing": _words("deploy", "--target", "raspberry-pi-5", "--data", ""),
    "out of nothing": _words("deploy", "--target", "raspberry-pi-5", "--out", ""),
    "train out of nothing": _words("train", "--recipe", "images", "--data", ".", "--out", ""),
    "NUL in a path": _words("deploy", "show", "a\0b"),
    "no UTF-8 in a path": _words("deploy", "show", os.fsdecode(b"a\xffb")),
    "escape in a path": _words("deploy", "show", "\x1b[2Ja"),
    "escape in a target": _words("deploy", "--target", "\x1b]0;x\x07"),
    "NUL in a recipe": _words("train", "--recipe", "a\0.toml", "--data", ".", "--out", "o"),
    "threads of 10**9": _words("deploy", "--target", "onnxruntime-cpu", "--threads", 10**9),
    "train threads of 10**9": _words("train", "--recipe", "images", "--data", ".", "--out", "o", "--threads", 10**9),
    "a shape of 10**30": _words("bench", "compare", "a.onnx", "b.onnx", "--input-shape", f"{10**30}x1"),
    "a budget without end": _words("deploy", "--target", "raspberry-pi-5", "--budget", "1e999s"),
    "weights of 400 digits": _alone("--max-weights", "9" * 400),
    "multiply-accumulates of 400 digits": _alone("--max-macs", "9" * 400),
    "a latency beyond floats": _words("deploy", "--target", "raspberry-pi-5", "--max-latency", "1e999ms"),
    "a device that is no folder": _words("deploy", "show", "/dev/zero"),
}

SEARCH: Mapping[str, Case] = {
    f"{kind}: {name}": case
    for kind, cases in (
        ("supernet", SUPERNETS),
        ("recipe", RECIPES),
        ("run", RUNS),
        ("data", DATA),
        ("argument", ARGUMENTS),
    )
    for name, case in cases.items()
}
