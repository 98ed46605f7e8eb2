"""The commands of the zoo: sign, pack, push, pull, zoo, and run and show on zoo://NAME."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hnas import cli
from hnas.pages.zoo import summarise, zoo_page
from tests.benchmarks import bundles
from tests.export.zoo.keys import make_keys
from tests.hnas.cli.test_commands import deploy
from tests.hnas.cli.test_missing import without

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def zoo(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> Path:
    """Publish the bundle as "tiny" in the folder store of the environment; return the store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HNAS_ZOO", str(tmp_path / "store"))
    monkeypatch.delenv("HNAS_ZOO_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    code, said, failed = call("push", str(bundle), "--name", "tiny")
    assert code == 0, failed
    assert said.startswith("published: zoo://tiny@")
    return tmp_path / "store"


def test_run_and_show_take_a_bundle_of_the_store(zoo: Path, bundle: Path, tmp_path: Path, call: Call) -> None:
    pixels = np.random.default_rng(3).integers(0, 255, (28, 28), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = [call("run", source, "--image", "x.png", "--json") for source in ("zoo://tiny", str(bundle))]
    assert found[0] == found[1]
    assert json.loads(found[0][1])[0]["probability"] > 0
    shown = [call("show", source, "--json") for source in ("zoo://tiny", str(bundle))]
    assert shown[0] == shown[1]
    code, _, failed = call("run", "zoo://other", "--image", "x.png")
    assert (code, failed.count("\n")) == (2, 1)
    assert "has no other/manifest.json" in failed


def test_the_list_says_what_the_manifest_says(zoo: Path, bundle: Path, call: Call) -> None:
    rows = json.loads(call("zoo", "--json")[1])
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [row["name"] for row in rows] == ["tiny"]
    assert rows[0]["digest"] == manifest["digest"]
    assert rows[0]["latency_ms"] == [manifest["latency"][key] for key in ("value", "low", "high")]
    assert "tiny" in call("zoo", "--wide")[1]


class _Page(HTMLParser):
    """Collect the tags of a page, what it would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [
            str(v) for k, v in attrs if k in ("src", "href", "srcset", "data") and not str(v).startswith("data:")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_with_every_bundle_and_obeys_no_manifest(tmp_path: Path, zoo: Path, call: Call) -> None:
    evil = bundles.bundle(tmp_path, "evil", heavy=None, licence="<script>alert(1)</script>\x1b[2J\u202e")
    assert call("push", str(evil), "--name", "evil")[0] == 0
    (zoo / "broken").mkdir()
    (zoo / "broken/manifest.json").write_text("{}")
    code, said, _ = call("zoo", "--out", "index.html")
    assert (code, said) == (0, "page: index.html, 3 bundle(s)\n")
    text = (tmp_path / "index.html").read_text()
    page = _Page()
    page.feed(text)
    assert "script" not in page.tags
    assert "script-src" not in text
    assert page.loads == []
    assert "<script>alert(1)</script>" in page.text
    assert not [c for c in text if c in "\x1b\u202e"]
    assert page.tags.count("tr") == 3
    assert {"svg", "polyline"} <= set(page.tags)
    assert "broken" in page.text
    assert "no valid manifest" in page.text


def test_an_empty_store_has_a_page() -> None:
    assert "0 bundle(s)" in zoo_page([])
    assert summarise("x", "why") == {"name": "x", "broken": "why"}


def test_a_policy_of_the_environment_holds_for_the_store(
    zoo: Path, bundle: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setenv("HNAS_ZOO_KEY", str(keys / "a.pub"))
    code, _, failed = call("pull", "tiny", "--out", "got")
    assert (code, failed.count("\n"), (tmp_path / "got").exists()) == (1, 1, False)
    assert "tiny is not signed" in failed
    assert call("show", str(bundle))[0] == 0, "a folder of this machine needs no signature"
    code, _, failed = call("show", str(bundle), "--require-signature", str(keys / "a.pub"))
    assert (code, failed.count("\n")) == (1, 1)
    from tests.hostile.builders import copied

    mine = copied(bundle, tmp_path / "mine")
    assert call("sign", str(mine), "--key", str(keys / "a.pem"))[0] == 0
    assert call("push", str(mine), "--name", "tiny")[0] == 0
    code, said, failed = call("pull", "tiny", "--out", "got")
    assert code == 0, failed
    assert f"signed by the owner of {keys / 'a.pub'}" in said
    code, _, failed = call("verify", str(mine), "--require-signature", str(keys / "b.pub"))
    assert (code, "is not one of" in failed) == (1, True)
    assert call("pack", str(mine), "--out", "mine.tar")[0] == 0
    assert call("pull", "mine.tar", "--out", "unpacked")[0] == 0
    assert (tmp_path / "unpacked/model.sig").exists()


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("sign", "nowhere", "--key", "k"), 2, "no bundle at nowhere"),
        (("sign", "b", "--key", "k", "--chain", "c"), 2, "--chain needs --certificate"),
        (("pack", "nowhere", "--out", "x.tar"), 2, "no bundle at nowhere"),
        (("pack", "nowhere", "--out", "x.zip"), 2, "expected a name that ends with .tar"),
        (("push", "nowhere", "--name", "x", "--store", "s"), 2, "no bundle at nowhere"),
        (("push", "nowhere", "--name", "Upper", "--store", "s"), 2, "the name of a bundle is 'Upper'"),
        (("pull", "none.tar", "--out", "x"), 2, "no file none.tar"),
        (("zoo", "--store", "ftp://x"), 2, "no store of the kind ftp://"),
        (("zoo", "--store", "nowhere"), 3, "no store at nowhere"),
    ],
)
def test_a_slip_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, words: tuple[str, ...], code: int, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, said, failed = call(*words)
    assert (found, said, failed.count("\n")) == (code, "", 1), failed
    assert reason in failed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("missing", "words", "extra"),
    [
        ("s3fs", ("zoo", "--store", "s3://x"), "zoo"),
        ("huggingface_hub", ("zoo", "--store", "hf://x"), "zoo"),
        ("oras", ("zoo", "--store", "oci://x"), "zoo"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(missing: str, words: tuple[str, ...], extra: str) -> None:
    done = without([missing], *words)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"hnas-deploy: {missing} is not installed; pip install 'hnas[{extra}]'\n"


def test_signing_without_its_package_names_the_extra(bundle: Path) -> None:
    done = without(["model_signing"], "sign", str(bundle), "--key", "k")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "hnas-deploy: model_signing is not installed; pip install 'hnas[sign]'\n"


@pytest.mark.parametrize(
    ("command", "default"),
    [("verify", ""), ("pull", "(default: $HNAS_ZOO_KEY)"), ("run", "(default for zoo://NAME: $HNAS_ZOO_KEY)")],
)
def test_the_help_says_where_the_key_of_the_environment_holds(command: str, default: str, call: Call) -> None:
    said = " ".join(call(command, "--help")[1].split())
    assert "does not verify" in said
    assert ("HNAS_ZOO_KEY" in said) == bool(default)
    assert default in said


@pytest.mark.parametrize("command", ["sign", "pack", "push", "pull", "zoo"])
def test_help_imports_no_client(command: str) -> None:
    done = deploy(command, "--help", unwanted=("numpy", "s3fs", "oras", "requests", "huggingface_hub", "model_signing"))
    assert done.returncode == 0, done.stderr
    assert command in cli.COMMANDS


def test_a_store_of_one_kind_imports_no_other_client(bundle: Path, tmp_path: Path) -> None:
    unwanted = ("s3fs", "oras", "requests", "huggingface_hub", "model_signing")
    os.environ.pop("HNAS_ZOO", None)
    done = deploy("push", bundle, "--name", "x", "--store", tmp_path / "store", unwanted=unwanted)
    assert done.returncode == 0, done.stderr
