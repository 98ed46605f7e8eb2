"""Wrong use is one line on standard error and an exit code, and leaves no half-written file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnas.cli import train_main
from hnas.files import locked
from tests.hnas import photos

# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--target", "toaster"), "no device 'toaster'; known: "),
        (("--precision", "int3"), "no precision 'int3'; did you mean int8?; known: auto, "),
        (("--precision", "fp16"), "onnxruntime-cpu with onnxruntime has no fp16; offered: fp32, int8"),
        (("--precision", ""), "an argument is empty; leave it out or give a value"),
        (("--max-latency", "5"), "latency '5' is not understood; write for example 5ms"),
        (("--max-latency", "-5ms"), "expected one argument"),
        (("--max-latency", ""), "an argument is empty; leave it out or give a value"),
        (("--max-latency", "0ms"), "latency '0ms' is not understood"),
        (("--max-latency", f"{'9' * 400}ms"), "is not understood"),
        (("--max-size", "10"), "size '10' is not understood; write for example 300KB"),
        (("--min-accuracy", "92"), "accuracy '92' is not understood; write for example 92%"),
        (("--min-accuracy", "101%"), "accuracy '101%' is not understood"),
        (("--budget", "40"), "budget '40' is not understood; write for example 60s"),
        (("--budget", "0evals"), "budget '0evals' is not understood"),
        (("--budget", "1.5evals"), "budget '1.5evals' is not understood"),
        (("--budget", f"{'9' * 400}evals"), "is not understood"),
        (("--threads", "0"), "threads is 0; this machine has "),
        (("--threads", "1000"), "threads is 1000; this machine has "),
        (("--threads", "two"), "argument --threads: 'two' is not a whole number"),
        (("--seed", "-1"), "seed is -1; it is 0 or more"),
        (("--colour",), "unrecognized arguments: --colour"),
    ],
)
def test_an_option_that_is_not_understood(refused, deploy, wrong: tuple[str, ...], says: str):
    assert says in refused(*deploy, *wrong)


def test_no_target(refused):
    assert "the following arguments are required: --target" in refused()


# --- the supernet -----------------------------------------------------------------------------------------------------


def edited(trained: Path, **changes: Any) -> Path:
    """A copy of the supernet, in the current folder, whose record says something else."""
    bad = Path("bad").absolute()
    shutil.copytree(trained / "trained", bad)
    record = json.loads((bad / "supernet.json").read_text("utf-8"))
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = record
        for key in parents:
            inner = inner[key]
        inner[last] = value
    (bad / "supernet.json").write_text(json.dumps(record))
    return bad


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema": 2}, "is not a supernet record of schema 1"),
        ({"space": 3}, "is not a supernet record of schema 1"),
        ({"space__name": "nowhere"}, "no space 'nowhere'; known: "),
        ({"space__name": ["x"]}, "no space"),
        ({"space__arguments__colour": 1}, "does not take these arguments"),
        ({"space__arguments__classes": "three"}, "supernet.json"),
        ({"space__arguments__widths": [[7]]}, "widths"),
        ({"space__options": {}}, "names other choices"),
        ({"space__arguments__head": 24}, "it is another space's supernet"),
        ({"seed": "seven"}, "seed"),
        ({"seed": None}, "seed"),
        ({"task": None}, "does not say what task the supernet was trained for"),
        ({"task__classes": None}, "classes"),
        ({"task__classes": ["cat", "dog"]}, "the supernet knows cat, dog (2)"),
        ({"task__preprocessing": {}}, "preprocessing is recorded as base, size, mean and std"),
        ({"task__preprocessing__std": [0, 0, 0]}, "preprocessing has impossible values"),
    ],
)
def test_a_record_that_is_malformed_or_foreign(refused, deploy, trained, quick, changes: dict[str, Any], says: str):
    assert says in refused(*deploy, "--supernet", str(edited(trained, **changes)))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_record_that_is_no_json_object(refused, deploy, trained, quick, content: bytes):
    (edited(trained) / "supernet.json").write_bytes(content)
    assert "supernet.json" in refused(*deploy, "--supernet", "bad")


@pytest.mark.parametrize("keep", [0, 7, 0.5, -1])
def test_a_truncated_weights_file(refused, deploy, trained, quick, keep: float):
    file = edited(trained) / "supernet.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else int(keep)])
    assert "supernet.safetensors is not a complete safetensors file" in refused(*deploy, "--supernet", "bad")


def test_a_missing_weights_file(refused, deploy, trained, quick):
    (edited(trained) / "supernet.safetensors").unlink()
    assert "no file bad/supernet.safetensors" in refused(*deploy, "--supernet", "bad")


def test_weights_that_are_not_finite(refused, deploy, trained, quick):
    from safetensors.torch import load_file, save_file

    file = edited(trained) / "supernet.safetensors"
    tensors = load_file(file)
    tensors["classifier.weight"][0, 0] = float("nan")
    save_file(tensors, file)
    assert "classifier.weight holds NaN or infinite weights" in refused(*deploy, "--supernet", "bad")


def test_a_folder_that_is_no_supernet(refused, deploy, quick):
    assert "no folder nowhere; --supernet takes what hnas-train --out wrote" in refused(
        *deploy, "--supernet", "nowhere"
    )
    Path("bare").mkdir()
    assert "no file bare/supernet.json" in refused(*deploy, "--supernet", "bare")


# --- the images -------------------------------------------------------------------------------------------------------


def test_a_data_folder_that_is_missing_empty_or_of_other_classes(refused, deploy, trained, quick):
    assert "no folder nowhere; --data takes " in refused(*deploy, "--data", "nowhere")
    Path("empty").mkdir()
    assert "contains neither IDX files nor two sub-folders of images" in refused(*deploy, "--data", "empty")
    shutil.copytree(trained / "photos", "other")
    Path("other/dot").rename("other/blob")
    assert "have the classes bar, blob, ring (3), the supernet knows bar, dot, ring (3)" in refused(
        *deploy, "--data", "other"
    )


def test_images_that_cannot_be_read(refused, deploy, trained, quick):
    shutil.copytree(trained / "photos", "broken")
    for file in Path("broken/dot").iterdir():
        file.write_text("no image")
    assert "cannot be read as an image" in refused(*deploy, "--data", "broken")


def test_the_shipped_supernet_does_not_fit_other_images(refused, deploy, trained, quick):
    """Without --supernet the shipped one is used. The line names its classes, or says that it is not there."""
    options = [o for o in deploy if o != "--supernet" and not o.endswith("/trained")]
    assert refused(*options)


# --- where to write ---------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written(refused, deploy, quick):
    Path("file").write_text("")
    assert "cannot write to file/below: Not a directory; choose another --out" in refused(
        *deploy, "--out", "file/below"
    )
    assert "cannot write to file: File exists; choose another --out" in refused(*deploy, "--out", "file")


def test_an_output_that_is_in_use(refused, deploy, quick):
    Path("run").mkdir()
    Path("run/thesis.tex").write_text("")
    assert "run is in use and holds no run; choose another --out" in refused(*deploy)
    Path("run/plan.json").write_text("{}")
    assert "run holds a run already; continue it with --resume or choose another --out" in refused(*deploy)
    assert "run holds a run with other " in refused(*deploy, "--resume")


def test_an_output_that_another_run_is_at_work_in(refused, deploy, quick):
    with locked(Path("run")):
        line = refused(*deploy)
    assert re.search(r"another run is using run \(process \d+\); wait for it or choose another --out$", line)


# --- bounds that nothing keeps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "says"),
    [
        (("--max-latency", "1us"), "the fastest takes "),
        (("--max-size", "10B"), "the smallest has "),
        (("--max-size", "7KB"), "its file has "),
        (("--max-latency", "1us", "--max-size", "10B"), "ms (asked: 0.001); the smallest has "),
    ],
)
def test_an_unreachable_bound_says_the_nearest(refused, deploy, bound: tuple[str, ...], says: str):
    line = refused(*deploy, *bound, code=1)
    assert says in line
    assert "(asked: " in line


def test_an_unreachable_accuracy_says_the_nearest(refused, deploy, trained, quick):
    from safetensors.torch import load_file, save_file

    file = edited(trained) / "supernet.safetensors"
    tensors = load_file(file)
    save_file({name: t * 0 if name.startswith("classifier") else t for name, t in tensors.items()}, file)
    line = refused(*deploy, "--supernet", "bad", "--min-accuracy", "100%", code=1)
    assert "the most accurate inside the other bounds reaches " in line
    assert "(asked: 100.0%)" in line


# --- hnas-train -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--recipe", "soup"), "no recipe 'soup'; known: "),
        (("--recipe", "soup.toml"), "no recipe file soup.toml"),
        (("--data", "nowhere"), "no folder nowhere; --data takes "),
        (("--alone", "best"), "no architecture 'best'; known: smallest, largest, random:SEED, derived"),
        (("--alone", "larges"), "no architecture 'larges'; did you mean largest?; known: "),
        (("--device", "tpu"), "argument --device: invalid choice: 'tpu'"),
        (("--epochs", "many"), "argument --epochs: invalid float value: 'many'"),
        (("--epochs", "0"), "epochs"),
        (("--epochs", "-1"), "epochs"),
        (("--epochs", "nan"), "epochs"),
        (("--threads", "0"), "threads"),
        (("--threads", "-1"), "threads"),
        (("--seed", "-1"), "seed"),
        (("--pretrained", "mobilenetv2_100", "--from-scratch"), "what to start from; give one of them"),
        (("--out", "shapes.toml/below"), "shapes.toml/below"),
        (("--out", "shapes.toml"), "shapes.toml"),
        (("--resume",), "net holds no training to continue; leave out --resume"),
    ],
)
def test_training_that_cannot_begin(refused, trained, wrong: tuple[str, ...], says: str):
    shutil.copy(trained / "shapes.toml", ".")
    options = ("--recipe", "shapes.toml", "--data", str(trained / "photos"), "--out", "net")
    assert says in refused(*options, *wrong, main=train_main)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[train]", "[traim]"),
        ("[train]", "train = 3\n[other]"),
        ('[space]\nname = "hybrid_vision"', "[space]"),
        ('[space]\nname = "hybrid_vision"', 'space = 3\n[data.x]\nname = "hybrid_vision"'),
        ('"hybrid_vision"', '"nowhere"'),
        ('"hybrid_vision"', "7"),
        ("head = 16", "head = -16"),
        ("head = 16", 'head = "wide"'),
        ("kernels = [3, 5]", "kernels = []"),
        ("resolutions = [12, 16]", "resolutions = [12, 0]"),
        ("depths = [[1, 2], [1, 2]]", "depths = [[1, 2]]"),
        ("size = 16", "size = 0"),
        ("size = 16", 'size = "big"'),
        ("channels = 3", "channels = 2"),
        ("rate = 0.1", 'rate = "fast"'),
        ("rate = 0.1", "rate = nan"),
        ("epochs = 6", 'epochs = "four"'),
        ("epochs = 6", "epochs = inf"),
        ("batch = 16", "batch = 0"),
        ("batch = 16", "batch = true"),
        ('"sandwich"', '"soup"'),
        ('"sandwich"', "1"),
        ("[data]", "[data"),
    ],
)
def test_a_recipe_that_makes_no_sense(refused, trained, old: str, new: str):
    assert old in photos.RECIPE
    Path("bad.toml").write_text(photos.RECIPE.replace(old, new, 1))
    refused("--recipe", "bad.toml", "--data", str(trained / "photos"), "--out", "net", main=train_main)


# --- what goes to standard output -------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_its_cost_and_writes_nothing(call, deploy, quick):
    code, out, err = call(*deploy, "--max-latency", "5ms", "--dry-run")
    assert (code, err) == (0, "")
    assert "latency <= 5 ms" in out
    assert "with predictors, 3 evaluations, seed 0" in out
    assert "s of search" in out
    code, out, err = call(*deploy, "--dry-run", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["plan"]["evaluations"] == 3
    assert photos.tree(quick) == set()


@pytest.mark.slow
def test_json_is_all_there_is_on_standard_output(call, deploy, trained, quick):
    code, out, err = call(*deploy, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out, parse_constant=pytest.fail)
    assert [row["verdict"] for row in found["rows"]] == ["baseline", "kept"]
    code, again, _ = call(*deploy, "--json", "--resume")
    assert (code, json.loads(again)) == (0, found)
    code, out, _ = call("show", "run/bundle", "--json")
    assert json.loads(out)["arch"] == found["arch"]


def test_the_table_names_what_was_measured(call, deploy, quick):
    code, out, _ = call(*deploy)
    assert code == 0
    for words in ("largest, fp32", "baseline", "kept", "measured in interleaved blocks", "bundle: run/bundle"):
        assert words in out


@pytest.mark.slow
def test_a_command_can_be_repeated_as_the_bundle_says(call, deploy, trained, quick):
    """Quoted, without the folder it went to, and with its seed."""
    shutil.copytree(trained / "photos", "my photos; rm -rf")
    code, _, err = call(*deploy, "--data", "my photos; rm -rf", "--json")
    assert code == 0, err
    manifest = json.loads(Path("run/bundle/manifest.json").read_text("utf-8"))
    assert "--data 'my photos; rm -rf'" in manifest["reproduce"]
    assert manifest["reproduce"].endswith("--seed 0")
    assert "--out" not in manifest["reproduce"]


@pytest.mark.slow
def test_a_second_image_size_is_no_obstacle(call, deploy, trained, quick):
    """``run`` takes any picture; a file of the wrong content is one line."""
    from PIL import Image

    assert call(*deploy)[0] == 0
    Image.fromarray(np.zeros((300, 7, 4), np.uint8)).save("odd.png")
    code, out, _ = call("run", "run/bundle", "--image", "odd.png", "--json")
    assert code == 0
    assert {row["label"] for row in json.loads(out)} == set(photos.CLASSES)
    Path("text.png").write_text("text")
    code, out, err = call("run", "run/bundle", "--image", "text.png")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "text.png cannot be read as an image" in err
