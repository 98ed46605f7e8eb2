"""The file of a suite: every mistake is one line, and nothing is ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hnas.benchmarks import cli
from hnas.benchmarks.gate.suite import read_suite
from tests.benchmarks.gate.suites import FASTER, models, write

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("suite"))


def test_paths_are_those_beside_the_file(root: Path) -> None:
    (claim,) = read_suite(write(root, FASTER)).claim
    assert (Path(claim.artifact), Path(claim.baseline)) == (root / "light", root / "heavy")
    assert (claim.at_least, claim.timed, claim.inspected) == (1.5, True, False)


def test_the_time_follows_from_the_claims(root: Path) -> None:
    sized = {"name": "small", "artifact": "light", "max_size": "1MB"}
    two = write(root, FASTER, {**FASTER, "name": "again"}, sized, header="")
    assert read_suite(two).seconds == 120.0
    assert read_suite(write(root, FASTER, header='time = "2m"\n')).seconds == 120.0


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({"at_leest": 2}, "claim[0].at_leest is not known; known: name, artifact"),
        ({"at_least": "2"}, "at_least is '2', expected"),
        ({"at_least": True}, "at_least is True, expected"),
        ({"at_least": -1.0}, "at_least is -1.0, expected a number above 0"),
        ({"same_within": 0}, "same_within is 0.0, expected a number above 0"),
        ({"same_within": 3}, "at_least = 1.5 and same_within = 3.0 cannot both hold"),
        ({"max_kernels": -1}, "max_kernels is -1"),
        ({"max_size": "big"}, "size 'big' is not understood"),
        ({"max_undelegated": -1}, "max_undelegated is -1"),
        ({"max_partitions": 1}, "max_partitions is about XNNPACK in LiteRT, and the backend of light is onnxruntime"),
        ({"measure": "p95"}, "measure is 'p95', expected one of p50, p90"),
        ({"input_shapes": ("1xN",)}, "1xN"),
        ({"artifact": "nowhere"}, "artifact = 'nowhere' is not there"),
        ({"data": "nowhere"}, "data = 'nowhere' is not there"),
        ({"data": "data"}, "data has no effect without max_points_less"),
        ({"input_shapes": ("1x3x28x28",)}, "light, which reads 1x1x28x28 float32"),
        ({"input_shapes": ("1x3x28x28",), "artifact": "light/model.onnx"}, "heavy, which reads 1x1x28x28 float32"),
        ({"name": ""}, "name and artifact need a text"),
        ({"max_points_less": 1.0}, "max_points_less needs a bundle"),
        ({"baseline": ""}, "has no baseline; add baseline"),
        ({"baseline": "heavy/model.onnx", "artifact": "light/model.onnx"}, "add input_shapes"),
    ],
)
def test_a_wrong_claim_is_one_line(root: Path, claim: dict[str, object], words: str, capsys: Any) -> None:
    code = cli.main(["run", str(write(root, {**FASTER, **claim}))])
    shown = capsys.readouterr()
    assert (code, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert words in shown.err


@pytest.mark.parametrize(
    ("key", "value"), [("measure", "p50"), ("baseline", "heavy"), ("data", "data"), ("input_shapes", ["1x1x28x28"])]
)
def test_a_key_without_effect_is_one_line(root: Path, key: str, value: object, capsys: Any) -> None:
    claim = {"name": "small", "artifact": "light", "max_size": "1MB", key: value}
    assert cli.main(["run", str(write(root, claim))]) == 2
    assert f"claim 'small': {key} has no effect without " in capsys.readouterr().err


def test_a_negative_seed_is_one_line(root: Path, capsys: Any) -> None:
    assert cli.main(["run", str(write(root, FASTER)), "--seed", "-1"]) == 2
    assert "seed is -1, expected 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "claim is missing"),
        ("claim = []", "claim is empty"),
        ("claim = 3", "claim is 3"),
        ("[[claim]", "no TOML"),
        ("a = " + "[" * 3000, "nested too deeply"),
        ("spead = 3\n[[claim]]", "spead is not known"),
        ('time = "soon"\n[[claim]]\nname="a"\nartifact="light"\nmax_size="1MB"', "time is 'soon'"),
        ('processes = 0\n[[claim]]\nname="a"\nartifact="light"\nmax_size="1MB"', "processes is 0"),
        ('width = 0\n[[claim]]\nname="a"\nartifact="light"\nmax_size="1MB"', "width is 0.0, expected"),
        ('[[claim]]\nname="a"\nartifact="light"', "claims nothing"),
        ('[[claim]]\nname="a"\nartifact="light"\nmax_size="1MB"\n' * 2, "'a' is there twice"),
    ],
)
def test_a_wrong_file_is_one_line(root: Path, text: str, words: str, capsys: Any, tmp_path: Path) -> None:
    file = root / "wrong.toml"
    file.write_text(text)
    unit = tmp_path / "unit.xml"
    code = cli.main(["run", str(file), "--junit", str(unit)])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert words in err
    assert 'name="check"' in unit.read_text()


def test_a_missing_file_is_one_line(root: Path, capsys: Any) -> None:
    for name in ("none.toml", "."):
        assert cli.main(["run", str(root / name)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
